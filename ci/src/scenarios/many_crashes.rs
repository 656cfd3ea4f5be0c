//! A hundred crashes under four guests at once, each of which has fio verify a disk on another store all the time.

use super::crash::Crash;
use super::stores::{self, Store};
use crate::config::Kind;
use crate::host::Host;
use crate::host::guest::{Guest, Started};
use crate::host::pci;
use crate::testbed::leak_check::{Everything, Holdings, expect_within, mapped_by_others};
use crate::testbed::network::Server;
use crate::testbed::pauses::{self, KEEP_LOG, LOGGED, MARK};
use crate::testbed::report::milliseconds;
use crate::testbed::storage::disk;
use crate::testbed::{Part, Scenario, Testbed, fio, side_by_side, write_verify};
use anyhow::{Context, Result, ensure};
use std::thread::sleep;
use std::time::Duration;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "many-crashes-pvh",
        about: "a PVH driver domain crashes a hundred times, in six ways, under four guests with fio, verified, on an image, a disk of its own and two servers: nothing is lost, and Xen counts what it did before",
        part: Part::ByName,
        run: |testbed| many_crashes(testbed, Kind::Pvh, 1, &PVH),
    },
    Scenario {
        name: "many-crashes-vcpus-pvh",
        about: "the same with two vCPUs, on either of which it crashes",
        part: Part::ByName,
        run: |testbed| many_crashes(testbed, Kind::Pvh, 2, &PVH),
    },
];

/// The same with a device that is passed through.
pub const WITH_DEVICES: &[Scenario] = &[
    Scenario {
        name: "many-crashes-pv",
        about: "a PV driver domain crashes a hundred times, in three ways, under four guests with fio, verified, on an image, a disk of its own, a server and an NVMe controller: nothing is lost, and Xen counts what it did before",
        part: Part::ByName,
        run: |testbed| many_crashes(testbed, Kind::Pv, 1, &PV),
    },
    Scenario {
        name: "many-crashes-vcpus-pv",
        about: "the same with two vCPUs, on either of which it crashes or hangs",
        part: Part::ByName,
        run: |testbed| many_crashes(testbed, Kind::Pv, 2, &PV),
    },
];

/// What the guests' disks lie on.
const PVH: [Store; 4] = [
    Store::Image("disk"),
    Store::Own("xvda"),
    Store::Export(Server::Files, "root-bob"),
    Store::Export(Server::Single, "qcow"),
];
const PV: [Store; 4] = [
    Store::Image("disk"),
    Store::Own("xvda"),
    Store::Export(Server::Files, "root-bob"),
    Store::Device(pci::NVME),
];

const CRASHES: u32 = 100;

/// The crashes after which what Xen counts is compared: the last one, and an early one.
const EARLY: u32 = 3;

/// Every so many crashes, one follows as soon as the domain is ready: its stores are not there yet.
const AT_ONCE: u32 = 8;

/// The time limit of one of these scenarios.
const LIMIT: Duration = Duration::from_secs(3600);

/// The time within which each of four guests at work does what it is told.
const ANSWERED: Duration = Duration::from_secs(180);

/// The part of each disk that fio uses, and its rounds over it in one run of a few seconds.
const ROUNDS: &str = "--size=8m --loops=5";

/// Writes random data behind that part, and prints its sum.
const WRITE_END: &str = "dd if=/dev/urandom of=/tmp/noise bs=64k count=64 2>/dev/null && \
    dd if=/tmp/noise of=/dev/xvda bs=64k seek=128 oflag=direct 2>/dev/null && sha256sum </tmp/noise";

/// Prints the sum of that data as it reads without the guest's cache.
const READ_END: &str =
    "dd if=/dev/xvda bs=64k skip=128 count=64 iflag=direct 2>/dev/null | sha256sum";

/// Reads a block.
const READ_BLOCK: &str = "dd if=/dev/xvda of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null";

/// The time within which what a crashed boot held has to be given back.
const GIVEN_BACK: Duration = Duration::from_secs(30);

/// Returns the ways to crash, which take turns. On PV, Xen itself ends a domain whose stack overflows, and lets nobody damage
/// page tables; and a hang takes several vCPUs to be noticed.
fn ways(kind: Kind, vcpus: u32) -> &'static [&'static str] {
    match (kind, vcpus) {
        (Kind::Pv, 1) => &["panic", "null", "heap"],
        (Kind::Pv, _) => &["panic", "null", "heap", "hang"],
        (_, _) => &["panic", "null", "stack", "heap", "page-table", "hang"],
    }
}

/// Returns the time for which guests are left alone before a crash: the next one is to come at another moment of their work.
fn rest(number: u32) -> Duration {
    Duration::from_millis(u64::from(number * 617 % 1300))
}

fn many_crashes(testbed: &Testbed, kind: Kind, vcpus: u32, on: &[Store; 4]) -> Result<()> {
    testbed.may_take(LIMIT);
    let host = testbed.host;
    let _preferred = host.prefer_dom0()?;
    let _turns = host.lengthen_turns()?;
    let cmdline = "recover=on test-crash=often";
    let storage = stores::make(testbed, kind, cmdline, on, Vec::new())?;
    let mut storage = storage.memory(64).vcpus(vcpus).start()?;
    stores::wait(&storage, on)?;
    let nothing = Holdings::by(host, storage.id)?;
    let mapped = mapped_by_others(host, storage.id)?;
    testbed.step("booting four guests");
    let mut guests = guests(host, on)?;
    let written = on_each(&guests, WRITE_END)?;
    let mut work = work(&guests)?;
    // fio takes long to load in four emulated guests.
    guests
        .iter()
        .try_for_each(|guest| write_verify::wait_for_passes(guest, 1))?;

    let (ways, mut early) = (ways(kind, vcpus), None);
    for number in 1..=CRASHES {
        let (way, vcpu) = (number as usize % ways.len(), number / ways.len() as u32);
        let crash = Crash::by(ways[way], vcpu % vcpus);
        testbed.step(format!("{kind}, {vcpus} vCPU: crash {number}: {crash:?}"));
        let compared = number == EARLY || number == CRASHES;
        if compared {
            // Whatever is in use under load differs from one moment to the next.
            rest_from(&guests, std::mem::take(&mut work))?;
        } else if !number.is_multiple_of(AT_ONCE) {
            mark(&guests)?;
            sleep(rest(number));
        }
        crash.and_return(&storage, number)?;
        if compared {
            on_each(&guests, READ_BLOCK)?;
            match &early {
                None => {
                    sleep(GIVEN_BACK / 3);
                    early = Some(Everything::of(host, storage.id)?);
                }
                Some(early) => {
                    let when = format!("after {CRASHES} crashes");
                    let count = || Everything::of(host, storage.id);
                    expect_within(early, &when, GIVEN_BACK, count)?;
                }
            }
            if number < CRASHES {
                work = self::work(&guests)?;
            }
        }
    }

    testbed.step("everything is as it was written");
    let read = on_each(&guests, READ_END)?;
    ensure!(
        read == written,
        "the disks read {read:?}, but {written:?} was written"
    );
    let mut longest = Duration::ZERO;
    for (guest, store) in guests.iter().zip(on) {
        let row = format!("{kind}, {vcpus} vCPU, {}", store.target());
        let (median, worst) = pauses::median_and_worst(pauses::longest(guest)?)
            .with_context(|| guest.name.clone())?;
        testbed.record(&row, "pause, median", milliseconds(median));
        testbed.record(&row, "pause, worst", milliseconds(worst));
        longest = longest.max(worst);
    }
    ensure!(
        longest < fio::NOT_ANSWERED,
        "a guest has waited for {longest:?}"
    );
    Guest::destroy_all(&mut guests)?;
    let when = format!("after {CRASHES} crashes and the guests' end");
    nothing.expect_within(host, storage.id, &when, GIVEN_BACK)?;
    // A backend keeps pages mapped as long as it is connected, those of boots before, too.
    stores::replace_own_disks(&storage, kind, on)?;
    let count = || mapped_by_others(host, storage.id);
    expect_within(&mapped, &when, GIVEN_BACK, count)?;
    storage.shutdown()?;
    stores::remove(testbed, on)
}

/// Creates guests, each with a disk on one of the stores. They are PV guests: the busier a host, the more often the
/// emulation kills PVH ones (docs/emulator-faults.md).
fn guests<'h>(host: &'h Host, on: &[Store]) -> Result<Vec<Guest<'h>>> {
    let mut all = Vec::new();
    for first in (0..on.len()).step_by(2) {
        all.extend(side_by_side::run(2, |n| {
            let number = first + n;
            let disk = disk("storage", "xvda", "rw", &on[number].target());
            host.guest(&format!("guest{number}"), Kind::Pv, &[disk])
        })?);
    }
    Ok(all)
}

/// Runs a command in all guests at the same time, and returns what it prints there.
fn on_each(guests: &[Guest], command: &str) -> Result<Vec<String>> {
    let started = Guest::start_in_each(guests, command)?;
    guests
        .iter()
        .zip(started)
        .map(|(guest, started)| {
            let output = guest.finish(started, ANSWERED)?;
            ensure!(
                output.status == 0,
                "{}: {command}: {}",
                guest.name,
                output.out
            );
            Ok(output.out)
        })
        .collect()
}

/// Has fio write and verify in all guests without end.
fn work(guests: &[Guest]) -> Result<Vec<Started>> {
    let verify = fio::verify_command_with("/dev/xvda", &format!("{ROUNDS} {LOGGED}"));
    let work = write_verify::again_and_again(&format!("({verify}) && {KEEP_LOG}"));
    Guest::start_in_each(guests, &work)
}

/// Has that end, and checks that fio has found each byte as it was written.
fn rest_from(guests: &[Guest], work: Vec<Started>) -> Result<()> {
    let all = guests.iter().zip(work);
    all.into_iter()
        .try_for_each(|(guest, work)| write_verify::stop(guest, work))
}

/// Marks the present time in all guests, once their disks answer.
fn mark(guests: &[Guest]) -> Result<()> {
    on_each(guests, MARK).map(drop)
}
