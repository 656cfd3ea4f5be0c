//! Targets that cannot be served: refused with the reason, and nobody else is disturbed.

use crate::config::Kind;
use crate::lab::images::{self, Image};
use crate::lab::storage::{Running, disk};
use crate::lab::{Lab, Scenario};
use anyhow::{Result, ensure};
use std::time::Duration;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "refused-targets",
        about: "unknown, malformed, taken and odd-sized targets are refused, each with its reason",
        demo: false,
        run: refused_targets,
    },
    Scenario {
        name: "damaged-ramdisk",
        about: "a damaged archive is reported, and who wants an image of it is refused",
        demo: false,
        run: damaged_ramdisk,
    },
];

/// libxl itself waits ten seconds for a backend; a refusal has to come sooner.
const LIMIT: Duration = Duration::from_secs(30);

/// A target, and what the reason has to name.
const REFUSED: &[(&str, &str)] = &[
    ("ram:nothing", "nothing"),
    ("ram:", "name"),
    ("floppy:disk", "floppy"),
    ("ram:taken", "taken"),
    ("ram:odd", "odd"),
];

fn refused_targets(lab: &Lab) -> Result<()> {
    let images = [Image::mib("taken", 4), Image::new("odd", 4097)];
    let mut storage = lab.storage(Kind::Pvh).images(&images)?.memory(24).start()?;
    lab.step("a guest that works on, and has one image open for writing");
    let disks = [disk("storage", "xvda", "rw", "ram:taken")];
    let mut owner = lab.host.guest("owner", Kind::Pv, &disks)?;
    let job = owner.start("for i in $(seq 60); do dd if=/dev/zero of=/dev/xvda bs=64k count=16 oflag=direct 2>/dev/null || exit 1; sleep 0.2; done")?;
    for (target, reason) in REFUSED {
        lab.step(format!("a guest that wants {target}"));
        refuse(lab, &storage, target, reason)?;
    }
    let output = owner.finish(job, Duration::from_secs(120))?;
    ensure!(
        output.status == 0,
        "the other guest was disturbed: {}",
        output.out
    );
    owner.destroy()?;
    storage.shutdown()
}

fn damaged_ramdisk(lab: &Lab) -> Result<()> {
    let (here, _) = lab.shared_file("damaged.tar");
    images::write_damaged_archive(&here)?;
    let mut storage = lab
        .storage(Kind::Pv)
        .ramdisk("damaged.tar")
        .memory(24)
        .start()?;
    storage.expect_error(0, "ramdisk", LIMIT)?;
    lab.step("a guest that wants an image of it");
    refuse(lab, &storage, "ram:first", "ramdisk")?;
    storage.shutdown()
}

/// A guest with this target is refused, with the reason in the log and in the error node.
fn refuse(lab: &Lab, storage: &Running, target: &str, reason: &str) -> Result<()> {
    let seen = storage.console_length();
    let mut config = lab.host.guest_config(
        "refused",
        Kind::Pvh,
        &[disk("storage", "xvda", "rw", target)],
    )?;
    config.ramdisk = None;
    config.memory = 128;
    let created = lab.host.try_create(&config)?;
    let line = storage.expect_error(seen, reason, LIMIT)?;
    let tree = lab.host.ok(&format!(
        "xenstore-ls -f /local/domain/{}/error",
        storage.id
    ))?;
    ensure!(
        tree.contains(reason),
        "no error node names {reason:?}:\n{tree}"
    );
    ensure!(created.status != 0, "xl create succeeded although: {line}");
    let left = lab.host.exec("xl domid refused", LIMIT)?;
    ensure!(left.status != 0, "xl create left the refused guest behind");
    Ok(())
}
