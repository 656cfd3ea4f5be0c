//! Targets that cannot be served: they are refused with the reason, and no other guest is disturbed.

use crate::config::Kind;
use crate::testbed::images::{self, Image};
use crate::testbed::storage::{Running, device_number, disk};
use crate::testbed::{Part, Scenario, Testbed, write_verify};
use anyhow::{Context, Result, ensure};
use std::time::Duration;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "refused-targets",
        about: "unknown, malformed, taken and odd-sized targets are refused, each with its reason",
        part: Part::Suite,
        run: refused_targets,
    },
    Scenario {
        name: "damaged-ramdisk",
        about: "a damaged archive is reported, and a guest that asks for an image of it is refused",
        part: Part::Suite,
        run: damaged_ramdisk,
    },
    Scenario {
        name: "disks-for-qemu",
        about: "format=qcow2 and backendtype=qdisk: refused with what to write, the guest boots, nothing is left",
        part: Part::Suite,
        run: disks_for_qemu,
    },
];

/// The time limit for a refusal: libxl itself waits ten seconds for a backend, and a refusal has to come sooner.
const LIMIT: Duration = Duration::from_secs(30);

/// Targets, and a word that each reason has to contain.
const REFUSED: &[(&str, &str)] = &[
    ("ram:nothing", "nothing"),
    ("ram:", "name"),
    ("floppy:disk", "floppy"),
    ("ram:taken", "taken"),
    ("ram:odd", "odd"),
];

fn refused_targets(testbed: &Testbed) -> Result<()> {
    let images = [Image::mib("taken", 4), Image::new("odd", 4097)];
    let mut storage = testbed
        .storage(Kind::Pvh)
        .images(&images)?
        .memory(24)
        .start()?;
    testbed.step("a guest that works on, and has one image open for writing");
    let disks = [disk("storage", "xvda", "rw", "ram:taken")];
    let mut owner = testbed.host.lean_guest("owner", Kind::Pv, &disks)?;
    let keeping = owner.start(&write_verify::keep_at_it("xvda", 1))?;
    write_verify::wait_for_passes(&owner, 1)?;
    for (target, reason) in REFUSED {
        testbed.step(format!("a guest that wants {target}"));
        refuse(testbed, &storage, target, reason)?;
    }
    write_verify::goes_on(&owner).context("the other guest was disturbed")?;
    write_verify::stop(&owner, keeping)?;
    owner.destroy()?;
    storage.shutdown()
}

fn damaged_ramdisk(testbed: &Testbed) -> Result<()> {
    let (here, _) = testbed.shared_file("damaged.tar");
    images::write_damaged_archive(&here)?;
    let mut storage = testbed
        .storage(Kind::Pv)
        .ramdisk("damaged.tar")
        .memory(24)
        .start()?;
    storage.expect_error(0, "ramdisk", LIMIT)?;
    testbed.step("a guest that wants an image of it");
    refuse(testbed, &storage, "ram:first", "ramdisk")?;
    storage.shutdown()
}

/// Disks that libxl has QEMU serve, and words that their reasons have to contain.
const FOR_QEMU: &[(&str, &str, &str)] = &[
    ("xvdb", "format=qcow2", "write format=raw"),
    ("xvdc", "format=raw,backendtype=qdisk", "leave it out"),
];

fn disks_for_qemu(testbed: &Testbed) -> Result<()> {
    let images = [Image::mib("good", 4)];
    let mut storage = testbed
        .storage(Kind::Pvh)
        .images(&images)?
        .memory(24)
        .start()?;
    testbed.step("booting a guest with one disk for us and two for QEMU");
    let mut disks = vec![disk("storage", "xvda", "rw", "ram:good")];
    for (device, format, _) in FOR_QEMU {
        disks.push(format!(
            "backend=storage,vdev={device},{format},access=rw,target=ram:good"
        ));
    }
    // Its frontend's driver waits for all disks, for five minutes, before anything else begins.
    let mut guest = testbed.host.lean_guest("guest", Kind::Pvh, &disks)?;
    let uptime = guest.ok("cut -d. -f1 /proc/uptime", LIMIT)?;
    ensure!(
        uptime.trim().parse::<u32>()? < 240,
        "the guest waited for its disks: up for {uptime} s"
    );
    guest.ok("dd if=/dev/xvda of=/dev/null bs=64k count=4", LIMIT)?;
    let log = storage.console();
    for (device, _, advice) in FOR_QEMU {
        let number = device_number(device);
        let errors = log.lines().filter(|line| line.contains("ERROR"));
        let about = errors.filter(|line| line.contains(&format!("qdisk/{}/{number}:", guest.id)));
        let lines: Vec<&str> = about.collect();
        ensure!(
            lines.len() == 1 && lines[0].contains(advice),
            "the log does not say what to write for {device}: {lines:#?}"
        );
        let (id, kind) = (storage.id, "error/backend/qdisk");
        let node = format!("/local/domain/{id}/{kind}/{}/{number}/error", guest.id);
        let error = testbed.host.ok(&format!("xenstore-read {node}"))?;
        ensure!(error.contains(advice), "{node} says {error:?}");
    }
    let own = format!("/local/domain/{}", storage.id);
    let tree = format!("xenstore-ls -f {own}");
    let of_guest = |device| {
        let (guest, number) = (guest.id, device_number(device));
        format!("{own}/backend/qdisk/{guest}/{number}")
    };

    testbed.step("one is detached, the other goes with the guest");
    testbed.host.ok("xl block-detach guest xvdb")?;
    let left = testbed.host.ok(&tree)?;
    ensure!(
        !left.contains(&of_guest("xvdb")) && left.contains(&of_guest("xvdc")),
        "xl block-detach left:\n{left}"
    );
    let last = of_guest("xvdc");
    guest.destroy()?;
    let left = testbed.host.ok(&tree)?;
    ensure!(!left.contains(&last), "xl destroy left:\n{left}");
    storage.shutdown()
}

/// Checks that a guest with this target is refused, with the reason in the log and in the error node.
pub(super) fn refuse(
    testbed: &Testbed,
    storage: &Running,
    target: &str,
    reason: &str,
) -> Result<()> {
    let seen = storage.console_length();
    let mut config = testbed.host.guest_config(
        "refused",
        Kind::Pvh,
        &[disk("storage", "xvda", "rw", target)],
    )?;
    config.ramdisk = None;
    config.memory = 128;
    let created = testbed.host.try_create(&config)?;
    let line = storage.expect_error(seen, reason, LIMIT)?;
    let tree = testbed.host.ok(&format!(
        "xenstore-ls -f /local/domain/{}/error",
        storage.id
    ))?;
    ensure!(
        tree.contains(reason),
        "no error node names {reason:?}:\n{tree}"
    );
    ensure!(created.status != 0, "xl create succeeded although: {line}");
    let left = testbed.host.exec("xl domid refused", LIMIT)?;
    ensure!(left.status != 0, "xl create left the refused guest behind");
    Ok(())
}
