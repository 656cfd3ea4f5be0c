//! What an operator may choose about a disk: each choice reaches a stock guest, and works.

use super::main_job::FIO_LIMIT;
use crate::config::Kind;
use crate::host::guest::Guest;
use crate::host::vbd_statistics::VbdStatistics;
use crate::testbed::images::Image;
use crate::testbed::storage::{device_number, disk};
use crate::testbed::{MINUTE, Scenario, Testbed, fio};
use anyhow::{Result, ensure};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "data-paths",
        about: "data-path=map, copy and persistent: fio verified, and the counters show that path alone",
        demo: false,
        run: data_paths,
    },
    Scenario {
        name: "map-slots",
        about: "max_maptrack_frames=1 and 2: one guest, then two, verify with 64 KiB at depth 32; no error",
        demo: false,
        run: map_slots,
    },
    Scenario {
        name: "sector-sizes",
        about: "sectors of 4096 bytes, logical or only physical: guests see them, fio verified",
        demo: false,
        run: sector_sizes,
    },
    Scenario {
        name: "shared-image",
        about: "two guests read one image at the same time, and write one that is shared=yes; no other writer is let in",
        demo: false,
        run: shared_image,
    },
    Scenario {
        name: "drive-kinds",
        about: "CD-ROM, with and without discard: the guest sees the disk as it was configured",
        demo: false,
        run: drive_kinds,
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
            "fio moved {report:?}, counted were {moved} bytes: {counted:?}"
        );
        ensure!(counted.get("errors")? == 0, "requests failed: {counted:?}");
        only_path(path, moved, &counted)?;
    }
    guest.destroy()?;
    storages
        .iter_mut()
        .try_for_each(|storage| storage.shutdown())
}

/// Makes sure that bytes went by one path, and by no other.
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

/// Few enough that one queue of a Linux guest wants more pages mapped at a time.
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
            let options = "--bsrange=64k-64k --iodepth=32";
            let command = fio::verify_command_with(&format!("/dev/{device}"), options);
            let jobs = guests.iter().map(|guest| guest.start(&command));
            let jobs = jobs.collect::<Result<Vec<_>>>()?;
            for (guest, job) in guests.iter().zip(jobs) {
                fio::finish(guest, job, FIO_LIMIT)?;
                let counted = storage.statistics(guest, device_number(device))?;
                ensure!(counted.get("errors")? == 0, "requests failed: {counted:?}");
            }
        }
    }
    // All that Linux ever has granted stays mapped, unless Xen lets us have fewer pages mapped. How many
    // two guests want at a time depends on the host's speed; it is more than one frame tracks.
    let mut given_up = 0;
    for guest in &guests {
        let counted = storages[0].statistics(guest, device_number("xvda"))?;
        given_up += counted.get("unmap_calls")?;
    }
    ensure!(given_up > 0, "the limit of one frame was never reached");
    guests.iter_mut().try_for_each(|guest| guest.destroy())?;
    storages
        .iter_mut()
        .try_for_each(|storage| storage.shutdown())
}

fn sector_sizes(testbed: &Testbed) -> Result<()> {
    let images = [
        Image::mib("large", 8),
        Image::mib("advised", 8),
        Image::mib("plain", 4),
    ];
    let mut storage = testbed
        .storage(Kind::Pv)
        .images(&images)?
        .memory(40)
        .start()?;
    let disks = [
        disk("storage", "xvda", "rw", "ram:large,sector-size=4096"),
        disk(
            "storage",
            "xvdb",
            "rw",
            "ram:advised,physical-sector-size=4096",
        ),
        disk("storage", "xvdc", "rw", "ram:plain"),
    ];
    testbed.step("a guest looks at its disks");
    let mut guest = testbed.host.guest("guest", Kind::Pv, &disks)?;
    for (device, expected) in [
        ("xvda", "4096 4096 16384"),
        ("xvdb", "512 4096 16384"),
        ("xvdc", "512 512 8192"),
    ] {
        let look = format!(
            "cd /sys/block/{device}; cat queue/logical_block_size queue/physical_block_size size | xargs"
        );
        let seen = guest.ok(&look, MINUTE)?;
        ensure!(
            seen.trim() == expected,
            "{device}: the guest sees sectors and size {seen:?}, expected {expected:?}"
        );
    }
    testbed.step("fio on them");
    let whole = fio::verify_command_with("/dev/xvda", "--bsrange=4k-64k");
    fio::parse(&guest.ok(&whole, FIO_LIMIT)?)?;
    fio::verify(&guest, "/dev/xvdb", FIO_LIMIT)?;
    guest.destroy()?;
    storage.shutdown()
}

fn shared_image(testbed: &Testbed) -> Result<()> {
    let image = Image::noise("library", 16);
    let sum = image.sha256()?;
    let mut storage = testbed
        .storage(Kind::Pvh)
        .images(&[image, Image::mib("common", 4)])?
        .memory(40)
        .start()?;
    testbed.step("booting two guests that read one image");
    let shared = disk("storage", "xvda", "ro", "ram:library");
    let common = disk("storage", "xvdb", "rw", "ram:common,shared=yes");
    let disks = [shared, common];
    let mut pvh = testbed.host.lean_guest("guest-pvh", Kind::Pvh, &disks)?;
    let mut pv = testbed.host.lean_guest("guest-pv", Kind::Pv, &disks)?;

    let there = "until [ -b /dev/xvda -a -b /dev/xvdb ]; do sleep 0.1; done";
    for guest in [&pvh, &pv] {
        guest.ok(there, MINUTE)?;
    }

    testbed.step("each writes to an image that both have, and reads what the other wrote");
    for (place, guest) in [(0, &pvh), (1, &pv)] {
        let write = format!(
            "printf '%-4095s\\n' {} >/tmp/block; dd if=/tmp/block of=/dev/xvdb bs=4k seek={place} oflag=direct",
            guest.name
        );
        guest.ok(&write, MINUTE)?;
    }
    for (place, reader, writer) in [(0, &pv, &pvh), (1, &pvh, &pv)] {
        let read = format!("dd if=/dev/xvdb bs=4k count=1 skip={place} iflag=direct 2>/dev/null");
        let seen = reader.ok(&read, MINUTE)?;
        ensure!(
            seen.trim() == writer.name,
            "{} reads {seen:?} where {} wrote",
            reader.name,
            writer.name
        );
    }

    testbed.step("both read all of it at once");
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

    testbed.step("a guest that wants to write to it");
    let seen = storage.console_length();
    let writer = disk("storage", "xvdc", "rw", "ram:library");
    let refused = testbed
        .host
        .exec(&format!("xl block-attach guest-pv '{writer}'"), MINUTE)?;
    storage.expect_error(seen, "library", MINUTE)?;
    ensure!(
        refused.status != 0,
        "an image that others read was attached for writing"
    );
    let again = pv.ok(read, MINUTE)?;
    ensure!(again.contains(&sum), "the reader was disturbed: {again}");

    testbed.step("the image belongs to a writer once nobody reads it");
    pv.destroy()?;
    testbed.host.ok("xl block-detach guest-pvh xvda")?;
    testbed
        .host
        .attach_disk(&pvh, &writer, device_number("xvdc"))?;
    pvh.ok("until [ -b /dev/xvdc ]; do sleep 0.1; done", MINUTE)?;
    pvh.ok(
        "dd if=/dev/zero of=/dev/xvdc bs=4k count=1 oflag=direct",
        MINUTE,
    )?;
    pvh.destroy()?;
    storage.shutdown()
}

/// Bits of the `info` node (`io/blkif.h`, `VDISK_*`).
const CDROM: u32 = 1;
const REMOVABLE: u32 = 2;
const READ_ONLY: u32 = 4;

fn drive_kinds(testbed: &Testbed) -> Result<()> {
    let media = Image::noise("media", 4);
    let sum = media.sha256()?;
    let images = [media, Image::mib("solid", 8), Image::mib("plain", 8)];
    let mut storage = testbed
        .storage(Kind::Pvh)
        .images(&images)?
        .memory(40)
        .start()?;
    let common = "backend=storage,format=raw";
    let disks = [
        format!("{common},vdev=xvda,devtype=cdrom,access=ro,target=ram:media"),
        format!("{common},vdev=xvdb,discard,access=rw,target=ram:solid"),
        format!("{common},vdev=xvdc,no-discard,access=rw,target=ram:plain"),
    ];
    testbed.step("booting a guest with three kinds of drives");
    // Linux takes no CD-ROM from us where it expects one to be emulated: in everything but a PV guest.
    let mut guest = testbed.host.lean_guest("guest", Kind::Pv, &disks)?;
    let there = "until [ -b /dev/xvda -a -b /dev/xvdb -a -b /dev/xvdc ]; do sleep 0.1; done";
    guest.ok(there, MINUTE)?;
    // xl has no other removable disks than CD-ROMs.
    for (device, info, seen) in [
        ("xvda", CDROM | REMOVABLE | READ_ONLY, "1 1"),
        ("xvdb", 0, "0 0"),
        ("xvdc", 0, "0 0"),
    ] {
        let told = storage.backend_node(&guest, device_number(device), "info")?;
        ensure!(
            told == info.to_string(),
            "{device}: the info node is {told}, expected {info}"
        );
        let sys = guest.ok(
            &format!("cat /sys/block/{device}/removable /sys/block/{device}/ro | xargs"),
            MINUTE,
        )?;
        ensure!(
            sys.trim() == seen,
            "{device}: the guest sees removable and ro as {sys:?}, expected {seen:?}"
        );
    }
    let read = guest.ok("dd if=/dev/xvda bs=64k 2>/dev/null | sha256sum", MINUTE)?;
    ensure!(
        read.starts_with(&sum),
        "the CD-ROM reads as {read}, not {sum}"
    );

    testbed.step("discarding");
    discards(&guest)?;
    let flush = "dd if=/dev/zero of=/dev/xvdb bs=64k count=8 conv=fsync";
    guest.ok(flush, MINUTE)?;
    let counted = storage.statistics(&guest, device_number("xvdb"))?;
    ensure!(
        counted.get("discards")? >= 2 && counted.get("flushes")? > 0,
        "the guest's discards and flushes were not counted: {counted:?}"
    );
    let counted = storage.statistics(&guest, device_number("xvdc"))?;
    ensure!(
        counted.get("discards")? == 0,
        "a disk without discard was asked to: {counted:?}"
    );
    let told = storage.backend_node(&guest, device_number("xvdc"), "feature-discard")?;
    ensure!(told == "0", "a disk with no-discard offers it");
    guest.destroy()?;
    storage.shutdown()
}

/// A disk with `discard` forgets what it is told to, plainly and securely, and nothing beside it; one
/// with `no-discard` refuses and keeps its data.
fn discards(guest: &Guest) -> Result<()> {
    let fill = |device: &str| {
        format!(
            "yes lab | dd of=/dev/{device} bs=1M count=8 iflag=fullblock oflag=direct 2>/dev/null"
        )
    };
    let sum = |device: &str| -> Result<String> {
        let read = format!("dd if=/dev/{device} bs=1M iflag=direct 2>/dev/null | sha256sum");
        guest.ok(&read, MINUTE)
    };
    for option in ["", "-s"] {
        guest.ok(&fill("xvdb"), MINUTE)?;
        // The expected contents are made by writing zeros to a disk that does not discard.
        guest.ok(&fill("xvdc"), MINUTE)?;
        guest.ok(
            "dd if=/dev/zero of=/dev/xvdc bs=1M seek=2 count=3 oflag=direct 2>/dev/null",
            MINUTE,
        )?;
        let range = format!("blkdiscard {option} -o 2097152 -l 3145728 /dev/xvdb");
        guest.ok(&range, MINUTE)?;
        let (left, expected) = (sum("xvdb")?, sum("xvdc")?);
        ensure!(
            left == expected,
            "after {range} the disk is not zero there and untouched elsewhere"
        );
    }
    let before = sum("xvdc")?;
    let limit = guest.ok("cat /sys/block/xvdc/queue/discard_max_bytes", MINUTE)?;
    ensure!(
        limit.trim() == "0",
        "a disk with no-discard lets the guest discard {limit} bytes"
    );
    ensure!(
        guest.exec("blkdiscard /dev/xvdc", MINUTE)?.status != 0,
        "a disk with no-discard was discarded"
    );
    ensure!(sum("xvdc")? == before, "a refused discard changed the disk");
    Ok(())
}
