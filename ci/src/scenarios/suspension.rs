//! Guests that end and go on elsewhere, with requests under way.

use crate::config::Kind;
use crate::host::guest::Guest;
use crate::lab::held::Held;
use crate::lab::images::Image;
use crate::lab::storage::{Running, device_number, disk};
use crate::lab::{Lab, Scenario};
use anyhow::{Result, ensure};
use std::time::{Duration, Instant};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "saved-pv-guest",
        about: "xl save and restore of a PV guest in the middle of its work: verified, and nothing left between",
        demo: false,
        run: |lab| saved_guest(lab, Kind::Pv),
    },
    Scenario {
        name: "saved-pvh-guest",
        about: "xl save and restore of a PVH guest in the middle of its work: verified, and nothing left between",
        demo: false,
        run: |lab| saved_guest(lab, Kind::Pvh),
    },
];

const MINUTE: Duration = Duration::from_secs(60);
const SHUTDOWN: Duration = Duration::from_secs(20);

/// Saving and restoring copy the guest's whole memory.
const COPY: Duration = Duration::from_secs(120);

fn writes(storage: &Running, guest: &Guest) -> Result<u64> {
    storage
        .statistics(guest, device_number("xvda"))?
        .get("writes")
}

/// Four at once write noise to parts of `/dev/xvda` of their own and compare what they read back,
/// again and again until they are told to stop; then the number of rounds is printed.
const WORK: &str = "worker() { \
        while [ ! -e /tmp/stop ]; do \
            dd if=/dev/urandom of=/tmp/noise$1 bs=64k count=16 2>/dev/null; \
            dd if=/tmp/noise$1 of=/dev/xvda bs=64k seek=$(($1 * 16)) oflag=direct 2>/dev/null || return 1; \
            dd if=/dev/xvda bs=64k skip=$(($1 * 16)) count=16 iflag=direct 2>/dev/null | \
                cmp - /tmp/noise$1 || return 1; \
            echo round; \
        done; }; \
    jobs=; for n in 0 1 2 3; do worker $n >/tmp/rounds$n & jobs=\"$jobs $!\"; done; \
    for job in $jobs; do wait $job || exit 1; done; cat /tmp/rounds? | wc -l";

fn saved_guest(lab: &Lab, kind: Kind) -> Result<()> {
    const FILE: &str = "/tmp/saved-guest";
    let images = [Image::mib("work", 4), Image::mib("kept", 4)];
    let mut storage = lab.storage(kind).images(&images)?.memory(28).start()?;
    let nothing = Held::by(lab.host, storage.id)?;
    lab.step(format!("booting a {kind} guest"));
    let disks = [
        disk("storage", "xvda", "rw", "ram:work"),
        disk("storage", "xvdb", "rw", "ram:kept"),
    ];
    // Its whole memory is copied twice: the less, the better.
    let mut guest = lab.host.lean_guest("guest", kind, &disks)?;
    let there = "until [ -b /dev/xvda -a -b /dev/xvdb ]; do sleep 0.1; done";
    guest.ok(there, MINUTE)?;
    let sum = "dd if=/dev/xvdb bs=1M iflag=direct 2>/dev/null | sha256sum";
    let fill = "dd if=/dev/urandom of=/dev/xvdb bs=1M count=4 oflag=direct";
    guest.ok(fill, MINUTE)?;
    let written = guest.ok(sum, MINUTE)?;

    lab.step(format!("saving a {kind} guest in the middle of its work"));
    let job = guest.start(WORK)?;
    let deadline = Instant::now() + MINUTE;
    while writes(&storage, &guest)? < 100 {
        lab.host.tick(deadline)?;
    }
    guest.save(FILE, COPY)?;
    nothing.expect(lab.host, storage.id, "after the guest was saved")?;

    lab.step(format!("restoring the {kind} guest"));
    let before = guest.id;
    guest.restore(FILE, COPY)?;
    ensure!(guest.id != before, "the restored guest has its old number");
    lab.host.ok(&format!("rm {FILE}"))?;
    // It works on by itself, through a new connection.
    let deadline = Instant::now() + MINUTE;
    while writes(&storage, &guest)? < 100 {
        lab.host.tick(deadline)?;
    }
    guest.ok("touch /tmp/stop", MINUTE)?;
    let output = guest.finish(job, MINUTE)?;
    ensure!(
        output.status == 0,
        "the guest read something else than it wrote: {}",
        output.out
    );
    let read = guest.ok(sum, MINUTE)?;
    ensure!(
        read == written,
        "the other disk reads as {read}, written was {written}"
    );

    lab.step(format!("ending the restored {kind} guest"));
    guest.destroy()?;
    nothing.expect(lab.host, storage.id, "after the restored guest's end")?;
    storage.shutdown(SHUTDOWN)
}
