//! The driver domain's amount of memory, and its behaviour where that is not enough.

use super::operator::{memory, other};
use crate::config::Kind;
use crate::testbed::images::Image;
use crate::testbed::storage::{Running, disk};
use crate::testbed::{MINUTE, Part, Scenario, Testbed};
use anyhow::{Context, Result, ensure};
use std::time::Instant;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "memory-target",
        about: "maxmem= above memory= does not end a PVH domain; xl mem-set is followed, or the log says why not",
        part: Part::Suite,
        run: |testbed| memory_target(testbed, Kind::Pvh),
    },
    Scenario {
        name: "memory-target-pv",
        about: "the same with a PV driver domain",
        part: Part::ByName,
        run: |testbed| memory_target(testbed, Kind::Pv),
    },
];

fn memory_target(testbed: &Testbed, kind: Kind) -> Result<()> {
    let images = [Image::mib("img", 4)];
    let mut storage = testbed
        .storage(kind)
        .images(&images)?
        .memory(32)
        .maxmem(256)
        .start()?;
    let disks = [disk("storage", "xvda", "rw", "ram:img")];
    let mut guest = testbed.host.lean_guest("guest", other(kind), &disks)?;
    let read = "dd if=/dev/xvda of=/dev/null bs=1M iflag=direct";

    testbed.step("growing an image into memory that is not there");
    let answer = storage.ask("grow", "img 128M")?;
    ensure!(
        answer.contains("bytes of memory in one piece"),
        "the answer is {answer:?}"
    );
    guest.ok(read, MINUTE)?;
    // All that is there can be used: what the map shows beyond it is not touched.
    let answer = storage.ask("grow", "img 20M")?;
    ensure!(answer.contains("grew from"), "the answer is {answer:?}");
    guest.ok(read, MINUTE)?;

    testbed.step("xl mem-set, up");
    let seen = storage.console_length();
    testbed.host.ok("xl mem-set storage 200")?;
    if kind == Kind::Pv {
        // Its list of pages is as long as it was made.
        storage.wait_console_from(seen, "it cannot have more than it was created with", MINUTE)?;
        guest.ok(read, MINUTE)?;
    } else {
        wait_for_memory(testbed, &storage, 198..=200)?;
        let answer = storage.ask("grow", "img 128M")?;
        ensure!(answer.contains("grew from"), "the answer is {answer:?}");
        guest.ok(
            "dd if=/dev/urandom of=/dev/xvda bs=1M seek=120 count=8 iflag=fullblock oflag=direct",
            MINUTE,
        )?;
    }

    testbed.step("xl mem-set, down, as far as images allow");
    let image = if kind == Kind::Pv { 20 } else { 128 };
    let seen = storage.console_length();
    testbed.host.ok("xl mem-set storage 24")?;
    if kind == Kind::Pv {
        wait_for_memory(testbed, &storage, 24..=28)?;
    } else {
        storage.wait_console_from(seen, "the rest is in use", MINUTE)?;
        wait_for_memory(testbed, &storage, image..=image + 12)?;
    }
    guest.ok(read, MINUTE)?;
    guest.destroy()?;
    storage.shutdown()
}

/// Waits until `xl list` shows an amount of memory, in MiB, that is within `expected`.
fn wait_for_memory(
    testbed: &Testbed,
    storage: &Running,
    expected: std::ops::RangeInclusive<u32>,
) -> Result<()> {
    let deadline = Instant::now() + MINUTE;
    loop {
        let now = memory(testbed)?;
        if expected.contains(&now) {
            return Ok(());
        }
        storage
            .host
            .tick(deadline)
            .with_context(|| format!("the domain has {now} MiB, expected {expected:?}"))?;
    }
}
