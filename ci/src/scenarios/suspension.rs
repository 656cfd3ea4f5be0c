//! Guests that are paused, or end and go on elsewhere, with requests in flight.

use super::main_job::FIO_LIMIT;
use crate::config::Kind;
use crate::host::guest::{Guest, Started};
use crate::testbed::images::Image;
use crate::testbed::leak_check::Holdings;
use crate::testbed::storage::{Running, device_number, disk};
use crate::testbed::{MINUTE, Part, Scenario, Testbed, fio};
use anyhow::{Result, ensure};
use std::time::{Duration, Instant};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "paused-guests",
        about: "guests paused for 30 s in the middle of fio go on, verified; another works meanwhile",
        part: Part::Suite,
        run: paused_guests,
    },
    Scenario {
        name: "saved-pv-guest",
        about: "xl save and restore of a PV guest in the middle of its work: verified, and nothing left between",
        part: Part::ByName,
        run: |testbed| saved_guest(testbed, Kind::Pv),
    },
    Scenario {
        name: "saved-pvh-guest",
        about: "xl save and restore of a PVH guest in the middle of its work: verified, and nothing left between",
        part: Part::Suite,
        run: |testbed| saved_guest(testbed, Kind::Pvh),
    },
];

const PAUSE: Duration = Duration::from_secs(30);

/// The time limit for saving and restoring, which copy the guest's whole memory.
const COPY: Duration = Duration::from_secs(120);

/// fio's option for several rounds over the disk, long enough to be interrupted.
const LOOPS: &str = "--loops=6";

/// Starts fio on `/dev/xvda` and waits until it has written some.
fn start_fio(storage: &Running, guest: &Guest) -> Result<Started> {
    let job = guest.start(&fio::verify_command_with("/dev/xvda", LOOPS))?;
    storage.wait_for_writes(guest, device_number("xvda"), 100, MINUTE)?;
    Ok(job)
}

fn writes(storage: &Running, guest: &Guest) -> Result<u64> {
    storage
        .statistics(guest, device_number("xvda"))?
        .get("writes")
}

fn paused_guests(testbed: &Testbed) -> Result<()> {
    let images = ["pvh", "pv", "other"].map(|name| Image::mib(name, 16));
    let mut storage = testbed
        .storage(Kind::Pvh)
        .images(&images)?
        .memory(64)
        .start()?;
    testbed.step("booting two guests");
    let disks = |image: &str| [disk("storage", "xvda", "rw", &format!("ram:{image}"))];
    let mut pvh = testbed.host.guest("guest-pvh", Kind::Pvh, &disks("pvh"))?;
    let mut pv = testbed.host.guest("guest-pv", Kind::Pv, &disks("pv"))?;

    testbed.step("pausing two in the middle of fio");
    let mut jobs = Vec::new();
    for guest in [&pvh, &pv] {
        jobs.push((guest, start_fio(&storage, guest)?));
        guest.pause()?;
    }
    let start = Instant::now();
    // What was in the rings is finished by now.
    std::thread::sleep(Duration::from_secs(1));
    let before = [writes(&storage, &pvh)?, writes(&storage, &pv)?];
    testbed.step("booting a third one meanwhile, and fio in it");
    let mut other = testbed.host.guest("other", Kind::Pvh, &disks("other"))?;
    fio::verify(&other, "/dev/xvda", FIO_LIMIT)?;
    std::thread::sleep(PAUSE.saturating_sub(start.elapsed()));
    let after = [writes(&storage, &pvh)?, writes(&storage, &pv)?];
    ensure!(
        before == after,
        "paused guests wrote: {before:?} requests, then {after:?}"
    );

    testbed.step("unpausing them");
    for (guest, _) in &jobs {
        guest.unpause()?;
    }
    for ((guest, job), before) in jobs.into_iter().zip(before) {
        fio::finish(guest, job, FIO_LIMIT)?;
        let after = writes(&storage, guest)?;
        ensure!(
            after > before,
            "fio was not paused in the middle: {after} writes in {}",
            guest.name
        );
    }
    Guest::destroy_all([&mut pvh, &mut pv, &mut other])?;
    storage.shutdown()
}

/// Has four processes write random data, each to its own part of `/dev/xvda`, and compare it, again and again until
/// they are stopped; then prints the number of rounds.
const WORK: &str = "worker() { \
        while [ ! -e /tmp/stop ]; do \
            head -c 1048576 /dev/urandom >/tmp/noise$1; \
            dd if=/tmp/noise$1 of=/dev/xvda bs=64k seek=$(($1 * 16)) oflag=direct 2>/dev/null || return 1; \
            dd if=/dev/xvda bs=64k skip=$(($1 * 16)) count=16 iflag=direct 2>/dev/null | \
                cmp - /tmp/noise$1 || return 1; \
            echo round; \
        done; }; \
    jobs=; for n in 0 1 2 3; do worker $n >/tmp/rounds$n & jobs=\"$jobs $!\"; done; \
    for job in $jobs; do wait $job || exit 1; done; cat /tmp/rounds? | wc -l";

fn saved_guest(testbed: &Testbed, kind: Kind) -> Result<()> {
    const FILE: &str = "/tmp/saved-guest";
    let images = [Image::mib("work", 4), Image::mib("kept", 4)];
    let mut storage = testbed.storage(kind).images(&images)?.memory(28).start()?;
    let nothing = Holdings::by(testbed.host, storage.id)?;
    testbed.step(format!("booting a {kind} guest"));
    let disks = [
        disk("storage", "xvda", "rw", "ram:work"),
        disk("storage", "xvdb", "rw", "ram:kept"),
    ];
    // Its whole memory is copied twice: the less, the better.
    let mut guest = testbed.host.lean_guest("guest", kind, &disks)?;
    let there = "until [ -b /dev/xvda -a -b /dev/xvdb ]; do sleep 0.1; done";
    guest.ok(there, MINUTE)?;
    let sum = "dd if=/dev/xvdb bs=1M iflag=direct 2>/dev/null | sha256sum";
    let fill = "dd if=/dev/urandom of=/dev/xvdb bs=1M count=4 oflag=direct";
    guest.ok(fill, MINUTE)?;
    let written = guest.ok(sum, MINUTE)?;

    testbed.step(format!("saving a {kind} guest in the middle of its work"));
    let job = guest.start(WORK)?;
    let deadline = Instant::now() + MINUTE;
    while writes(&storage, &guest)? < 100 {
        testbed.host.tick(deadline)?;
    }
    guest.save(FILE, COPY)?;
    nothing.expect(testbed.host, storage.id, "after the guest was saved")?;

    testbed.step(format!("restoring the {kind} guest"));
    let before = guest.id;
    guest.restore(FILE, COPY)?;
    ensure!(guest.id != before, "the restored guest has its old number");
    testbed.host.ok(&format!("rm {FILE}"))?;
    // It works on by itself, through a new connection.
    let deadline = Instant::now() + MINUTE;
    while writes(&storage, &guest)? < 100 {
        testbed.host.tick(deadline)?;
    }
    guest.ok("touch /tmp/stop", MINUTE)?;
    let output = guest.finish(job, MINUTE)?;
    ensure!(
        output.status == 0,
        "the guest did not read what it wrote: {}",
        output.out
    );
    let read = guest.ok(sum, MINUTE)?;
    ensure!(
        read == written,
        "the other disk reads as {read}, but {written} was written"
    );

    testbed.step(format!("ending the restored {kind} guest"));
    guest.destroy()?;
    nothing.expect(testbed.host, storage.id, "after the restored guest's end")?;
    storage.shutdown()
}
