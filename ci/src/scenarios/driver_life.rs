//! The driver domain's own life while guests are attached.

use crate::config::Kind;
use crate::host::guest::Guest;
use crate::host::xen_state::grants_in_use;
use crate::testbed::images::Image;
use crate::testbed::storage::{device_number, disk};
use crate::testbed::write_verify::{self, write_to_the_end};
use crate::testbed::{MINUTE, Part, Scenario, Testbed, guest_queue};
use anyhow::{Context, Result, anyhow, ensure};
use std::thread;
use std::time::{Duration, Instant};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "ends-with-guests",
        about: "xl shutdown of a PVH driver domain in use closes every disk; its guests live on",
        part: Part::Suite,
        run: |testbed| ends_with_guests(testbed, Kind::Pvh),
    },
    Scenario {
        name: "ends-with-guests-pv",
        about: "the same with a PV driver domain",
        part: Part::ByName,
        run: |testbed| ends_with_guests(testbed, Kind::Pv),
    },
    Scenario {
        name: "comes-back",
        about: "xl reboot of a PV driver domain in use; the guest that it served attaches again",
        part: Part::Suite,
        run: |testbed| comes_back(testbed, Kind::Pv),
    },
    Scenario {
        name: "comes-back-pvh",
        about: "the same with a PVH driver domain",
        part: Part::ByName,
        run: |testbed| comes_back(testbed, Kind::Pvh),
    },
    Scenario {
        name: "guest-first",
        about: "a guest created before the (PVH) driver domain runs waits, and connects when it comes",
        part: Part::Suite,
        run: |testbed| guest_first(testbed, Kind::Pvh),
    },
    Scenario {
        name: "guest-first-pv",
        about: "the same with a PV driver domain",
        part: Part::ByName,
        run: |testbed| guest_first(testbed, Kind::Pv),
    },
    Scenario {
        name: "refused-requests",
        about: "xl save, migrate, trigger and vcpu-set of a PVH driver domain in use are refused; its guest goes on",
        part: Part::Suite,
        run: |testbed| refused_requests(testbed, Kind::Pvh),
    },
    Scenario {
        name: "refused-requests-pv",
        about: "the same with a PV driver domain",
        part: Part::ByName,
        run: |testbed| refused_requests(testbed, Kind::Pv),
    },
    Scenario {
        name: "paused-storage",
        about: "idle driver domains, PVH and PV, that are paused for twice their watchdog's time go on",
        part: Part::Suite,
        run: paused_storages,
    },
];

/// A stand-in for another host: the greeting that `xl migrate` expects before it sends a domain. xl's own receiver
/// (4.17) crashes when nothing comes after the configuration.
const RECEIVER: &str = "echo xl migration receiver ready, send binary domain data.; cat >/dev/null";

/// The time within which a request has to be refused.
const REFUSAL: Duration = Duration::from_secs(20);

/// The time that a guest may wait for a disk that is gone, before the scenario checks the reason.
const GIVEN_UP: Duration = Duration::from_secs(20);

fn ends_with_guests(testbed: &Testbed, kind: Kind) -> Result<()> {
    let images: Vec<Image> = (0..3).map(|n| Image::mib(&format!("disk{n}"), 2)).collect();
    let mut storage = testbed.storage(kind).images(&images)?.memory(32).start()?;
    testbed.step("two guests with three disks");
    let use_image = |n, device| disk("storage", device, "rw", &format!("ram:disk{n}"));
    let two_disks = [use_image(0, "xvda"), use_image(1, "xvdb")];
    let mut guests = [
        testbed.host.lean_guest("pvh", Kind::Pvh, &two_disks)?,
        testbed
            .host
            .lean_guest("pv", Kind::Pv, &[use_image(2, "xvda")])?,
    ];
    let disks = [(0, "xvda"), (0, "xvdb"), (1, "xvda")];
    let writing = disks
        .iter()
        .map(|&(guest, device)| {
            let guest: &Guest = &guests[guest];
            Ok((guest, device, guest.start(&write_to_the_end(device))?))
        })
        .collect::<Result<Vec<_>>>()?;
    for (guest, device, _) in &writing {
        storage.wait_for_writes(guest, device_number(device), 10, MINUTE)?;
    }

    testbed.step("shutting the driver domain down in mid-write");
    storage.shutdown()?;
    let log = storage.console();
    let (_, log) = log
        .split_once("Poweroff requested: closing 3 disk(s)")
        .context("the driver domain's log does not show the request")?;
    for (guest, device) in [
        (0, "51712 (xvda)"),
        (0, "51728 (xvdb)"),
        (1, "51712 (xvda)"),
    ] {
        let line = format!(
            "vbd {}/{device}: closed, the driver domain ends",
            guests[guest].id
        );
        ensure!(log.contains(&line), "its log lacks {line:?}:\n{log}");
    }
    ensure!(!log.contains("ERROR"), "its log shows an error:\n{log}");
    ensure!(
        grants_in_use(testbed.host, storage.id)? == 0,
        "pages are still mapped by the driver domain that has ended"
    );

    testbed.step("the guests without it");
    for (guest, device, job) in writing {
        let name = &guest.name;
        match guest.finish_within(&job, GIVEN_UP)? {
            Some(output) => ensure!(
                output.out.trim() == "the disk is gone",
                "{name}: {}",
                output.out
            ),
            None => {
                guest_queue::expect_held_by_the_guest(guest, device)
                    .with_context(|| format!("{name}: no end within {GIVEN_UP:?}"))?;
                testbed.step(format!("{name} itself holds a request of {device}"));
            }
        }
    }
    Guest::destroy_all(&mut guests)
}

fn comes_back(testbed: &Testbed, kind: Kind) -> Result<()> {
    let images = [Image::mib("first", 2), Image::mib("second", 2)];
    let mut storage = testbed.storage(kind).images(&images)?.memory(24).start()?;
    testbed.step("a guest with a disk");
    let disks = [disk("storage", "xvda", "rw", "ram:first")];
    let mut guest = testbed.host.lean_guest("guest", Kind::Pvh, &disks)?;
    write_verify::verify(&guest, "xvda", 1)?;

    testbed.step(format!("rebooting the {kind} driver domain"));
    storage.reboot()?;

    testbed.step("the same guest attaches disks of the new one");
    testbed
        .host
        .attach_disk(&guest, &disk("storage", "xvdb", "rw", "ram:second"), 51728)?;
    guest.ok("until [ -b /dev/xvdb ]; do usleep 50000; done", MINUTE)?;
    write_verify::verify(&guest, "xvdb", 1)?;
    guest.destroy()?;
    storage.shutdown()
}

fn guest_first(testbed: &Testbed, kind: Kind) -> Result<()> {
    let images = [Image::mib("disk", 2)];
    let mut storage = testbed
        .storage(kind)
        .images(&images)?
        .memory(24)
        .start_paused()?;
    testbed.step("a guest on a driver domain that does not run yet");
    let host = testbed.host;
    let mut guest = thread::scope(|scope| -> Result<Guest<'_>> {
        let disks = [disk("storage", "xvda", "rw", "ram:disk")];
        let coming = scope.spawn(move || host.lean_guest("guest", Kind::Pv, &disks));
        let waiting = wait_for_attach(testbed, storage.id);
        // Whatever became of that, the guest's creation must come to an end.
        let running = storage.unpause();
        let guest = coming.join().map_err(|_| anyhow!("a panic"))?;
        waiting?;
        running?;
        guest
    })?;
    testbed.step("the driver domain runs: the guest uses its disk");
    write_verify::verify(&guest, "xvda", 1)?;
    guest.destroy()?;
    storage.shutdown()
}

fn refused_requests(testbed: &Testbed, kind: Kind) -> Result<()> {
    let host = testbed.host;
    let images = [Image::mib("disk", 4)];
    let storage = testbed
        .storage(kind)
        .images(&images)?
        .memory(24)
        .maxvcpus(4);
    let mut storage = storage.start()?;
    let vcpus = host.ok("xl list storage | awk 'NR == 2 { print $4 }'")?;
    ensure!(vcpus.trim() == "1", "{kind}: {} vCPUs run", vcpus.trim());
    let disks = [disk("storage", "xvda", "rw", "ram:disk")];
    let mut guest = host.lean_guest("guest", Kind::Pv, &disks)?;
    let working = guest.start(&write_verify::keep_at_it("xvda", 1))?;
    write_verify::wait_for_passes(&guest, 1)?;

    for request in [
        "xl save storage /tmp/saved",
        &format!("xl migrate -s '' storage '{RECEIVER}'"),
    ] {
        testbed.step(format!("{kind}: {request}"));
        let start = Instant::now();
        let output = host.exec(request, 3 * MINUTE)?;
        ensure!(
            output.status != 0 && start.elapsed() < REFUSAL,
            "{kind}: {request}: status {} after {:?}",
            output.status,
            start.elapsed()
        );
        ensure!(
            format!("{}{}", output.out, output.err).contains("Suspend event channel"),
            "{kind}: {request} gives no reason: {}{}",
            output.out,
            output.err
        );
    }
    let own = format!("/local/domain/{}", storage.id);
    for (request, logged) in [
        (
            format!("xenstore-write {own}/control/shutdown suspend"),
            "cannot be saved, migrated or suspended",
        ),
        (
            "xl vcpu-set storage 3".to_owned(),
            "vCPU 2 is wanted online",
        ),
    ] {
        testbed.step(format!("{kind}: {request}"));
        let seen = storage.console_length();
        host.ok(&request)?;
        storage.wait_console_from(seen, logged, MINUTE)?;
    }
    testbed.step(format!("{kind}: NMIs while a guest works"));
    let seen = storage.console_length();
    for _ in 0..10 {
        host.ok("xl trigger storage nmi")?;
    }
    if kind == Kind::Pvh {
        storage.wait_console_from(seen, "NMI received and ignored", MINUTE)?;
    }
    write_verify::goes_on(&guest)?;
    write_verify::stop(&guest, working)?;
    let vcpus = host.ok("xl list storage | awk 'NR == 2 { print $4 }'")?;
    ensure!(vcpus.trim() == "1", "{kind}: {} vCPUs run", vcpus.trim());
    guest.destroy()?;
    storage.shutdown()
}

/// The watchdog's time in seconds. On a busy machine an emulated processor may stand still for a few.
const WATCHDOG: u64 = 8;

fn paused_storages(testbed: &Testbed) -> Result<()> {
    let images = [Image::mib("disk", 4)];
    let host = testbed.host;
    let mut served = Vec::new();
    for kind in Kind::ALL {
        let name = format!("storage-{kind}");
        let storage = testbed.storage(kind).name(&name).images(&images)?;
        let storage = storage.memory(24).cmdline(&format!("watchdog={WATCHDOG}"));
        let storage = storage.start()?;
        let disks = [disk(&name, "xvda", "rw", "ram:disk")];
        let guest = host.lean_guest(&format!("guest-{kind}"), Kind::Pv, &disks)?;
        write_verify::verify(&guest, "xvda", 1)?;
        served.push((storage, guest));
    }

    testbed.step("quiet, and then paused");
    thread::sleep(Duration::from_secs(2 * WATCHDOG));
    for (storage, _) in &served {
        storage.pause()?;
    }
    thread::sleep(Duration::from_secs(2 * WATCHDOG));
    for (storage, guest) in &mut served {
        storage.unpause()?;
        write_verify::verify(guest, "xvda", 1)?;
        guest.destroy()?;
        storage.shutdown()?;
    }
    Ok(())
}

/// Waits until the toolstack has asked for a disk, and checks that it goes on waiting.
fn wait_for_attach(testbed: &Testbed, storage: u32) -> Result<()> {
    let root = format!("/local/domain/{storage}/backend/vbd");
    let states = format!("xenstore-ls -f {root} 2>/dev/null | grep '/state = '");
    let asked = format!("until {states}; do sleep 0.1; done; sleep 2; {states}");
    let seen = testbed.host.exec(&asked, MINUTE)?;
    let initialising = |line: &str| line.ends_with("= \"1\"");
    ensure!(
        seen.out.lines().count() == 2 && seen.out.lines().all(initialising),
        "the disk's state did not stay 1 (Initialising): {}",
        seen.out
    );
    Ok(())
}
