//! NVMe controllers that are passed through to the driver domain, which serves their namespaces.

use super::operator::other;
use crate::config::Kind;
use crate::host::guest::Guest;
use crate::host::pci::{self, PciDevice};
use crate::testbed::storage::{Running, Storage, controller_started, device_number, disk};
use crate::testbed::{MINUTE, Part, Scenario, Testbed};
use crate::testbed::{fio, records, side_by_side, write_verify};
use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::io::Read;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "nvme-disks",
        about: "a PV driver domain serves the namespaces of two NVMe controllers, of 512 and of 4096 bytes a block, to PVH and PV guests: verified, discarded, and there when the driver domain came anew",
        part: Part::Suite,
        run: disks,
    },
    Scenario {
        name: "nvme-life",
        about: "a driver domain with an NVMe controller is destroyed in mid-write: what was flushed is there, and the next one uses the controller; it is detached when no disk lies on it, and comes back",
        part: Part::Suite,
        run: life,
    },
    Scenario {
        name: "nvme-sixteen-disks",
        about: "a PV driver domain of 48 MiB serves 16 disks of a PVH and a PV guest, partitions of its NVMe controller, all in use at once: each byte is on the disk it was written to, and memory is left",
        part: Part::ByName,
        run: sixteen_disks,
    },
];

/// A partition's label.
const LABEL: &str = "root-alice";

/// The script by which dom0 uses a whole disk.
const ADMINISTER: &str = r#"
modprobe xen-blkfront
xl block-attach 0 "backend=storage,vdev=xvdz,format=raw,access=rw,target=TARGET"
until [ -b /dev/xvdz ]; do sleep 0.1; done
sgdisk --clear PARTITIONS /dev/xvdz
xl block-detach 0 xvdz
"#;

/// The disks of each guest that has many, and the MiB of a partition. The guest uses one MiB less.
const DISKS: usize = 8;
const PARTITION: u32 = 2;

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
    let partition = (LABEL.to_owned(), 8);
    administered_by_dom0(testbed, &second, &target, &[partition])?;
    comes_and_goes(testbed, &second, &device, &target)?;
    second.shutdown()
}

/// Has dom0 make partitions on the whole disk, as the README says, each with a label and a size in MiB.
fn administered_by_dom0(
    testbed: &Testbed,
    storage: &Running,
    target: &str,
    partitions: &[(String, u32)],
) -> Result<()> {
    testbed.step(format!(
        "dom0 makes {} partition(s) with sgdisk",
        partitions.len()
    ));
    let options: Vec<String> = (1..)
        .zip(partitions)
        .map(|(n, (label, mib))| {
            format!("--new={n}:0:+{mib}M --change-name={n}:{label} --typecode={n}:8300")
        })
        .collect();
    let script = ADMINISTER.replace("TARGET", target);
    let script = script.replace("PARTITIONS", &options.join(" "));
    testbed.host.ok(&script)?;
    let answer = storage.ask("rescan", target)?;
    ensure!(
        answer.ends_with(&format!(": {}", partitions.len())),
        "rescan answers {answer}"
    );
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

/// Returns the names of a guest's disks.
fn names() -> Vec<String> {
    let letters = (b'a'..).take(DISKS).map(char::from);
    letters.map(|letter| format!("xvd{letter}")).collect()
}

fn sixteen_disks(testbed: &Testbed) -> Result<()> {
    let (host, device) = (testbed.host, pci::NVME);
    let storage = testbed.storage(Kind::Pv).memory(48).vcpus(2).pci(&device);
    let mut storage = storage.start()?;
    storage.wait_console(&controller_started(&device), MINUTE)?;
    let target = format!("nvme:{}", device.short_name());
    let label = |kind: Kind, name: &str| format!("{kind}-{name}");
    let partitions: Vec<(String, u32)> = Kind::ALL
        .into_iter()
        .flat_map(|kind| names().into_iter().map(move |name| label(kind, &name)))
        .map(|label| (label, PARTITION))
        .collect();
    administered_by_dom0(testbed, &storage, &target, &partitions)?;
    let before = free_memory(&storage)?;

    testbed.step(format!("two guests with {DISKS} disks each"));
    let guests = side_by_side::run(Kind::ALL.len(), |n| {
        let kind = Kind::ALL[n];
        let disk = |name: &String| {
            let target = format!("{target}/{}", label(kind, name));
            disk("storage", name, "rw", &target)
        };
        let disks: Vec<String> = names().iter().map(disk).collect();
        let mut config = host.lean_guest_config(&format!("guest-{kind}"), kind, &disks)?;
        config.vcpus = 2;
        // Linux's frontend keeps 4 MiB of its own for each queue.
        config.memory += 4 * config.vcpus * DISKS as u32;
        Guest::wait(host.create(&config)?)
    });
    let mut guests = guests?;

    testbed.step("random data on all of their disks at once");
    let mib = PARTITION - 1;
    let jobs = Guest::start_in_each(&guests, &write_verify::all_at_once(&names(), "1M", mib))?;
    for (guest, job) in guests.iter().zip(jobs) {
        let output = guest.finish(job, 6 * MINUTE)?;
        ensure!(
            output.status == 0 && write_verify::is_equal(&output.out, mib * DISKS as u32),
            "{} reads what it did not write: {}",
            guest.name,
            output.out
        );
    }
    let mut queues = 0;
    for guest in &guests {
        for name in names() {
            let counts = storage.statistics(guest, device_number(&name))?;
            let (errors, sectors) = (counts.get("errors")?, counts.get("sectors_written")?);
            ensure!(
                errors == 0 && sectors == u64::from(mib) << 11,
                "{} {name}: {errors} errors, {sectors} sectors written",
                guest.name
            );
            queues += (0..2)
                .filter(|n| counts.get(&format!("queue_{n}_vcpu")).is_ok())
                .count();
        }
    }
    let left = free_memory(&storage)?;
    testbed.step(format!(
        "{queues} queues; of 48 MiB {before} bytes were free without guests, {left} are with them"
    ));
    // As README says, 16 disks and a controller need 16 + 17 MiB.
    ensure!(left >= 15 << 20, "only {left} bytes are free");
    Guest::destroy_all(&mut guests)?;
    storage.shutdown()
}

/// Returns the bytes that the driver domain has for more disks, by what it tells the operator.
fn free_memory(storage: &Running) -> Result<usize> {
    let answer = storage.ask("show", "memory, ")?;
    let bytes = answer
        .strip_prefix("memory, ")
        .and_then(|rest| rest.split(' ').next());
    bytes
        .with_context(|| format!("the answer is {answer:?}"))?
        .parse()
        .with_context(|| format!("the answer is {answer:?}"))
}
