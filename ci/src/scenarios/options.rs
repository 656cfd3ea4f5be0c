//! What an operator may choose about a disk: each choice reaches a stock guest, and works.

use super::main_job::FIO_LIMIT;
use crate::config::Kind;
use crate::lab::images::Image;
use crate::lab::storage::{Statistics, device_number, disk};
use crate::lab::{Lab, Scenario, fio};
use anyhow::{Result, ensure};
use std::time::Duration;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "data-paths",
        about: "data-path=map, copy and persistent: fio verified, and the counters show that path alone",
        demo: false,
        run: data_paths,
    },
    Scenario {
        name: "shared-image",
        about: "two guests read one image at the same time; neither can write, and no writer is let in",
        demo: false,
        run: shared_image,
    },
];

const MINUTE: Duration = Duration::from_secs(60);
const SHUTDOWN: Duration = Duration::from_secs(20);

/// The ways to guests' pages, as the command line names them, each with a domain and a disk of its own.
const PATHS: [(&str, &str); 3] = [("map", "xvda"), ("copy", "xvdb"), ("persistent", "xvdc")];

fn data_paths(lab: &Lab) -> Result<()> {
    let mut storages = Vec::new();
    let mut disks = Vec::new();
    for (path, device) in PATHS {
        let images = [Image::mib("disk", 8)];
        let name = format!("storage-{path}");
        let storage = lab
            .storage(Kind::Pvh)
            .name(&name)
            .images(&images)?
            .memory(32)
            .cmdline(&format!("data-path={path}"));
        storages.push(storage.start()?);
        disks.push(disk(&name, device, "rw", "ram:disk"));
    }
    lab.step("booting a guest with a disk of each");
    let mut guest = lab.host.guest("guest", Kind::Pvh, &disks)?;
    for ((path, device), storage) in PATHS.into_iter().zip(&storages) {
        lab.step(format!("fio with data-path={path}"));
        let report = fio::verify(&guest, &format!("/dev/{device}"), FIO_LIMIT)?;
        let counted = storage.statistics(&guest, device_number(device))?;
        let moved = 512 * (counted.get("sectors_read")? + counted.get("sectors_written")?);
        ensure!(
            moved >= report.read + report.written,
            "fio moved {report:?}, counted were {moved} bytes: {counted:?}"
        );
        ensure!(counted.get("errors")? == 0, "requests failed: {counted:?}");
        only_path(path, moved, &counted)?;
    }
    guest.destroy()?;
    storages
        .iter_mut()
        .try_for_each(|storage| storage.shutdown(SHUTDOWN))
}

/// Makes sure that bytes went by one path, and by no other.
fn only_path(path: &str, moved: u64, counted: &Statistics) -> Result<()> {
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

fn shared_image(lab: &Lab) -> Result<()> {
    let image = Image::noise("library", 16);
    let sum = image.sha256()?;
    let mut storage = lab
        .storage(Kind::Pvh)
        .images(&[image, Image::mib("own", 4)])?
        .memory(40)
        .start()?;
    lab.step("booting two guests that read one image");
    let shared = disk("storage", "xvda", "ro", "ram:library");
    let own = disk("storage", "xvdb", "rw", "ram:own");
    let mut pvh = lab
        .host
        .lean_guest("guest-pvh", Kind::Pvh, &[shared.clone(), own])?;
    let mut pv = lab
        .host
        .lean_guest("guest-pv", Kind::Pv, std::slice::from_ref(&shared))?;

    for (guest, last) in [(&pvh, "xvdb"), (&pv, "xvda")] {
        let there = format!("until [ -b /dev/xvda -a -b /dev/{last} ]; do sleep 0.1; done");
        guest.ok(&there, MINUTE)?;
    }

    lab.step("both read all of it at once");
    let read =
        "for i in 1 2 3; do dd if=/dev/xvda iflag=direct bs=256k 2>/dev/null | sha256sum; done";
    let jobs = [(&pvh, pvh.start(read)?), (&pv, pv.start(read)?)];
    for (guest, job) in jobs {
        let output = guest.finish(job, MINUTE)?;
        let good = output.out.lines().filter(|line| line.starts_with(&sum));
        ensure!(
            good.count() == 3,
            "{} read something else than {sum}: {}",
            guest.name,
            output.out
        );
    }
    for guest in [&pvh, &pv] {
        let seen = guest.ok("blockdev --getro /dev/xvda", MINUTE)?;
        ensure!(seen.trim() == "1", "{}'s disk is not read-only", guest.name);
        let write = "dd if=/dev/zero of=/dev/xvda bs=4k count=1 oflag=direct";
        ensure!(
            guest.exec(write, MINUTE)?.status != 0,
            "{} wrote to a disk that is attached read-only",
            guest.name
        );
    }

    lab.step("a guest that wants to write to it");
    let seen = storage.console_length();
    let writer = disk("storage", "xvdc", "rw", "ram:library");
    let refused = lab
        .host
        .exec(&format!("xl block-attach guest-pv '{writer}'"), MINUTE)?;
    storage.expect_error(seen, "library", MINUTE)?;
    ensure!(
        refused.status != 0,
        "an image that others read was attached for writing"
    );
    let again = pv.ok(read, MINUTE)?;
    ensure!(again.contains(&sum), "the reader was disturbed: {again}");

    lab.step("the image belongs to a writer once nobody reads it");
    pv.destroy()?;
    lab.host.ok("xl block-detach guest-pvh xvda")?;
    lab.host.attach_disk(&pvh, &writer, device_number("xvdc"))?;
    pvh.ok("until [ -b /dev/xvdc ]; do sleep 0.1; done", MINUTE)?;
    pvh.ok(
        "dd if=/dev/zero of=/dev/xvdc bs=4k count=1 oflag=direct",
        MINUTE,
    )?;
    pvh.destroy()?;
    storage.shutdown(SHUTDOWN)
}
