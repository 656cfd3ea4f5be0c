//! Many guests at once, and attaching while other programs write to xenstore too.

use crate::config::Kind;
use crate::host::Host;
use crate::host::block_list::{self, Row};
use crate::host::guest::Guest;
use crate::testbed::images::Image;
use crate::testbed::leak_check::Holdings;
use crate::testbed::storage::disk;
use crate::testbed::{MINUTE, Part, Scenario, Testbed, side_by_side, write_verify};
use anyhow::{Context, Result, ensure};
use std::time::Duration;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "busy-xenstore",
        about: "2 guests read back what they wrote at the same time, then attach and detach 2 disks each among conflicting transactions; no disk is lost",
        part: Part::Suite,
        run: busy_xenstore,
    },
    Scenario {
        name: "eight-guests",
        about: "8 small guests read back what they wrote, all at the same time",
        part: Part::ByName,
        run: eight_guests,
    },
];

/// The time limit for each of these scenarios.
const LIMIT: Duration = Duration::from_secs(480);

/// Creates lean guests `guest0` and on, the n-th with `ram:disk<n>`. They are PV guests: the busier a host, the more
/// often the emulation kills PVH ones (docs/emulator-faults.md), which other scenarios cover.
fn guests(host: &Host, count: usize) -> Result<Vec<Guest<'_>>> {
    // More than two at a time would only wait for each other's processor.
    let mut all = Vec::new();
    for first in (0..count).step_by(2) {
        let pair = side_by_side::run(2.min(count - first), |n| {
            let number = first + n;
            let disk = disk("storage", "xvda", "rw", &format!("ram:disk{number}"));
            host.lean_guest(&format!("guest{number}"), Kind::Pv, &[disk])
        })?;
        all.extend(pair);
    }
    Ok(all)
}

const GUESTS: usize = 8;

fn eight_guests(testbed: &Testbed) -> Result<()> {
    testbed.may_take(LIMIT);
    let _preferred = testbed.host.prefer_dom0()?;
    let images: Vec<Image> = (0..GUESTS)
        .map(|n| Image::mib(&format!("disk{n}"), 2))
        .collect();
    let mut storage = testbed
        .storage(Kind::Pvh)
        .images(&images)?
        .memory(40)
        .start()?;
    let before = Holdings::by(testbed.host, storage.id)?;
    testbed.step("booting eight guests");
    let mut guests = guests(testbed.host, GUESTS)?;

    all_write_and_read(testbed, &guests)?;
    testbed.step("ending them");
    Guest::destroy_all(&mut guests)?;
    before.expect(testbed.host, storage.id, "after eight guests")?;
    storage.shutdown()
}

/// Has all guests write random data at the same time, and read it back.
fn all_write_and_read(testbed: &Testbed, guests: &[Guest]) -> Result<()> {
    testbed.step("all write random data and read it back");
    // They share three emulated processors: each has little to do, and its time.
    let jobs = Guest::start_in_each(guests, &write_verify::command("xvda", 1))?;
    for (guest, job) in guests.iter().zip(jobs) {
        let output = guest.finish(job, 2 * MINUTE)?;
        ensure!(
            output.status == 0 && write_verify::is_equal(&output.out, 1),
            "{} reads what it did not write: {}",
            guest.name,
            output.out
        );
    }
    Ok(())
}

/// The number of guests that attach and detach at the same time. With four, four calls of xl share dom0's processor, and
/// on a slow machine one of them has waited for ten seconds, which libxl takes for a failure.
const ATTACHING: usize = 2;

/// The disks that each of them attaches beside the one with which it boots.
const MORE_DISKS: [&str; 2] = ["xvdb", "xvdc"];

const ROUNDS: usize = 2;

/// Starts two writers whose transactions conflict with all others, and a loop that has all of xenstore listed again and
/// again. dom0 has one processor: they take only the time that xenstored and the toolstack leave, as libxl's time-out
/// of 10 s would pass otherwise.
const BUSY: &str = r#"
rm -f /tmp/calm
for n in 1 2; do nice lab-xen contend /tmp/calm $storage >/tmp/contend$n 2>&1 & done
(until [ -e /tmp/calm ]; do nice xenstore-ls -f; sleep 0.5; done) >/dev/null 2>&1 &
"#;

/// Ends them, and prints a line for each with the numbers of transactions that were committed and that were not.
const CALM: &str = r#"
touch /tmp/calm
for n in 1 2; do until [ -s /tmp/contend$n ]; do sleep 0.1; done; cat /tmp/contend$n; done
"#;

fn busy_xenstore(testbed: &Testbed) -> Result<()> {
    testbed.may_take(LIMIT);
    let mut images: Vec<Image> = (0..ATTACHING)
        .map(|n| Image::mib(&format!("disk{n}"), 1))
        .collect();
    for guest in 0..ATTACHING {
        images.extend(MORE_DISKS.map(|device| Image::mib(&format!("{device}-{guest}"), 1)));
    }
    let mut storage = testbed
        .storage(Kind::Pv)
        .images(&images)?
        .memory(40)
        .start()?;
    testbed.step("booting two guests");
    let mut guests = guests(testbed.host, ATTACHING)?;
    all_write_and_read(testbed, &guests)?;
    let before = Holdings::by(testbed.host, storage.id)?;

    testbed.step("attaching and detaching among conflicting transactions");
    testbed
        .host
        .ok(&format!("storage={}\n{BUSY}", storage.id))?;
    let host = testbed.host;
    let outcome = side_by_side::run(ATTACHING, |n| {
        (1..=ROUNDS).try_for_each(|round| {
            come_and_go(host, &guests[n], n).with_context(|| format!("guest{n}, round {round}"))
        })
    });
    let busy = testbed.host.ok(CALM);
    outcome?;
    let busy = busy?;

    testbed.step("counting what is left");
    let (mut committed, mut conflicts) = (0, 0);
    for line in busy.lines() {
        let counts = line
            .split_once(' ')
            .with_context(|| format!("a writer of transactions failed: {busy}"))?;
        committed += counts.0.parse::<u32>()?;
        conflicts += counts.1.parse::<u32>()?;
    }
    ensure!(
        committed >= 3 && conflicts >= 5,
        "{committed} transactions and {conflicts} conflicts are too few for a busy xenstore"
    );
    let expected = ATTACHING * MORE_DISKS.len() * ROUNDS;
    let log = storage.console();
    for (what, expected) in [
        (": attached, ", expected + ATTACHING),
        (": connected, ", expected + ATTACHING),
        (": detached", expected),
        ("ERROR", 0),
    ] {
        let count = log.matches(what).count();
        ensure!(
            count == expected,
            "the driver domain's log shows {what:?} {count} times, expected {expected}:\n{log}"
        );
    }
    before.expect(host, storage.id, "after all were detached")?;
    Guest::destroy_all(&mut guests)?;
    storage.shutdown()
}

/// Attaches all further disks of a guest, uses them at the same time, and detaches them.
fn come_and_go(host: &Host, guest: &Guest, number: usize) -> Result<()> {
    let name = &guest.name;
    let frontends = format!("/local/domain/{}/device/vbd", guest.id);
    let mut attach = String::new();
    let mut detach = String::new();
    for device in MORE_DISKS {
        let disk = disk("storage", device, "rw", &format!("ram:{device}-{number}"));
        attach += &format!("xl block-attach {name} '{disk}' 2>&1 || exit\n");
        detach += &format!("xl block-detach {name} {device} 2>&1 || exit\n");
    }
    let connected = format!(
        "until [ $(xenstore-ls -f {frontends} | grep -c '/state = \"4\"') = {} ]; do sleep 0.2; done\n",
        MORE_DISKS.len() + 1
    );
    let list = format!("xl block-list {name}");
    let row = |n: u32| Row {
        device: 51712 + 16 * n,
        state: 4,
    };
    let expect = |script: String, expected: &[Row]| -> Result<()> {
        let output = host.exec(&script, 2 * MINUTE)?;
        ensure!(output.status == 0, "{}{}", output.out, output.err);
        let seen = block_list::parse(&output.out)?;
        ensure!(seen == expected, "xl block-list shows {seen:?}");
        Ok(())
    };
    expect(attach + &connected + &list, &[0, 1, 2].map(row))?;
    let use_all: Vec<String> = MORE_DISKS
        .iter()
        .map(|device| {
            let write_and_compare = write_verify::command(device, 1);
            format!(
                "until [ -b /dev/{device} ]; do usleep 50000; done; {write_and_compare} || exit 1"
            )
        })
        .collect();
    let output = guest.ok(&use_all.join("\n"), 2 * MINUTE)?;
    ensure!(
        output.lines().count() == MORE_DISKS.len()
            && output.lines().all(|line| write_verify::is_equal(line, 1)),
        "the disks do not hold what was written: {output}"
    );
    expect(detach + &list, &[row(0)])
}
