//! Disks of the driver domain's own: what guests write outlives guest and driver domain.

use crate::config::Kind;
use crate::host::guest::Guest;
use crate::testbed::storage::{Running, device_number, disk, own_disk_connected};
use crate::testbed::write_verify;
use crate::testbed::{MINUTE, Scenario, Testbed};
use anyhow::{Result, ensure};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "lasting-disk",
        about: "a file of dom0's, served through PVH and PV driver domains as vbd:xvda: the data outlives guest and driver domain, and writes go on when dom0's driver starts anew",
        demo: false,
        run: lasting_disk,
    },
    Scenario {
        name: "stacked-storage",
        about: "a guest on Bulkhead on Bulkhead on dom0, PVH on PV and PV on PVH; the lower one is destroyed in mid-write and another one takes its place: all that was written is there",
        demo: false,
        run: stacked_storage,
    },
];

/// The disk's size, and how much of it is written, in MiB.
const SIZE: u32 = 8;
const WRITTEN: u32 = 4;

/// Writes random data and makes it durable; prints its checksum.
const WRITE: &str = "dd if=/dev/urandom of=/tmp/data bs=1M count=COUNT 2>/dev/null && \
     dd if=/tmp/data of=/dev/xvda bs=64k conv=fsync 2>/dev/null && sha256sum </tmp/data";

/// Prints the checksum of what is there.
const READ: &str = "dd if=DISK bs=64k count=BLOCKS 2>/dev/null | sha256sum";

fn lasting_disk(testbed: &Testbed) -> Result<()> {
    for kind in Kind::ALL {
        outlives(testbed, kind)?;
    }
    Ok(())
}

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
    let written = guest.ok(&WRITE.replace("COUNT", &WRITTEN.to_string()), MINUTE)?;

    testbed.step("xl destroy of the guest and of the driver domain, and xl create");
    guest.destroy()?;
    storage.destroy()?;
    let mut storage = create()?;
    let mut guest = attach("reader")?;
    write_stays(testbed, &guest, &written, &file)?;
    guest.destroy()?;
    storage.shutdown()?;
    host.ok(&format!("rm {file}")).map(drop)
}

/// Makes sure that guest and dom0 see what was written.
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

/// dom0's driver lets go of the disk in mid-write, and takes it again.
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
    let before = write_verify::passes(guest)?;
    write_verify::wait_for_passes(guest, before + 2)?;
    write_verify::stop(guest, keeping)
}

fn stacked_storage(testbed: &Testbed) -> Result<()> {
    let host = testbed.host;
    for (lower, upper) in [(Kind::Pv, Kind::Pvh), (Kind::Pvh, Kind::Pv)] {
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
        let before = write_verify::passes(&guest)?;
        write_verify::wait_for_passes(&guest, before + 2)?;
        write_verify::stop(&guest, keeping)?;
        guest.destroy()?;
        storage.shutdown()?;
        second.shutdown()?;
        host.ok(&format!("rm {file}"))?;
    }
    Ok(())
}
