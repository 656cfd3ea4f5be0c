//! Coming up with little memory, with other ramdisks, and going down when asked.

use crate::config::Kind;
use crate::lab::images::Image;
use crate::lab::storage::disk;
use crate::lab::{Lab, MINUTE, Scenario};
use anyhow::{Result, ensure};
use std::time::Duration;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "small-memory",
        about: "without an image, 16 MiB are enough, PVH and PV",
        demo: false,
        run: small_memory,
    },
    Scenario {
        name: "raw-ramdisk",
        about: "a ramdisk that is no archive is one image, ram:disk0",
        demo: false,
        run: raw_ramdisk,
    },
    Scenario {
        name: "shutdown-and-reboot",
        about: "xl shutdown ends the driver domain, xl reboot brings it back, PVH and PV",
        demo: false,
        run: shutdown_and_reboot,
    },
];

fn small_memory(lab: &Lab) -> Result<()> {
    for kind in Kind::ALL {
        let mut storage = lab.storage(kind).memory(16).start()?;
        storage.shutdown()?;
    }
    Ok(())
}

fn raw_ramdisk(lab: &Lab) -> Result<()> {
    let (here, _) = lab.shared_file("raw.img");
    let mut bytes = vec![0; 1 << 20];
    bytes[4096..4110].copy_from_slice(b"a raw ramdisk\n");
    std::fs::write(here, bytes)?;
    let mut storage = lab
        .storage(Kind::Pvh)
        .ramdisk("raw.img")
        .memory(24)
        .start()?;

    lab.step("reading the image in a guest");
    let disks = [disk("storage", "xvda", "r", "ram:disk0")];
    let mut guest = lab.host.guest("guest", Kind::Pv, &disks)?;
    let read = "dd if=/dev/xvda bs=4096 skip=1 count=1 2>/dev/null | head -n 1";
    let line = guest.ok(read, Duration::from_secs(20))?;
    ensure!(line == "a raw ramdisk\n", "the guest read {line:?}");
    guest.destroy()?;
    storage.shutdown()
}

fn shutdown_and_reboot(lab: &Lab) -> Result<()> {
    for kind in Kind::ALL {
        let images = [Image::mib("disk", 1)];
        let mut storage = lab.storage(kind).images(&images)?.memory(24).start()?;

        lab.step(format!("rebooting the {kind} driver domain"));
        storage.reboot()?;

        lab.step("a guest on the driver domain that came back");
        let disks = [disk("storage", "xvda", "r", "ram:disk")];
        let mut guest = lab.host.guest("guest", Kind::Pv, &disks)?;
        guest.ok("dd if=/dev/xvda of=/dev/null bs=64k", MINUTE)?;
        guest.destroy()?;

        lab.step("shutting it down");
        storage.shutdown()?;
    }
    Ok(())
}
