//! Access to guests' pages: the methods that an operator can choose, and few map slots.

use super::main_job::FIO_LIMIT;
use crate::config::Kind;
use crate::host::domain::Domain;
use crate::host::guest::Guest;
use crate::host::vbd_statistics::VbdStatistics;
use crate::testbed::images::Image;
use crate::testbed::storage::{Running, device_number, disk};
use crate::testbed::{Part, Scenario, Testbed, fio};
use anyhow::{Context, Result, ensure};
use std::thread::sleep;
use std::time::Duration;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "data-paths",
        about: "data-path=map, copy and persistent: fio verified, and the counters show that path alone",
        part: Part::Suite,
        run: data_paths,
    },
    Scenario {
        name: "map-slots",
        about: "max_maptrack_frames=1 and 2: one guest, then two, verify with 64 KiB at depth 32; no error",
        part: Part::Suite,
        run: map_slots,
    },
];

/// The ways to guests' pages, as the command line names them, each with a domain and a disk of its own.
const PATHS: [(&str, &str); 3] = [("map", "xvda"), ("copy", "xvdb"), ("persistent", "xvdc")];

fn data_paths(testbed: &Testbed) -> Result<()> {
    let mut storages = Vec::new();
    let mut disks = Vec::new();
    for (path, device) in PATHS {
        let images = [Image::mib("disk", 8)];
        let name = format!("storage-{path}");
        let storage = testbed
            .storage(Kind::Pvh)
            .name(&name)
            .images(&images)?
            .memory(32)
            .cmdline(&format!("data-path={path}"));
        storages.push(storage.start()?);
        disks.push(disk(&name, device, "rw", "ram:disk"));
    }
    testbed.step("booting a guest with a disk of each");
    let mut guest = testbed.host.guest("guest", Kind::Pvh, &disks)?;
    for ((path, device), storage) in PATHS.into_iter().zip(&storages) {
        testbed.step(format!("fio with data-path={path}"));
        let report = fio::verify(&guest, &format!("/dev/{device}"), FIO_LIMIT)?;
        let counted = storage.statistics(&guest, device_number(device))?;
        let moved = 512 * (counted.get("sectors_read")? + counted.get("sectors_written")?);
        ensure!(
            moved >= report.read + report.written,
            "fio moved {report:?}, but {moved} bytes were counted: {counted:?}"
        );
        ensure!(counted.get("errors")? == 0, "requests failed: {counted:?}");
        only_path(path, moved, &counted)?;
    }
    guest.destroy()?;
    storages
        .iter_mut()
        .try_for_each(|storage| storage.shutdown())
}

/// Checks that bytes went by one path, and by no other.
fn only_path(path: &str, moved: u64, counted: &VbdStatistics) -> Result<()> {
    let calls = |name: &str| counted.get(name);
    let persistent = calls("persistent_hits")? + calls("persistent_misses")?;
    let pages = moved / 4096;
    // The lists of segments that indirect requests point to are always copied, whole pages at most.
    let lists_alone = calls("bytes_copied")? <= 4096 * calls("indirect")?;
    let good = match path {
        "map" => {
            calls("maps")? >= pages && calls("unmap_calls")? > 0 && persistent == 0 && lists_alone
        }
        "copy" => calls("bytes_copied")? >= moved && calls("maps")? == 0 && persistent == 0,
        // Far fewer pages are mapped than are used, and none is unmapped for being used once.
        _ => {
            calls("persistent_hits")? > calls("persistent_misses")?
                && persistent >= pages
                && calls("maps")? <= calls("persistent_misses")?
                && lists_alone
        }
    };
    ensure!(
        good,
        "{moved} bytes did not go by data-path={path} alone: {counted:?}"
    );
    Ok(())
}

/// Numbers of frames so small that one queue of a Linux guest wants more pages mapped at a time.
const MAP_FRAMES: [u32; 2] = [1, 2];

fn map_slots(testbed: &Testbed) -> Result<()> {
    let mut storages = Vec::new();
    for frames in MAP_FRAMES {
        let images = [Image::mib("first", 8), Image::mib("second", 8)];
        let storage = testbed
            .storage(Kind::Pvh)
            .name(&format!("storage-{frames}"))
            .images(&images)?
            .memory(40)
            .map_frames(frames);
        storages.push(storage.start()?);
    }
    let mut guests: Vec<Guest> = Vec::new();
    for image in ["first", "second"] {
        testbed.step(format!("booting the {image} guest with a disk of each"));
        let target = format!("ram:{image}");
        let disks = [
            disk("storage-1", "xvda", "rw", &target),
            disk("storage-2", "xvdb", "rw", &target),
        ];
        guests.push(testbed.host.guest(image, Kind::Pv, &disks)?);
        for (device, storage) in ["xvda", "xvdb"].into_iter().zip(&storages) {
            let count = guests.len();
            testbed.step(format!("fio on {device} in {count} at a time"));
            fio_in_each(&guests, device, storage, Duration::ZERO)?;
        }
    }
    // All that Linux ever has granted stays mapped, unless Xen lets us have fewer pages mapped.
    testbed.step("both ask for as much as they can before they are answered");
    let mut stops = STOPS.into_iter();
    while !was_limit_reached(&guests, &storages[0])? {
        let stop = stops
            .next()
            .context("the limit of one frame was never reached")?;
        fio_in_each(&guests, "xvda", &storages[0], stop)?;
    }
    Guest::destroy_all(&mut guests)?;
    storages
        .iter_mut()
        .try_for_each(|storage| storage.shutdown())
}

/// The times for which a driver domain does not run while fio begins in two guests. How long fio takes to begin depends on
/// the host's speed.
const STOPS: [Duration; 4] = [
    Duration::from_secs(4),
    Duration::from_secs(8),
    Duration::from_secs(16),
    Duration::from_secs(32),
];

/// Has fio verify a disk in all guests at the same time. At first, the driver domain does not run for that time, so that
/// each guest has asked for as much as it can at a time.
fn fio_in_each(guests: &[Guest], device: &str, storage: &Running, stop: Duration) -> Result<()> {
    let options = "--bsrange=64k-64k --iodepth=32";
    let command = fio::verify_command_with(&format!("/dev/{device}"), options);
    if !stop.is_zero() {
        storage.pause()?;
    }
    let jobs = guests.iter().map(|guest| guest.start(&command));
    let jobs = jobs.collect::<Result<Vec<_>>>()?;
    if !stop.is_zero() {
        sleep(stop);
        Domain::unpause(storage)?;
    }
    for (guest, job) in guests.iter().zip(jobs) {
        fio::finish(guest, job, FIO_LIMIT)?;
        let counted = storage.statistics(guest, device_number(device))?;
        ensure!(counted.get("errors")? == 0, "requests failed: {counted:?}");
    }
    Ok(())
}

/// Returns whether a page that was kept mapped was unmapped, for want of room.
fn was_limit_reached(guests: &[Guest], storage: &Running) -> Result<bool> {
    for guest in guests {
        let counted = storage.statistics(guest, device_number("xvda"))?;
        if counted.get("unmap_calls")? > 0 {
            return Ok(true);
        }
    }
    Ok(false)
}
