//! The whole host loses its power while guests write to lasting disks: data that they had flushed is there afterwards,
//! and data that they had not flushed is not, as these disks have volatile caches.

use super::operator::other;
use crate::config::Kind;
use crate::host::guest::Guest;
use crate::host::pci;
use crate::testbed::records;
use crate::testbed::storage::{Running, disk};
use crate::testbed::{MINUTE, Part, Scenario, Testbed};
use anyhow::{Result, ensure};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "power-cut",
    about: "QEMU is killed while guests write through PVH and PV driver domains to files of dom0's: every record that was flushed is there afterwards, and what was not flushed is lost",
    part: Part::Suite,
    run: power_cut,
}];

/// The scenario with a controller of the driver domain's own.
pub const WITH_DEVICES: &[Scenario] = &[Scenario {
    name: "nvme-power-cut",
    about: "QEMU is killed while a guest writes to a file of its ext4 on an NVMe controller that caches: every record that was flushed is there afterwards, and what was not flushed is lost",
    part: Part::Suite,
    run: nvme_power_cut,
}];

/// The path at which dom0 has the file system of its lasting disk.
const FOLDER: &str = "/tmp/lasting";
const MOUNT: &str = "mkdir -p /tmp/lasting && mount /dev/vdb /tmp/lasting";

/// Makes the files that are the driver domains' disks. dom0 keeps the data written to them in its memory until it is
/// flushed, and is set never to write it out by itself: a disk with a volatile cache.
const MAKE: &str = "truncate --size=8M pvh.img pv.img unflushed.img && \
    echo 0 >/proc/sys/vm/dirty_writeback_centisecs";

/// The number of records that each guest has flushed before the power is cut.
const RECORDS: u32 = 20;

/// The bytes that a guest writes and does not flush.
const UNFLUSHED: u32 = 64 << 10;

fn power_cut(testbed: &Testbed) -> Result<()> {
    let host = testbed.host;
    host.ok(&format!(
        "mkfs.ext4 -q /dev/vdb && {MOUNT} && cd {FOLDER} && {MAKE}"
    ))?;
    let own = |vdev: &str, file: &str| {
        format!("format=raw,vdev={vdev},access=rw,backendtype=phy,target={FOLDER}/{file}.img")
    };
    let served =
        |storage: &str, device: &str| disk(storage, device, "rw", &format!("vbd:{device}"));
    let mut running: Vec<(Running, Guest)> = Vec::new();
    for kind in Kind::ALL {
        let name = format!("storage-{kind}");
        let storage = testbed.storage(kind).name(&name).memory(20);
        let mut storage = storage.disk(&own("xvda", &kind.to_string()));
        let mut disks = vec![served(&name, "xvda")];
        if kind == Kind::Pv {
            storage = storage.disk(&own("xvdb", "unflushed"));
            disks.push(served(&name, "xvdb"));
        }
        let storage = storage.start()?;
        testbed.step(format!("a guest of {name} writes"));
        let guest = host.lean_guest(&format!("guest-{kind}"), other(kind), &disks)?;
        running.push((storage, guest));
    }
    let (_, guest) = &running[1];
    let unflushed = guest.ok(&write_unflushed("/dev/xvdb"), MINUTE)?;
    let in_file = first_of(&format!("{FOLDER}/unflushed.img"));
    ensure!(
        host.ok(&in_file)? == unflushed,
        "dom0 does not have what the guest wrote"
    );
    cut_in_mid_write(testbed, &mut running, "/dev/xvda")?;
    host.ok(MOUNT)?;
    for (kind, (_, guest)) in Kind::ALL.into_iter().zip(&running) {
        expect_records(guest, &format!("{FOLDER}/{kind}.img"), |command| {
            host.ok(command)
        })?;
    }
    expect_loss(&host.ok(&in_file)?, &unflushed)?;
    host.ok(&format!("umount {FOLDER}")).map(drop)
}

/// A file in a guest's file system.
const FILE: &str = "/mnt/records";

fn nvme_power_cut(testbed: &Testbed) -> Result<()> {
    let host = testbed.host;
    let device = pci::CACHING;
    let start = || {
        let storage = testbed.storage(Kind::Pv).memory(24);
        storage.pci(&device).start()
    };
    let name = device.short_name();
    let disks = [
        disk("storage", "xvda", "rw", &format!("nvme:{name}")),
        disk("storage", "xvdb", "rw", &format!("nvme:{name}/n2")),
    ];
    let storage = start()?;
    testbed.step("a guest writes to a file");
    let guest = host.guest("guest", Kind::Pvh, &disks)?;
    guest.ok(
        "mkfs.ext4 -q /dev/xvda && mount -t ext4 /dev/xvda /mnt && sync",
        MINUTE,
    )?;
    let unflushed = guest.ok(&write_unflushed("/dev/xvdb"), MINUTE)?;
    let on_disk = first_of("/dev/xvdb");
    ensure!(
        guest.ok(&on_disk, MINUTE)? == unflushed,
        "the controller does not have what the guest wrote"
    );
    let mut running = vec![(storage, guest)];
    cut_in_mid_write(testbed, &mut running, FILE)?;
    for device in pci::LAB {
        host.make_assignable(device)?;
    }
    let mut storage = start()?;
    let mut reader = host.guest("reader", Kind::Pv, &disks)?;
    reader.ok("mount -t ext4 /dev/xvda /mnt", MINUTE)?;
    expect_records(&running[0].1, FILE, |command| reader.ok(command, MINUTE))?;
    expect_loss(&reader.ok(&on_disk, MINUTE)?, &unflushed)?;
    reader.ok("umount /mnt", MINUTE)?;
    reader.destroy()?;
    storage.shutdown()
}

/// Returns a guest's command that writes to a disk without flushing it, and prints the checksum.
fn write_unflushed(disk: &str) -> String {
    format!(
        "dd if=/dev/urandom of=/tmp/data bs={UNFLUSHED} count=1 iflag=fullblock 2>/dev/null && \
         dd if=/tmp/data of={disk} bs={UNFLUSHED} oflag=direct 2>/dev/null && sha256sum </tmp/data"
    )
}

/// Returns a command that prints the checksum of as many bytes from the beginning of a file or a disk.
fn first_of(file: &str) -> String {
    format!("head -c {UNFLUSHED} {file} | sha256sum")
}

/// Cuts the power once each guest has flushed some records, which it writes to `to`, and boots the host again.
fn cut_in_mid_write(testbed: &Testbed, running: &mut [(Running, Guest)], to: &str) -> Result<()> {
    for (_, guest) in &*running {
        guest.start(&records::write(to))?;
    }
    for (_, guest) in &*running {
        records::wait_for(guest, RECORDS, MINUTE)?;
    }
    testbed.step("killing QEMU in mid-write, and booting the host again");
    testbed.host.cycle_power()?;
    for (storage, guest) in running {
        storage.ended_with_host();
        guest.ended_with_host();
    }
    Ok(())
}

/// Checks that all records that a guest has flushed are in a file or on a disk, where `run` runs a command.
fn expect_records(
    guest: &Guest,
    file: &str,
    run: impl FnOnce(&str) -> Result<String>,
) -> Result<()> {
    let flushed = records::flushed(guest)?;
    let there = run(&records::sum_of(file, flushed))?;
    ensure!(
        there == records::expected(flushed),
        "{} flushed {flushed} records, and not all of them are there",
        guest.name
    );
    Ok(())
}

/// Checks that data that was not flushed is lost. A disk that loses nothing would not have shown that a flush is passed
/// on.
fn expect_loss(there: &str, unflushed: &str) -> Result<()> {
    ensure!(
        there != unflushed,
        "what was not flushed outlived the host: the disk has no volatile cache"
    );
    Ok(())
}
