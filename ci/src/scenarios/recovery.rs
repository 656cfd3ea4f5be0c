//! A driver domain that crashes and starts again in place (`docs/recovery.md`).

use super::crash::Crash;
use super::main_job::FIO_LIMIT;
use super::stores::{self, Store};
use crate::config::Kind;
use crate::host::guest::Guest;
use crate::host::read_from;
use crate::testbed::images::Image;
use crate::testbed::leak_check::Holdings;
use crate::testbed::report::milliseconds;
use crate::testbed::storage::{Running, device_number, disk};
use crate::testbed::{MINUTE, Part, Scenario, Testbed, fio};
use anyhow::{Result, ensure};
use std::time::Duration;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "restart-in-place-pvh",
        about: "a PVH driver domain crashes in three ways, boots again in its own domain and keeps its images and disks; a fourth crash within a minute ends it",
        part: Part::ByName,
        run: |testbed| restarts(testbed, Kind::Pvh, 1),
    },
    Scenario {
        name: "restart-in-place-pv",
        about: "a PV driver domain crashes in three ways, boots again in its own domain and keeps its images and disks; a fourth crash within a minute ends it",
        part: Part::Suite,
        run: |testbed| restarts(testbed, Kind::Pv, 1),
    },
    Scenario {
        name: "restart-in-place-vcpus-pvh",
        about: "a PVH driver domain of two vCPUs hangs and crashes on either, boots again with both and keeps its images and disks",
        part: Part::Suite,
        run: |testbed| restarts(testbed, Kind::Pvh, 2),
    },
    Scenario {
        name: "restart-in-place-vcpus-pv",
        about: "a PV driver domain of two vCPUs hangs and crashes on either, boots again with both and keeps its images and disks",
        part: Part::ByName,
        run: |testbed| restarts(testbed, Kind::Pv, 2),
    },
    Scenario {
        name: "crashes-under-load-pvh",
        about: "a PVH driver domain of two vCPUs crashes three times, on either, under two guests with fio, verified: they notice a pause",
        part: Part::Suite,
        run: |testbed| crashes_under_load(testbed, Kind::Pvh, &stores::IMAGES),
    },
    Scenario {
        name: "crashes-under-load-pv",
        about: "a PV driver domain of two vCPUs crashes three times, on either, under two guests with fio, verified: they notice a pause",
        part: Part::Suite,
        run: |testbed| crashes_under_load(testbed, Kind::Pv, &stores::IMAGES),
    },
    Scenario {
        name: "crashes-under-load-own-disks-pvh",
        about: "a PVH driver domain with two disks of its own crashes three times under two guests with fio, verified: they notice a pause",
        part: Part::ByName,
        run: |testbed| crashes_under_load(testbed, Kind::Pvh, &stores::OWN_DISKS),
    },
    Scenario {
        name: "crashes-under-load-own-disks-pv",
        about: "a PV driver domain with two disks of its own crashes three times under two guests with fio, verified: they notice a pause",
        part: Part::ByName,
        run: |testbed| crashes_under_load(testbed, Kind::Pv, &stores::OWN_DISKS),
    },
    Scenario {
        name: "crashes-under-load-nbd-pvh",
        about: "a PVH driver domain that serves exports of two NBD servers crashes three times under two guests with fio, verified: they notice a pause",
        part: Part::ByName,
        run: |testbed| crashes_under_load(testbed, Kind::Pvh, &stores::EXPORTS),
    },
    Scenario {
        name: "crashes-under-load-nbd-pv",
        about: "a PV driver domain that serves exports of two NBD servers crashes three times under two guests with fio, verified: they notice a pause",
        part: Part::ByName,
        run: |testbed| crashes_under_load(testbed, Kind::Pv, &stores::EXPORTS),
    },
    Scenario {
        name: "crashes-under-load-nbds-pvh",
        about: "a PVH driver domain that serves exports of two servers by TLS crashes three times under two guests with fio, verified: they notice a pause",
        part: Part::ByName,
        run: |testbed| crashes_under_load(testbed, Kind::Pvh, &stores::TLS_EXPORTS),
    },
];

/// The same with devices that are passed through.
pub const WITH_DEVICES: &[Scenario] = &[
    Scenario {
        name: "crashes-under-load-nvme-pv",
        about: "a PV driver domain with two NVMe controllers crashes three times under two guests with fio, verified: they notice a pause",
        part: Part::ByName,
        run: |testbed| crashes_under_load(testbed, Kind::Pv, &stores::CONTROLLERS),
    },
    Scenario {
        name: "crashes-under-load-virtio-pv",
        about: "a PV driver domain with a virtio-blk device and an NVMe controller crashes three times under two guests with fio, verified: they notice a pause",
        part: Part::ByName,
        run: |testbed| crashes_under_load(testbed, Kind::Pv, &stores::VIRTIO),
    },
];

/// The time within which what a crashed boot held has to be given back.
const GIVEN_BACK: Duration = Duration::from_secs(20);

/// Three ways to crash, with the number of the vCPU. On PV, Xen itself ends a domain whose stack overflows, and lets nobody
/// damage page tables. On PV, a hang takes several vCPUs to be noticed.
fn crashes(kind: Kind, vcpus: u32) -> [Crash; 3] {
    match (kind, vcpus) {
        (Kind::Pv, 1) => [("panic", 0), ("null", 0), ("heap", 0)],
        (_, 1) => [("page-table", 0), ("hang", 0), ("stack", 0)],
        (Kind::Pv, _) => [("hang", 0), ("null", 1), ("hang", 1)],
        (_, _) => [("hang", 1), ("stack", 1), ("hang", 0)],
    }
    .map(|(way, vcpu)| Crash::by(way, vcpu))
}

/// Writes random data to the disk and prints their sum.
pub(super) const WRITE: &str = "dd if=/dev/urandom of=/tmp/noise bs=64k count=64 2>/dev/null && \
    dd if=/tmp/noise of=/dev/xvda bs=64k oflag=direct 2>/dev/null && sha256sum </tmp/noise";

/// Writes to the disk without end.
const WRITE_ON: &str =
    "while dd if=/dev/zero of=/dev/xvda bs=64k count=64 oflag=direct; do :; done 2>/dev/null";

/// Prints the sum of the disk as it reads without the guest's cache.
pub(super) const READ: &str =
    "dd if=/dev/xvda bs=64k count=64 iflag=direct 2>/dev/null | sha256sum";

fn restarts(testbed: &Testbed, kind: Kind, vcpus: u32) -> Result<()> {
    let host = testbed.host;
    let mut storage = testbed
        .storage(kind)
        .images(&[Image::mib("disk", 4)])?
        .memory(24)
        .vcpus(vcpus)
        .cmdline("recover=on test-crash=on")
        .start()?;
    let nothing = Holdings::by(host, storage.id)?;
    let disks = [disk("storage", "xvda", "rw", "ram:disk")];
    let mut config = host.lean_guest_config("guest", Kind::Pv, &disks)?;
    config.vcpus = vcpus;
    let mut guest = Guest::wait(host.create(&config)?)?;
    let written = guest.ok(WRITE, MINUTE)?;

    let [idle, busy, last] = crashes(kind, vcpus);
    testbed.step(format!("{kind}: a crash while a disk is connected"));
    let connected = Holdings::by(host, storage.id)?;
    idle.and_return(&storage, 1)?;
    let read = guest.ok(READ, MINUTE)?;
    ensure!(
        read == written,
        "{kind}: after a crash, the disk reads {read}, but {written} was written"
    );

    if vcpus == 1 {
        // No node of the disk has changed, and Xen has given out the same again.
        connected.expect_within(host, storage.id, "after a crash", GIVEN_BACK)?;
    } else {
        // That depends on which of the guest's vCPUs has written and read.
        expect_all_serve(&storage, &guest, vcpus)?;
    }

    testbed.step(format!("{kind}: a crash while the guest writes"));
    guest.start(WRITE_ON)?;
    storage.wait_for_writes(&guest, device_number("xvda"), 50, MINUTE)?;
    busy.and_return(&storage, 2)?;
    storage.wait_for_writes(&guest, device_number("xvda"), 50, MINUTE)?;
    guest.destroy()?;
    nothing.expect_within(host, storage.id, "after a crash in mid-write", GIVEN_BACK)?;

    testbed.step(format!("{kind}: a crash without any disk"));
    last.and_return(&storage, 3)?;
    nothing.expect_within(host, storage.id, "after three restarts", GIVEN_BACK)?;

    testbed.step(format!(
        "{kind}: crashes until one of them is the fourth within a minute"
    ));
    let seen = storage.console_length();
    host.let_crash(storage.id);
    // On a slow machine the crashes so far were more than a minute ago. Four in a row are not.
    let mut restarts = 3;
    while !Crash::by("panic", 0).ends(&mut storage, restarts + 1)? {
        restarts += 1;
        ensure!(
            restarts < 7,
            "{kind}: four crashes in a row did not end it:\n{}",
            storage.console_from(seen)
        );
    }
    let console = storage.console_from(seen);
    ensure!(
        console.contains("no restart: three within a minute"),
        "{kind}: the domain has ended, but not because of its fourth crash:\n{console}"
    );
    let log = read_from(&host.instance().share().join("xl/xl-storage.log"), 0);
    // SHUTDOWN_crash (sched.h).
    ensure!(
        log.contains("reason code 3"),
        "{kind}: xl was not told of a crash:\n{log}"
    );
    Ok(())
}

/// Expects that each vCPU serves one of the queues of the guest's disk.
fn expect_all_serve(storage: &Running, guest: &Guest, vcpus: u32) -> Result<()> {
    let counted = storage.statistics(guest, device_number("xvda"))?;
    let serving = |queue| counted.get(&format!("queue_{queue}_vcpu"));
    let mut all = (0..vcpus).map(serving).collect::<Result<Vec<_>>>()?;
    all.sort_unstable();
    ensure!(
        all.iter().copied().eq(0..u64::from(vcpus)),
        "queues are served by vCPUs {all:?}"
    );
    Ok(())
}

/// Crashes of a scenario: as many as a minute may have.
const CRASHES: u32 = 3;

/// Time for which the second guest reads around each crash, in seconds.
const READS: u32 = 6;

/// Rounds over the disk, or so much of it, long enough for all crashes.
const LOOPS: &str = "--size=16m --loops=20 --time_based --runtime=45";

fn crashes_under_load(testbed: &Testbed, kind: Kind, on: &[Store; 2]) -> Result<()> {
    let host = testbed.host;
    let storage = stores::make(testbed, kind, "recover=on test-crash=on", on, Vec::new())?;
    let mut storage = storage.memory(64).vcpus(2).start()?;
    stores::wait(&storage, on)?;
    let nothing = Holdings::by(host, storage.id)?;
    let [written, read] = on
        .each_ref()
        .map(|store| [disk("storage", "xvda", "rw", &store.target())]);
    let mut writer = host.guest("writer", Kind::Pvh, &written)?;
    let mut reader = host.guest("reader", Kind::Pv, &read)?;
    let job = writer.start(&fio::verify_command_with("/dev/xvda", LOOPS))?;
    storage.wait_for_writes(&writer, device_number("xvda"), 100, MINUTE)?;
    let nodes = Holdings::by(host, storage.id)?.nodes;

    let mut pauses = Vec::new();
    for number in 1..=CRASHES {
        testbed.step(format!("{kind}: crash {number} under load"));
        let reads = reader.start(&fio::reads_command("/dev/xvda", READS))?;
        host.ok("sleep 3")?;
        Crash::by("panic", number % 2).and_return(&storage, number)?;
        let reads = fio::finish_reads(&reader, reads, 2 * MINUTE)?;
        pauses.push(reads.longest);
        let now = Holdings::by(host, storage.id)?.nodes;
        ensure!(
            now == nodes,
            "{kind}: nodes were {nodes:?}, and are {now:?}"
        );
    }
    pauses.sort();
    let (median, worst) = (pauses[pauses.len() / 2], pauses[pauses.len() - 1]);
    testbed.record(testbed.scenario, "pause, median", milliseconds(median));
    testbed.record(testbed.scenario, "pause, worst", milliseconds(worst));
    ensure!(
        worst < fio::NOT_ANSWERED,
        "{kind}: a guest has waited for {worst:?}"
    );

    testbed.step(format!("{kind}: everything verified, and nothing left"));
    fio::finish(&writer, job, FIO_LIMIT)?;
    let log = storage.console();
    let resumed = log.matches("taken up again").count();
    ensure!(
        resumed >= 2 * CRASHES as usize,
        "{kind}: {resumed} queues were taken up again:\n{log}"
    );
    writer.destroy()?;
    reader.destroy()?;
    nothing.expect_within(host, storage.id, "after three crashes", GIVEN_BACK)?;
    storage.shutdown()?;
    stores::remove(testbed, on)
}
