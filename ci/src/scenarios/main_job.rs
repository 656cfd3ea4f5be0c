//! The main job: a driver domain boots, a stock Debian guest uses its disk, every byte is right.

use crate::config::Kind;
use crate::testbed::images::Image;
use crate::testbed::report::milliseconds;
use crate::testbed::storage::disk;
use crate::testbed::{Part, Scenario, Testbed, fio};
use anyhow::{Result, ensure};
use std::time::{Duration, Instant};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "main-pvh",
        about: "PVH driver domain: boot time, attach, fio verified by a PVH guest, idle CPU",
        part: Part::Demo,
        run: |testbed| main_job(testbed, Kind::Pvh),
    },
    Scenario {
        name: "main-pv",
        about: "PV driver domain: boot time, attach, fio verified by a PV guest, idle CPU",
        part: Part::Demo,
        run: |testbed| main_job(testbed, Kind::Pv),
    },
    Scenario {
        name: "mixed-kinds",
        about: "fio verified by a PV guest on a PVH driver domain, and the other way round",
        part: Part::ByName,
        run: mixed_kinds,
    },
];

/// Processor time that an idle driver domain may use in [`IDLE`].
const IDLE_TARGET: Duration = Duration::from_millis(100);

/// The time for which the idle driver domain is watched: it includes one of its regular wake-ups.
const IDLE: Duration = Duration::from_secs(10);

/// The time limit for fio on 64 MiB in an emulated guest, several times its usual time.
pub const FIO_LIMIT: Duration = Duration::from_secs(150);

const MEMORY: u32 = 80;

/// The start of the log's first line; the commit follows.
const VERSION: &str = concat!("Bulkhead ", env!("CARGO_PKG_VERSION"), " (");

fn main_job(testbed: &Testbed, kind: Kind) -> Result<()> {
    let images = [
        Image::mib("root.img", 64),
        Image::new("extra.img", 512 << 10),
    ];
    let mut storage = testbed
        .storage(kind)
        .images(&images)?
        .memory(MEMORY)
        .start_measured()?;
    testbed.record(kind, "boot", storage.boot_figure());
    let log = storage.console();
    let first = log.lines().next().unwrap_or_default();
    ensure!(
        first.contains(VERSION),
        "the log does not begin with the version: {first:?}"
    );

    testbed.step(format!("booting a {kind} guest with a disk"));
    let disks = [disk("storage", "xvda", "rw", "ram:root.img")];
    let mut guest = testbed.host.guest("guest", kind, &disks)?;
    let sectors = guest.ok("cat /sys/block/xvda/size", Duration::from_secs(20))?;
    ensure!(
        sectors.trim() == "131072",
        "the guest sees {sectors} sectors instead of 131072"
    );

    testbed.step("attaching a second disk to the running guest");
    let second = disk("storage", "xvdb", "rw", "ram:extra.img");
    let attach = testbed.host.attach_disk(&guest, &second, 51728)?;
    testbed.record(kind, "attach", milliseconds(attach));

    testbed.step("fio in the guest, every block verified");
    let report = fio::verify(&guest, "/dev/xvda", FIO_LIMIT)?;
    ensure!(
        report.written >= 20 << 20,
        "fio wrote only {} bytes",
        report.written
    );
    testbed.record(
        kind,
        "fio, verified",
        format!("{:.1} MiB/s", report.mib_per_second()),
    );
    testbed.record(
        kind,
        "memory",
        format!("{MEMORY} MiB, 64 of them the image"),
    );

    testbed.step("watching the idle driver domain");
    let (before, start) = (storage.cpu_time()?, Instant::now());
    std::thread::sleep(IDLE);
    let used = storage.cpu_time()?.saturating_sub(before);
    let window = format!("{:.0} s", start.elapsed().as_secs_f32());
    testbed.record(
        kind,
        "idle CPU",
        format!("{} in {window}", milliseconds(used)),
    );

    testbed.step("ending guest and driver domain");
    guest.destroy()?;
    storage.shutdown()?;
    ensure!(
        used < IDLE_TARGET,
        "the idle driver domain used {used:?} in {window}"
    );
    Ok(())
}

fn mixed_kinds(testbed: &Testbed) -> Result<()> {
    for (driver, guest) in [(Kind::Pvh, Kind::Pv), (Kind::Pv, Kind::Pvh)] {
        let images = [Image::mib("root.img", 64)];
        let mut storage = testbed
            .storage(driver)
            .images(&images)?
            .memory(MEMORY)
            .start()?;
        testbed.step(format!("a {guest} guest on a {driver} driver domain"));
        let disks = [disk("storage", "xvda", "rw", "ram:root.img")];
        let mut guest = testbed.host.guest("guest", guest, &disks)?;
        testbed.step("fio in the guest, every block verified");
        fio::verify(&guest, "/dev/xvda", FIO_LIMIT)?;
        guest.destroy()?;
        storage.shutdown()?;
    }
    Ok(())
}
