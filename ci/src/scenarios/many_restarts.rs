//! Restarts in place, as many as one host does in a few minutes.

use super::crash::Crash;
use super::recovery::{READ, WRITE};
use crate::config::Kind;
use crate::host::guest::Guest;
use crate::testbed::images::Image;
use crate::testbed::storage::{Running, disk};
use crate::testbed::{MINUTE, Part, Scenario, Testbed};
use anyhow::{Result, ensure};
use std::time::{Duration, Instant};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "many-restarts-pvh",
        about: "twelve PVH driver domains of two vCPUs crash six times each, on either, while a guest reads from all of them",
        part: Part::ByName,
        run: |testbed| many_restarts(testbed, Kind::Pvh),
    },
    Scenario {
        name: "many-restarts-pv",
        about: "twelve PV driver domains of two vCPUs crash six times each, on either, while a guest reads from all of them",
        part: Part::ByName,
        run: |testbed| many_restarts(testbed, Kind::Pv),
    },
];

const LIMIT: Duration = Duration::from_secs(900);

/// The guest's disks, of which each is on a driver domain of its own.
const DISKS: [&str; 12] = [
    "xvda", "xvdb", "xvdc", "xvdd", "xvde", "xvdf", "xvdg", "xvdh", "xvdi", "xvdj", "xvdk", "xvdl",
];

/// Restarts that a domain has within a minute, at most, and that minute, in an emulated host whose clock may be late.
const AT_ONCE: usize = 3;
const MINUTE_OF_RESTARTS: Duration = Duration::from_secs(62);

/// Restarts of each.
const RESTARTS: u32 = 6;

/// Reads a block at a time, from both of the guest's vCPUs and so from both of each driver domain: these sleep after nearly
/// every request, and a crash of one vCPU meets the other one at any place between its sleep and its work.
const READ_ON: &str = "for d in a b c d e f g h i j k l; do for n in 0 1; do \
    (while dd if=/dev/xvd$d of=/dev/null bs=4k count=256 iflag=direct; do :; done) 2>/dev/null & \
    done; done; wait";

fn many_restarts(testbed: &Testbed, kind: Kind) -> Result<()> {
    testbed.may_take(LIMIT);
    let host = testbed.host;
    let _preferred = host.prefer_dom0()?;
    let image = [Image::mib("disk", 4)];
    let mut all: Vec<Running> = (0..DISKS.len())
        .map(|number| {
            testbed
                .storage(kind)
                .name(&format!("storage{number}"))
                .images(&image)?
                .memory(24)
                .vcpus(2)
                .cmdline("recover=on test-crash=on")
                .start()
        })
        .collect::<Result<_>>()?;
    let disks: Vec<String> = all
        .iter()
        .zip(DISKS)
        .map(|(storage, device)| disk(&storage.name, device, "rw", "ram:disk"))
        .collect();
    let mut config = host.lean_guest_config("guest", Kind::Pvh, &disks)?;
    config.vcpus = 2;
    // So many disks of two queues each.
    config.memory = 512;
    let mut guest = Guest::wait(host.create(&config)?)?;
    let written = guest.ok(WRITE, MINUTE)?;
    guest.start(READ_ON)?;

    let (mut done, mut lost) = (0, Vec::new());
    let mut ends: Vec<Instant> = Vec::new();
    for restart in 1..=RESTARTS {
        if let Some(&then) = ends.iter().rev().nth(AT_ONCE - 1) {
            let wait = (then + MINUTE_OF_RESTARTS).saturating_duration_since(Instant::now());
            testbed.step(format!("{kind}: {AT_ONCE} restarts a minute: waiting"));
            std::thread::sleep(wait);
        }
        testbed.step(format!("{kind}: restart {restart} of each"));
        for (number, storage) in all.iter().enumerate() {
            if lost.iter().any(|(domain, _)| *domain == number) {
                continue;
            }
            let vcpu = (number as u32 + restart) % 2;
            match Crash::by("panic", vcpu).and_return(storage, restart) {
                Ok(()) => done += 1,
                Err(error) => lost.push((number, error)),
            }
        }
        ends.push(Instant::now());
    }
    testbed.record(
        testbed.scenario,
        "restarts",
        format!("{done}, failed {}", lost.len()),
    );
    ensure!(lost.is_empty(), "{kind}: did not come back: {lost:?}");

    testbed.step(format!("{kind}: the disks are as they were"));
    let read = guest.ok(READ, MINUTE)?;
    ensure!(
        read == written,
        "{kind}: after {RESTARTS} restarts, the disk reads {read}, but {written} was written"
    );
    guest.destroy()?;
    all.iter_mut().try_for_each(|storage| storage.shutdown())
}
