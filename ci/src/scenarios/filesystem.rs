//! A file system that one guest makes and another finds.

use crate::config::Kind;
use crate::host::guest::Guest;
use crate::testbed::images::Image;
use crate::testbed::storage::disk;
use crate::testbed::{MINUTE, Part, Scenario, Testbed};
use anyhow::{Result, ensure};
use std::time::Duration;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "filesystem",
        about: "mkfs.ext4, mount, write and unmount in one guest; check and read in the next",
        part: Part::Suite,
        run: filesystem,
    },
    Scenario {
        name: "read-only",
        about: "a disk attached read-only is read and cannot be written",
        part: Part::Suite,
        run: read_only,
    },
];

const WRITE: &str = "mkfs.ext4 -q /dev/xvda && mount -t ext4 /dev/xvda /mnt && \
    for i in 1 2 3 4 5 6 7 8; do \
        dd if=/dev/urandom of=/mnt/file$i bs=$((i * 37))k count=3 2>/dev/null || exit 1; \
    done && mkdir /mnt/dir && cp /mnt/file1 /mnt/dir/ && rm /mnt/file2 && \
    (cd /mnt && find . -type f | sort | xargs sha256sum) && umount /mnt";

const READ: &str = "e2fsck -fn /dev/xvda >&2 && mount -t ext4 /dev/xvda /mnt && \
    (cd /mnt && find . -type f | sort | xargs sha256sum) && umount /mnt";

fn filesystem(testbed: &Testbed) -> Result<()> {
    let images = [Image::mib("root.img", 32)];
    let mut storage = testbed
        .storage(Kind::Pvh)
        .images(&images)?
        .memory(64)
        .start()?;
    let disks = [disk("storage", "xvda", "rw", "ram:root.img")];

    testbed.step("writing files in a PVH guest");
    let mut writer = testbed.host.guest("writer", Kind::Pvh, &disks)?;
    let written = sums(&writer.ok(WRITE, MINUTE)?);
    ensure!(written.len() == 8, "expected 8 files: {written:?}");
    power_off(&mut writer)?;

    testbed.step("reading them in a PV guest");
    let mut reader = testbed.host.guest("reader", Kind::Pv, &disks)?;
    let read = sums(&reader.ok(READ, MINUTE)?);
    ensure!(
        read == written,
        "the second guest reads {read:?}, but {written:?} was written"
    );
    power_off(&mut reader)?;
    storage.shutdown()
}

fn read_only(testbed: &Testbed) -> Result<()> {
    let images = [Image::mib("disk", 4)];
    let mut storage = testbed
        .storage(Kind::Pv)
        .images(&images)?
        .memory(24)
        .start()?;
    let disks = [disk("storage", "xvda", "r", "ram:disk")];
    testbed.step("a guest with a read-only disk");
    let mut guest = testbed.host.lean_guest("guest", Kind::Pvh, &disks)?;
    guest.ok("dd if=/dev/xvda of=/dev/null bs=64k", MINUTE)?;
    let flag = guest.ok("cat /sys/block/xvda/ro", MINUTE)?;
    ensure!(
        flag.trim() == "1",
        "the guest's kernel does not take the disk as read-only"
    );
    let write = guest.exec(
        "dd if=/dev/zero of=/dev/xvda bs=4k count=1 conv=fsync",
        MINUTE,
    )?;
    ensure!(write.status != 0, "writing to a read-only disk succeeded");
    guest.destroy()?;
    storage.shutdown()
}

/// Returns the lines that are a checksum and a name; a guest's output also holds remarks of its programs.
fn sums(text: &str) -> Vec<String> {
    let is_sum = |line: &&str| {
        line.split_whitespace()
            .next()
            .is_some_and(|word| word.len() == 64)
    };
    text.lines().filter(is_sum).map(str::to_owned).collect()
}

fn power_off(guest: &mut Guest) -> Result<()> {
    guest.start("poweroff -f")?;
    guest.wait_gone(Duration::from_secs(40))
}
