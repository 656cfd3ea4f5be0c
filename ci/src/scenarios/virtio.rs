//! A virtio-blk device that is passed through to the driver domain, which serves it.

use crate::config::Kind;
use crate::host::pci;
use crate::testbed::storage::{Running, disk};
use crate::testbed::{MINUTE, Part, Scenario, Testbed, fio};
use anyhow::{Context, Result, ensure};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "virtio-disks",
    about: "a PV driver domain serves a virtio-blk device to a PVH guest and then to a PV guest: verified, discarded, and there when the driver domain came anew",
    part: Part::Suite,
    run: disks,
}];

/// The MiB that a guest writes and compares.
const MIB: u32 = 4;

/// Returns the device's name in targets.
fn name() -> String {
    let name = pci::VIRTIO_BLK.to_string();
    name.trim_start_matches("0000:").to_owned()
}

fn storage<'h>(testbed: &Testbed<'h>, vcpus: u32) -> Result<Running<'h>> {
    let storage = testbed.storage(Kind::Pv).memory(24).vcpus(vcpus);
    let storage = storage.pci(&pci::VIRTIO_BLK).start()?;
    let started = format!("virtio:{}: ", name());
    storage.wait_console(&started, MINUTE)?;
    Ok(storage)
}

fn disks(testbed: &Testbed) -> Result<()> {
    let host = testbed.host;
    let mut first = storage(testbed, 1)?;
    let disks = [disk("storage", "xvda", "rw", &format!("virtio:{}", name()))];
    let mut guest = host.guest("guest-pvh", Kind::Pvh, &disks)?;
    testbed.step("fio verifies the device, from a PVH guest");
    fio::verify(&guest, "/dev/xvda", 3 * MINUTE)?;
    testbed.step("discarding, and writing what is to stay");
    guest.ok("blkdiscard -o 0 -l $((1 << 20)) /dev/xvda", MINUTE)?;
    let left = guest.ok("head -c 1048576 /dev/xvda | tr -d '\\0' | wc -c", MINUTE)?;
    ensure!(left.trim() == "0", "discarded blocks are not zeros");
    let sum = guest.ok(
        &format!(
            "dd if=/dev/urandom of=/tmp/data bs=1M count={MIB} 2>/dev/null && \
            dd if=/tmp/data of=/dev/xvda bs=64k conv=fsync 2>/dev/null && sha256sum </tmp/data"
        ),
        MINUTE,
    )?;
    let shown = first.ask("show", "all")?;
    let about = shown
        .lines()
        .find(|line| line.contains(&format!("virtio:{}: ", name())) && line.contains(" requests"));
    let about = about.with_context(|| format!("nothing about the device:\n{shown}"))?;
    ensure!(
        about.contains(" 0 failed") && about.contains(" 0 resets"),
        "{about}"
    );
    testbed.step(about.trim());
    guest.destroy()?;
    first.shutdown()?;

    testbed.step("another driver domain has the device, and a PV guest the disk");
    let mut second = storage(testbed, 2)?;
    let mut guest = host.guest("guest-pv", Kind::Pv, &disks)?;
    let there = guest.ok(
        &format!("head -c {} /dev/xvda | sha256sum", MIB << 20),
        MINUTE,
    )?;
    ensure!(there == sum, "what was written is not there any more");
    testbed.step("fio verifies a part of the device, from the PV guest");
    fio::verify_with(&guest, "/dev/xvda", "--size=16m", 3 * MINUTE)?;
    guest.destroy()?;
    second.destroy()
}
