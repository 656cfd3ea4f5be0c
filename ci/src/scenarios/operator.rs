//! An operator's actions on a disk in use, and their results.

use crate::config::Kind;
use crate::host::guest::Guest;
use crate::testbed::images::Image;
use crate::testbed::storage::{device_number, disk};
use crate::testbed::{MINUTE, Part, Scenario, Testbed};
use anyhow::{Result, ensure};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "discard",
        about: "discarded blocks read as zeros; their memory stays, or goes back to Xen (from a PV domain) until they are written",
        part: Part::Suite,
        run: |testbed| discard(testbed, Kind::Pv),
    },
    Scenario {
        name: "discard-pvh",
        about: "the same with a PVH driver domain",
        part: Part::ByName,
        run: |testbed| discard(testbed, Kind::Pvh),
    },
    Scenario {
        name: "growth",
        about: "an image of a PVH driver domain grows while a guest uses it; the guest sees it without reconnecting",
        part: Part::Suite,
        run: |testbed| growth(testbed, Kind::Pvh),
    },
    Scenario {
        name: "growth-pv",
        about: "the same with a PV driver domain",
        part: Part::ByName,
        run: |testbed| growth(testbed, Kind::Pv),
    },
    Scenario {
        name: "statistics",
        about: "a disk's node and the console's keys of a PV driver domain show what the guest did, to the request",
        part: Part::Suite,
        run: |testbed| statistics(testbed, Kind::Pv),
    },
    Scenario {
        name: "statistics-pvh",
        about: "the same with a PVH driver domain",
        part: Part::ByName,
        run: |testbed| statistics(testbed, Kind::Pvh),
    },
];

/// Returns the other kind than the driver domain's, so that both kinds are tested at both ends.
pub(super) fn other(kind: Kind) -> Kind {
    match kind {
        Kind::Pvh => Kind::Pv,
        _ => Kind::Pvh,
    }
}

/// Returns the memory of the driver domain in MiB, as `xl list` shows it.
pub(super) fn memory(testbed: &Testbed) -> Result<u32> {
    testbed.host.memory_of("storage")
}

/// Size of the image in MiB.
const SIZE: u32 = 16;

/// Prints the sums of the disk's four quarters, and the number of its bytes that are not zero.
const LOOK: &str = "for n in 0 1 2 3; do \
    dd if=/dev/xvda bs=1M skip=$((n * 4)) count=4 iflag=direct 2>/dev/null | sha256sum; done; \
    dd if=/dev/xvda bs=1M iflag=direct 2>/dev/null | tr -d '\\0' | wc -c";

/// Writes random data to all of the disk.
const FILL: &str = "dd if=/dev/urandom of=/tmp/noise bs=64k count=256 2>/dev/null && \
    dd if=/tmp/noise of=/dev/xvda bs=64k oflag=direct 2>/dev/null && rm /tmp/noise";

/// Runs [`LOOK`]. Returns the quarters' sums, and whether any byte is not zero.
fn look(guest: &Guest) -> Result<(Vec<String>, bool)> {
    let text = guest.ok(LOOK, MINUTE)?;
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    ensure!(lines.len() == 5, "the guest printed {text:?}");
    let bytes = lines.pop().unwrap_or_default();
    Ok((lines, bytes.trim() != "0"))
}

fn discard(testbed: &Testbed, kind: Kind) -> Result<()> {
    let images = [Image::mib("disk", SIZE.into()), Image::mib("kept", 4)];
    let mut storage = testbed.storage(kind).images(&images)?.memory(40).start()?;
    let disks = [
        disk("storage", "xvda", "rw", "ram:disk,discard=release"),
        disk("storage", "xvdb", "rw", "ram:kept"),
    ];
    testbed.step("a guest fills its disk with random data");
    let mut guest = testbed.host.lean_guest("guest", other(kind), &disks)?;
    guest.ok(FILL, MINUTE)?;
    let (noise, _) = look(&guest)?;
    let full = memory(testbed)?;

    testbed.step("discarding a quarter");
    guest.ok(
        "blkdiscard -o $((4 << 20)) -l $((4 << 20)) /dev/xvda",
        MINUTE,
    )?;
    let (quarters, _) = look(&guest)?;
    let others = |of: &[String]| [of[0].clone(), of[2].clone(), of[3].clone()];
    ensure!(
        quarters[1] != noise[1] && others(&quarters) == others(&noise),
        "the second quarter was discarded; before {noise:?}, now {quarters:?}"
    );
    let zeros = "head -c 4194304 /dev/zero | sha256sum";
    ensure!(
        guest.ok(zeros, MINUTE)?.trim() == quarters[1].trim(),
        "the discarded quarter is not zeros"
    );
    expect_memory(testbed, full - SIZE / 4)?;

    testbed.step("discarding all of it");
    guest.ok("blkdiscard /dev/xvda", MINUTE)?;
    ensure!(!look(&guest)?.1, "a discarded disk is not all zeros");
    expect_memory(testbed, full - SIZE)?;

    testbed.step(
        "writing with no memory to have: what was kept can be written, what was given back cannot",
    );
    let fill = |device: &str| {
        format!(
            "dd if=/dev/urandom of=/dev/{device} bs=64k count=64 iflag=fullblock oflag=direct && sync"
        )
    };
    guest.ok(&fill("xvdb"), MINUTE)?;
    guest.ok("blkdiscard /dev/xvdb", MINUTE)?;
    let left = "dd if=/dev/xvdb bs=1M iflag=direct 2>/dev/null | tr -d '\\0' | wc -c";
    let left = guest.ok(left, MINUTE)?;
    ensure!(
        left.trim() == "0",
        "{left} bytes are left of what was discarded"
    );
    expect_memory(testbed, full - SIZE)?;
    let less = full - SIZE;
    testbed.host.ok(&format!("xl mem-set storage {less}"))?;
    guest.ok(&fill("xvdb"), MINUTE)?;
    let refused = guest.exec(&fill("xvda"), MINUTE)?;
    ensure!(
        refused.status != 0,
        "pages that the domain may not have were written"
    );
    testbed.host.ok(&format!("xl mem-set storage {full}"))?;

    testbed.step("writing again");
    guest.ok(FILL, MINUTE)?;
    let (again, _) = look(&guest)?;
    ensure!(
        (0..4).all(|n| again[n] != noise[n] && again[n] != quarters[1]),
        "new random data reads as {again:?}"
    );
    expect_memory(testbed, full)?;
    guest.destroy()?;
    storage.shutdown()
}

/// Checks the memory that `xl list` shows: it rounds down, and a page table may have been needed.
fn expect_memory(testbed: &Testbed, expected: u32) -> Result<()> {
    let now = memory(testbed)?;
    ensure!(
        now.abs_diff(expected) <= 1,
        "the driver domain has {now} MiB, expected {expected}"
    );
    Ok(())
}

fn growth(testbed: &Testbed, kind: Kind) -> Result<()> {
    let images = [Image::mib("disk", 4)];
    let mut storage = testbed.storage(kind).images(&images)?.memory(48).start()?;
    let disks = [disk("storage", "xvda", "rw", "ram:disk")];
    testbed.step("a guest that keeps writing to its disk");
    let mut guest = testbed.host.lean_guest("guest", other(kind), &disks)?;
    let writing = guest.start(
        "until [ -e /tmp/stop ]; do dd if=/dev/zero of=/dev/xvda bs=64k count=64 oflag=direct \
         2>/dev/null || exit 1; done",
    )?;

    testbed.step("growing the image from 4 to 12 MiB");
    let answer = storage.ask("grow", "disk 12M")?;
    ensure!(
        answer == "image ram:disk grew from 4194304 to 12582912 bytes",
        "the answer is {answer:?}"
    );
    guest.wait_for_sectors("xvda", 24576)?;
    let whole = "dd if=/dev/urandom of=/tmp/noise bs=1M count=8 2>/dev/null && \
        dd if=/tmp/noise of=/dev/xvda bs=64k seek=64 oflag=direct 2>/dev/null && \
        dd if=/dev/xvda bs=64k skip=64 iflag=direct 2>/dev/null | cmp - /tmp/noise && \
        wc -c </tmp/noise";
    let compared = guest.ok(whole, MINUTE)?;
    ensure!(
        compared.trim() == (8 << 20).to_string(),
        "what is new of the disk does not hold what was written: {compared}"
    );
    guest.ok("touch /tmp/stop", MINUTE)?;
    let output = guest.finish(writing, MINUTE)?;
    ensure!(
        output.status == 0,
        "the growth disturbed the guest's writes"
    );
    let connections = storage.console().matches(": connected, ").count();
    ensure!(connections == 1, "the guest connected {connections} times");

    testbed.step("what cannot grow");
    for (request, reason) in [
        ("disk 1M", "has 12582912 bytes already"),
        ("disk 8G", "no 8577351680 bytes of memory"),
        ("nothing 1G", "there are: disk"),
        ("disk", "expected NAME SIZE"),
    ] {
        let answer = storage.ask("grow", request)?;
        ensure!(
            answer.contains(reason),
            "the answer to {request:?} is {answer:?}"
        );
    }
    guest.ok("dd if=/dev/xvda of=/dev/null bs=1M iflag=direct", MINUTE)?;
    guest.destroy()?;
    storage.shutdown()
}

fn statistics(testbed: &Testbed, kind: Kind) -> Result<()> {
    let images = [Image::mib("disk", 4), Image::mib("spare", 1)];
    let mut storage = testbed.storage(kind).images(&images)?.memory(24).start()?;
    let disks = [disk("storage", "xvda", "rw", "ram:disk")];
    testbed.step("a guest does what can be counted");
    let mut guest = testbed.host.lean_guest("guest", other(kind), &disks)?;
    let before = storage.statistics(&guest, device_number("xvda"))?.0;
    guest.ok(
        "dd if=/dev/zero of=/dev/xvda bs=4k count=24 oflag=direct && \
         dd if=/dev/xvda of=/dev/null bs=4k count=40 iflag=direct && \
         blkdiscard -l 1048576 /dev/xvda",
        MINUTE,
    )?;
    let after = storage.statistics(&guest, device_number("xvda"))?.0;
    let counted = |name: &str| after.get(name).zip(before.get(name)).map(|(b, a)| b - a);
    for (name, expected) in [
        ("writes", 24),
        ("sectors_written", 24 * 8),
        ("reads", 40),
        ("sectors_read", 40 * 8),
        ("discards", 1),
        ("errors", 0),
    ] {
        ensure!(
            counted(name) == Some(expected),
            "{name}: counted {:?}, expected {expected}; before {before:?}, after {after:?}",
            counted(name)
        );
    }

    testbed.step("keys on the driver domain's console");
    let written = after.get("writes").copied().unwrap_or_default();
    let vbd = format!("vbd {}/51712 (xvda): ", guest.id);
    for (key, shown) in [
        (
            "s",
            vec![
                "1 connected disk(s)".to_owned(),
                vbd,
                format!(" writes={written} "),
            ],
        ),
        (
            "i",
            vec![
                "image ram:disk, 4194304 bytes, open 1 time(s)".to_owned(),
                "image ram:spare, 1048576 bytes, open 0 time(s)".to_owned(),
            ],
        ),
        ("h", vec!["keys: s statistics".to_owned()]),
        ("x", vec!["no such key".to_owned()]),
    ] {
        let seen = storage.console_length();
        storage.press(key)?;
        for text in shown {
            storage.wait_console_from(seen, &text, MINUTE)?;
        }
    }
    guest.destroy()?;
    storage.shutdown()
}
