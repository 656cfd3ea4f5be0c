//! Disks of the driver domain's own: data that guests write outlives guest and driver domain.

use crate::config::Kind;
use crate::host::Host;
use crate::host::domain::Domain;
use crate::host::guest::Guest;
use crate::testbed::storage::{Running, device_number, disk, own_disk_connected};
use crate::testbed::{MINUTE, Part, Scenario, Testbed};
use crate::testbed::{records, write_verify};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "lasting-disk",
        about: "a file of dom0's, served through a PV driver domain as vbd:xvda: the data outlives guest and driver domain, which are destroyed in mid-write, and writes go on when dom0's driver starts anew",
        part: Part::Suite,
        run: |testbed| outlives(testbed, Kind::Pv),
    },
    Scenario {
        name: "lasting-disk-pvh",
        about: "the same with a PVH driver domain",
        part: Part::ByName,
        run: |testbed| outlives(testbed, Kind::Pvh),
    },
    Scenario {
        name: "stacked-storage",
        about: "a guest on Bulkhead on Bulkhead on dom0, PVH on PV; the lower one is destroyed in mid-write and another one takes its place: all that was written is there, and the statistics of all layers add up",
        part: Part::Suite,
        run: |testbed| stacked_storage(testbed, Kind::Pv, Kind::Pvh),
    },
    Scenario {
        name: "lasting-qdisk",
        about: "a file that QEMU's xen-block serves to the driver domain, and the driver domain to a guest: all that was written is there, also after the disk is detached and attached again",
        part: Part::ByName,
        run: qdisk,
    },
    Scenario {
        name: "stacked-storage-pv",
        about: "as stacked-storage, PV on PVH",
        part: Part::ByName,
        run: |testbed| stacked_storage(testbed, Kind::Pvh, Kind::Pv),
    },
];

/// The disk's size, and the size of the part that is written, in MiB.
const SIZE: u32 = 8;
const WRITTEN: u32 = 4;

/// The number of records that are flushed before something is destroyed in mid-write.
const RECORDS: u32 = 20;

/// Writes random data and makes it durable; prints its checksum.
const WRITE: &str = "dd if=/dev/urandom of=/tmp/data bs=1M count=COUNT 2>/dev/null && \
     dd if=/tmp/data of=/dev/xvda bs=64k conv=fsync 2>/dev/null && sha256sum </tmp/data";

/// Prints the checksum of the data on a disk.
const READ: &str = "dd if=DISK bs=64k count=BLOCKS 2>/dev/null | sha256sum";

fn outlives(testbed: &Testbed, kind: Kind) -> Result<()> {
    let host = testbed.host;
    let file = format!("/tmp/lasting-{kind}.img");
    host.ok(&format!("truncate --size={SIZE}M {file}"))?;
    let own = format!("format=raw,vdev=xvda,access=rw,backendtype=phy,target={file}");
    let create = || testbed.storage(kind).memory(18).disk(&own).start();
    let attach = |name| {
        let disk = disk("storage", "xvda", "rw", "vbd:xvda");
        host.lean_guest(name, kind, &[disk])
    };

    let mut storage = create()?;
    storage.wait_console(&own_disk_connected("xvda"), MINUTE)?;
    let mut guest = attach("writer")?;
    testbed.step(format!("a guest of the {kind} driver domain writes"));
    let written = guest.ok(&WRITE.replace("COUNT", &WRITTEN.to_string()), MINUTE)?;
    write_stays(testbed, &guest, &written, &file)?;
    starts_anew(testbed, &storage, &guest)?;

    let first = match kind {
        Kind::Pvh => "guest",
        _ => "driver domain",
    };
    testbed.step(format!("xl destroy in mid-write, first of the {first}"));
    guest.start(&records::write("/dev/xvda"))?;
    records::wait_for(&guest, RECORDS, MINUTE)?;
    match kind {
        Kind::Pvh => guest.destroy().and_then(|()| storage.destroy())?,
        _ => storage.destroy().and_then(|()| guest.destroy())?,
    }
    let flushed = records::flushed(&guest)?;
    let mut storage = create()?;
    let mut guest = attach("reader")?;
    let seen = guest.ok(&records::sum_of("/dev/xvda", flushed), MINUTE)?;
    ensure!(
        seen == records::expected(flushed),
        "{flushed} records were flushed, and not all of them are there"
    );
    guest.destroy()?;
    storage.shutdown()?;
    host.ok(&format!("rm {file}")).map(drop)
}

/// Checks that guest and dom0 see the data that was written.
fn write_stays(testbed: &Testbed, guest: &Guest, written: &str, file: &str) -> Result<()> {
    let blocks = (WRITTEN * 16).to_string();
    let read = |disk: &str| READ.replace("DISK", disk).replace("BLOCKS", &blocks);
    let seen = guest.ok(&read("/dev/xvda"), MINUTE)?;
    let in_dom0 = testbed.host.ok(&read(file))?;
    ensure!(
        seen == written && in_dom0 == written,
        "written was {written}, the guest reads {seen}, dom0 {in_dom0}"
    );
    Ok(())
}

/// Has dom0's driver let go of the disk in mid-write, and take it again.
fn starts_anew(testbed: &Testbed, storage: &Running, guest: &Guest) -> Result<()> {
    testbed.step("dom0's driver is unbound from the disk in mid-write, and bound again");
    let keeping = guest.start(&write_verify::keep_at_it("xvda", WRITTEN / 4))?;
    write_verify::wait_for_passes(guest, 1)?;
    let driver = "/sys/bus/xen-backend/drivers/vbd";
    let device = format!("vbd-{}-51712", storage.id);
    let host = testbed.host;
    host.ok(&format!("echo {device} >{driver}/unbind"))?;
    host.ok(&format!("echo {device} >{driver}/bind"))?;
    let state = format!("/local/domain/0/backend/vbd/{}/51712/state", storage.id);
    host.ok(&format!(
        "until [ \"$(xenstore-read {state})\" = 4 ]; do sleep 0.2; done"
    ))?;
    write_verify::goes_on(guest)?;
    write_verify::stop(guest, keeping)
}

fn stacked_storage(testbed: &Testbed, lower: Kind, upper: Kind) -> Result<()> {
    let host = testbed.host;
    let file = format!("/tmp/stacked-{lower}.img");
    host.ok(&format!("truncate --size={SIZE}M {file}"))?;
    let of_dom0 = format!("format=raw,vdev=xvda,access=rw,backendtype=phy,target={file}");
    let below = || {
        let below = testbed.storage(lower).name("below").memory(18);
        below.disk(&of_dom0).start()
    };
    let own = disk("below", "xvda", "rw", "vbd:xvda");
    let mut first = below()?;
    let mut storage = testbed.storage(upper).memory(18).disk(&own).start()?;
    storage.wait_console(&own_disk_connected("xvda"), MINUTE)?;
    let served = disk("storage", "xvda", "rw", "vbd:xvda");
    let mut guest = host.lean_guest("guest", upper, &[served])?;
    testbed.step(format!(
        "a guest on {upper} on {lower} on dom0 writes and reads"
    ));
    let keeping = guest.start(&write_verify::keep_at_it("xvda", WRITTEN))?;
    write_verify::wait_for_passes(&guest, 1)?;

    testbed.step("xl destroy of the lower one in mid-write, and another one in its place");
    first.destroy()?;
    storage.wait_console("requests wait for it", MINUTE)?;
    host.ok("xl block-detach storage xvda")?;
    let mut second = below()?;
    let seen = storage.console_length();
    host.attach_disk(&storage, &own, device_number("xvda"))?;
    storage.wait_console_from(seen, &own_disk_connected("xvda"), MINUTE)?;
    write_verify::goes_on(&guest)?;
    write_verify::stop(&guest, keeping)?;
    layers_add_up(testbed, &guest, &storage, &second)?;
    guest.destroy()?;
    storage.shutdown()?;
    second.shutdown()?;
    host.ok(&format!("rm {file}")).map(drop)
}

/// The requests of a layer: those that its statistics count, and those that it sent to the layer below.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Layer {
    reads: u64,
    writes: u64,
    flushes: u64,
    sectors_read: u64,
    sectors_written: u64,
}

/// Has a guest write 2 MiB, flush and read, and compares the counts of three layers.
fn layers_add_up(
    testbed: &Testbed,
    guest: &Guest,
    storage: &Running,
    below: &Running,
) -> Result<()> {
    testbed.step("comparing the statistics of all layers");
    const MIB: u64 = 2;
    let look = || -> Result<_> {
        let layers = [
            served(storage, guest)?,
            served(below, storage)?,
            by_dom0(testbed, below)?,
        ];
        Ok((layers, [sent(storage)?, sent(below)?]))
    };
    let (before, sent_before) = look()?;
    guest.ok(
        &format!(
            "dd if=/dev/urandom of=/tmp/data bs=1M count={MIB} iflag=fullblock 2>/dev/null && \
             dd if=/tmp/data of=/dev/xvda bs=64k oflag=direct conv=fsync 2>/dev/null && \
             dd if=/dev/xvda bs=64k count={} iflag=direct 2>/dev/null | cmp - /tmp/data",
            MIB * 16
        ),
        MINUTE,
    )?;
    let (after, sent_after) = look()?;
    let since = |after: Layer, before: Layer| Layer {
        reads: after.reads - before.reads,
        writes: after.writes - before.writes,
        flushes: after.flushes - before.flushes,
        sectors_read: after.sectors_read - before.sectors_read,
        sectors_written: after.sectors_written - before.sectors_written,
    };
    let [top, middle, bottom] = [0, 1, 2].map(|layer| since(after[layer], before[layer]));
    let sectors = MIB * 2048;
    ensure!(
        top == middle
            && middle == bottom
            && (top.sectors_read, top.sectors_written) == (sectors, sectors)
            && top.flushes > 0,
        "the layers have counted, from the top: {top:?}, {middle:?}, {bottom:?}"
    );
    let requests = top.reads + top.writes + top.flushes;
    let sent = [0, 1].map(|layer| sent_after[layer] - sent_before[layer]);
    ensure!(
        sent == [requests; 2],
        "{requests} requests came, and {sent:?} were sent on"
    );
    Ok(())
}

/// Returns a driver domain's counts of a disk that it serves.
fn served(storage: &Running, of: &Domain) -> Result<Layer> {
    let counts = storage.statistics(of, device_number("xvda"))?;
    Ok(Layer {
        reads: counts.get("reads")?,
        writes: counts.get("writes")?,
        flushes: counts.get("flushes")?,
        sectors_read: counts.get("sectors_read")?,
        sectors_written: counts.get("sectors_written")?,
    })
}

/// Returns the counts of dom0's driver for the disk that it serves.
fn by_dom0(testbed: &Testbed, of: &Domain) -> Result<Layer> {
    let text = testbed.host.ok(&format!(
        "cd /sys/bus/xen-backend/devices/vbd-{}-51712/statistics && grep . *",
        of.id
    ))?;
    let counts: BTreeMap<&str, &str> = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .collect();
    let get = |name: &str| -> Result<u64> {
        let count = counts.get(name).context("dom0 does not count it")?;
        Ok(count.trim().parse()?)
    };
    Ok(Layer {
        reads: get("rd_req")?,
        writes: get("wr_req")?,
        flushes: get("f_req")?,
        sectors_read: get("rd_sect")?,
        sectors_written: get("wr_sect")?,
    })
}

/// Returns the number of requests that a driver domain has sent to the backend of its own disk.
fn sent(storage: &Running) -> Result<u64> {
    let shown = storage.ask("show", "disk vbd:xvda,")?;
    let count = shown
        .split_whitespace()
        .find_map(|word| word.strip_prefix("requests="));
    let count = count.with_context(|| format!("it shows {shown:?}"))?;
    Ok(count.parse()?)
}

fn qdisk(testbed: &Testbed) -> Result<()> {
    let host = testbed.host;
    let file = "/tmp/qdisk.img";
    host.ok(&format!("truncate --size={SIZE}M {file}"))?;
    let own = format!("format=raw,vdev=xvda,access=rw,backendtype=qdisk,target={file}");
    let kind = Kind::Pvh;
    let mut storage = testbed.storage(kind).memory(18).disk(&own).start()?;
    storage.wait_console(&own_disk_connected("xvda"), MINUTE)?;
    let served = disk("storage", "xvda", "rw", "vbd:xvda");
    testbed.step("a guest writes through QEMU's xen-block");
    let mut guest = host.lean_guest("guest", kind, std::slice::from_ref(&served))?;
    write_verify::verify(&guest, "xvda", WRITTEN)?;
    let written = guest.ok(&WRITE.replace("COUNT", &WRITTEN.to_string()), MINUTE)?;
    write_stays(testbed, &guest, &written, file)?;
    let flushes = storage.statistics(&guest, device_number("xvda"))?;
    ensure!(flushes.get("flushes")? > 0, "nothing was flushed");

    testbed.step("detaching both disks, and attaching them again");
    host.ok("xl block-detach guest xvda")?;
    detach_from_qemu(host, &storage.name, "xvda")?;
    let seen = storage.console_length();
    host.attach_disk(&storage, &own, device_number("xvda"))?;
    storage.wait_console_from(seen, &own_disk_connected("xvda"), MINUTE)?;
    host.attach_disk(&guest, &served, device_number("xvda"))?;
    write_stays(testbed, &guest, &written, file)?;
    write_verify::verify(&guest, "xvda", 1)?;
    guest.destroy()?;
    storage.shutdown()?;
    host.ok(&format!("rm {file}")).map(drop)
}

/// libxl's message if xenstored answers ENOMEM to a transaction of its.
const NO_MEMORY: &str = "could not commit xenstore transaction: Cannot allocate memory";

/// Detaches a disk that QEMU serves. QEMU removes the disk's nodes while a transaction of libxl's does so, too. The
/// xenstored of Xen 4.20 answers to that transaction ENOMEM where EAGAIN is meant, if the frontend has more nodes than
/// its domain has besides (`acc_fix_domains` in Xen's tools/xenstored/domain.c). A stock Linux guest has the same with
/// a ring of 16 pages. The toolstack removes the rest when it is asked again.
fn detach_from_qemu(host: &Host, name: &str, device: &str) -> Result<()> {
    let detach = format!("xl block-detach {name} {device}");
    let first = host.exec(&detach, MINUTE)?;
    if first.status == 0 {
        return Ok(());
    }
    let minor = host.ok("cat /sys/hypervisor/version/minor")?;
    ensure!(
        minor.trim() == "20" && first.err.contains(NO_MEMORY),
        "Xen 4.{}: {detach}: {}",
        minor.trim(),
        first.err
    );
    let again = host.exec(&detach, MINUTE)?;
    ensure!(
        again.status == 0 && again.err.contains("already removed, cleanup frontend only"),
        "{detach}, asked again: {}",
        again.err
    );
    Ok(())
}
