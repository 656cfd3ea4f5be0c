//! The options of a disk that an operator can choose: each reaches a stock guest, and works.

use super::main_job::FIO_LIMIT;
use crate::config::Kind;
use crate::host::guest::Guest;
use crate::testbed::images::Image;
use crate::testbed::storage::{device_number, disk};
use crate::testbed::{MINUTE, Part, Scenario, Testbed, fio};
use anyhow::{Result, ensure};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "sector-sizes",
        about: "sectors of 4096 bytes, logical or only physical: guests see them, fio verified",
        part: Part::Suite,
        run: sector_sizes,
    },
    Scenario {
        name: "shared-image",
        about: "two guests read one image at the same time, and write to one that is shared=yes; any other writer is refused",
        part: Part::Suite,
        run: shared_image,
    },
    Scenario {
        name: "drive-kinds",
        about: "CD-ROM, with and without discard: the guest sees the disk as it was configured",
        part: Part::Suite,
        run: drive_kinds,
    },
];

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
    testbed.step("a guest reads what its disks say of themselves");
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

    testbed.step("a writer gets the image when it has no reader any more");
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

/// Checks that a disk with `discard` discards the sectors that it is asked to, plainly and securely, and nothing beside
/// them, and that one with `no-discard` refuses and keeps its data.
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
