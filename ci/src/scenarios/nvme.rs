//! NVMe controllers that are passed through to the driver domain, which serves their namespaces.

use super::operator::other;
use crate::config::Kind;
use crate::host::guest::Guest;
use crate::host::pci::{self, PciDevice};
use crate::testbed::storage::{Running, Storage, controller_started, disk};
use crate::testbed::{MINUTE, Scenario, Testbed};
use crate::testbed::{fio, records, write_verify};
use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::io::Read;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "nvme-disks",
        about: "a PV driver domain serves the namespaces of two NVMe controllers, of 512 and of 4096 bytes a block, to PVH and PV guests: verified, discarded, and there when the driver domain came anew",
        demo: false,
        run: disks,
    },
    Scenario {
        name: "nvme-life",
        about: "a driver domain with an NVMe controller is destroyed in mid-write: what was flushed is there, and the next one uses the controller; it is detached when no disk lies on it, and comes back",
        demo: false,
        run: life,
    },
];

/// A partition's label.
const LABEL: &str = "root-alice";

/// The script by which dom0 uses a whole disk.
const ADMINISTER: &str = r#"
modprobe xen-blkfront
xl block-attach 0 "backend=storage,vdev=xvdz,format=raw,access=rw,target=TARGET"
until [ -b /dev/xvdz ]; do sleep 0.1; done
sgdisk --clear --new=1:0:+8M --change-name=1:root-alice --typecode=1:8300 /dev/xvdz
xl block-detach 0 xvdz
"#;

/// The MiB that a guest writes and compares.
const MIB: u32 = 4;

/// The number of records that a guest flushes before the driver domain is destroyed.
const RECORDS: u32 = 20;

fn storage<'t, 'h>(testbed: &'t Testbed<'h>, devices: &[PciDevice]) -> Storage<'t, 'h> {
    // As README says: for each controller, and for a disk of each in use at a time.
    let memory = 16 + 2 * devices.len() as u32;
    let storage = testbed.storage(Kind::Pv).memory(memory);
    devices
        .iter()
        .fold(storage, |storage, device| storage.pci(device))
}

fn disks(testbed: &Testbed) -> Result<()> {
    let host = testbed.host;
    let devices = [pci::NVME, pci::TWO_NAMESPACES];
    let mut storage = storage(testbed, &devices).start()?;
    for device in &devices {
        storage.wait_console(&controller_started(device), MINUTE)?;
    }
    let [first, second] = devices.each_ref().map(PciDevice::short_name);
    let mut guests = Vec::new();
    for kind in Kind::ALL {
        let disks = match kind {
            Kind::Pvh => vec![disk("storage", "xvda", "rw", &format!("nvme:{first}"))],
            _ => vec![
                disk("storage", "xvda", "rw", &format!("nvme:{second}")),
                disk("storage", "xvdb", "rw", &format!("nvme:{second}/n2")),
            ],
        };
        guests.push(host.guest(&format!("guest-{kind}"), kind, &disks)?);
    }
    let named = |kind| {
        guests
            .iter()
            .find(|guest| guest.name == format!("guest-{kind}"))
    };
    let (pvh, pv) = named(Kind::Pvh).zip(named(Kind::Pv)).context("both")?;
    testbed.step("fio verifies a namespace, from a PVH guest");
    fio::verify(pvh, "/dev/xvda", 3 * MINUTE)?;
    testbed.step("fio verifies parts of two others, from a PV guest");
    let size = pv.ok(
        "cat /sys/block/xvda/queue/logical_block_size /sys/block/xvdb/queue/logical_block_size",
        MINUTE,
    )?;
    ensure!(size == "4096\n512\n", "the blocks have {size:?} bytes");
    // No block is smaller than the disk's.
    for (device, options) in [
        ("/dev/xvda", "--bsrange=4k-64k --size=8m"),
        ("/dev/xvdb", "--size=8m"),
    ] {
        fio::verify_with(pv, device, options, 3 * MINUTE)?;
    }
    let shown = storage.ask("show", "all")?;
    for device in [&first, &second] {
        let about = shown
            .lines()
            .find(|line| line.contains(&format!("nvme:{device}: ")) && line.contains(" commands"));
        let about = about.with_context(|| format!("nothing about {device}:\n{shown}"))?;
        ensure!(
            about.contains(" 0 failed") && about.contains(" 0 resets"),
            "{about}"
        );
        testbed.step(about.trim());
    }

    testbed.step("discarding, and writing what is to stay");
    pv.ok("blkdiscard -o 0 -l $((1 << 20)) /dev/xvdb", MINUTE)?;
    ensure!(
        pv.ok("head -c 1048576 /dev/xvdb | tr -d '\\0' | wc -c", MINUTE)?
            .trim()
            == "0",
        "discarded blocks are not zeros"
    );
    let sum = pvh.ok(
        &format!(
            "dd if=/dev/urandom of=/tmp/data bs=1M count={MIB} 2>/dev/null && \
            dd if=/tmp/data of=/dev/xvda bs=64k conv=fsync 2>/dev/null && sha256sum </tmp/data"
        ),
        MINUTE,
    )?;
    Guest::destroy_all(&mut guests)?;
    storage.shutdown()?;

    testbed.step("another driver domain has the controllers");
    let mut storage = self::storage(testbed, &devices).vcpus(2).start()?;
    let disks = [disk("storage", "xvda", "rw", &format!("nvme:{first}"))];
    let mut guest = host.lean_guest("reader", other(Kind::Pvh), &disks)?;
    let there = guest.ok(
        &format!("head -c {} /dev/xvda | sha256sum", MIB << 20),
        MINUTE,
    )?;
    ensure!(there == sum, "what was written is not there any more");
    guest.destroy()?;
    storage.destroy()
}

fn life(testbed: &Testbed) -> Result<()> {
    let host = testbed.host;
    let device = pci::NVME;
    let mut first = storage(testbed, &[device]).start()?;
    let target = format!("nvme:{}", device.short_name());
    let disks = [disk("storage", "xvda", "rw", &target)];
    let mut guest = host.lean_guest("writer", Kind::Pvh, &disks)?;
    testbed.step("xl destroy of the driver domain in mid-write");
    guest.start(&records::write("/dev/xvda"))?;
    records::wait_for(&guest, RECORDS, MINUTE)?;
    first.destroy()?;
    guest.destroy()?;
    let flushed = records::flushed(&guest)?;
    let mut second = storage(testbed, &[device]).start()?;
    let mut guest = host.lean_guest("reader", Kind::Pv, &disks)?;
    let there = guest.ok(&records::sum_of("/dev/xvda", flushed), MINUTE)?;
    ensure!(
        there == records::expected(flushed),
        "{flushed} records were flushed, and not all of them are there"
    );
    in_file(testbed, &device, flushed)?;
    guest.destroy()?;
    administered_by_dom0(testbed, &second, &target)?;
    comes_and_goes(testbed, &second, &device, &target)?;
    second.shutdown()
}

/// Has dom0 make a partition on the whole disk, as the README says.
fn administered_by_dom0(testbed: &Testbed, storage: &Running, target: &str) -> Result<()> {
    testbed.step("dom0 makes a partition with sgdisk");
    testbed.host.ok(&ADMINISTER.replace("TARGET", target))?;
    let answer = storage.ask("rescan", target)?;
    ensure!(answer.ends_with(": 1"), "rescan answers {answer}");
    Ok(())
}

/// Checks that the records are in the file in which QEMU has the data.
fn in_file(testbed: &Testbed, device: &PciDevice, count: u32) -> Result<()> {
    let files = device.files(&testbed.host.instance().dir);
    let mut bytes = vec![0; 10];
    File::open(&files[0])?.read_exact(&mut bytes)?;
    ensure!(
        count > 0 && bytes == *b"record 0\nr",
        "the file holds {bytes:?}"
    );
    Ok(())
}

/// Detaches the controller and attaches it again; then detaches it while a guest's disk lies on it.
fn comes_and_goes(
    testbed: &Testbed,
    storage: &Running,
    device: &PciDevice,
    target: &str,
) -> Result<()> {
    let host = testbed.host;
    let disks = [disk("storage", "xvda", "rw", &format!("{target}/{LABEL}"))];
    testbed.step("xl pci-detach and pci-attach");
    let start = storage.console_length();
    host.ok(&format!("xl pci-detach storage {device}"))?;
    let name = device.short_name();
    storage.wait_console_from(start, &format!("function {name}: detached"), MINUTE)?;
    host.ok(&format!("xl pci-attach storage {device}"))?;
    storage.wait_console_from(start, &controller_started(device), MINUTE)?;
    let mut guest: Guest = host.lean_guest("after", Kind::Pvh, &disks)?;
    write_verify::verify(&guest, "xvda", MIB)?;

    testbed.step("xl pci-detach while a disk lies on it");
    let start = storage.console_length();
    // What xl says of it depends on its version.
    host.exec(&format!("xl pci-detach storage {device}"), MINUTE)?;
    storage.wait_console_from(start, "it is kept until they are detached", MINUTE)?;
    let detached = format!("function {name}: detached");
    ensure!(
        !storage.console_from(start).contains(&detached),
        "it was given back in use"
    );
    guest.destroy()?;
    storage.wait_console_from(start, &detached, MINUTE)?;
    Ok(())
}
