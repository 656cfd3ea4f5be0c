//! Coming up with little memory, with other ramdisks, and going down when asked.

use crate::config::Kind;
use crate::testbed::images::{self, Image};
use crate::testbed::storage::disk;
use crate::testbed::{MINUTE, Part, Scenario, Testbed};
use anyhow::{Result, ensure};
use std::time::Duration;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "small-memory",
        about: "without an image, 16 MiB are enough, PVH and PV",
        part: Part::Suite,
        run: small_memory,
    },
    Scenario {
        name: "raw-ramdisk",
        about: "a ramdisk that is not an archive is one image, ram:disk0",
        part: Part::Suite,
        run: raw_ramdisk,
    },
    Scenario {
        name: "large-ramdisk",
        about: "an archive of 1023 MiB is served; Xen's domain builder refuses one of more than 1024",
        part: Part::Suite,
        run: large_ramdisk,
    },
    Scenario {
        name: "gzipped-ramdisk",
        about: "a gzipped archive is served where Xen unpacks it, and refused with a reason elsewhere",
        part: Part::Suite,
        run: gzipped_ramdisk,
    },
    Scenario {
        name: "shutdown-and-reboot",
        about: "xl shutdown ends the driver domain, xl reboot brings it back, PVH and PV",
        part: Part::Suite,
        run: shutdown_and_reboot,
    },
];

fn small_memory(testbed: &Testbed) -> Result<()> {
    for kind in Kind::ALL {
        let mut storage = testbed.storage(kind).memory(16).start()?;
        storage.shutdown()?;
    }
    Ok(())
}

fn raw_ramdisk(testbed: &Testbed) -> Result<()> {
    let (here, _) = testbed.shared_file("raw.img");
    let mut bytes = vec![0; 1 << 20];
    bytes[4096..4110].copy_from_slice(b"a raw ramdisk\n");
    std::fs::write(here, bytes)?;
    let mut storage = testbed
        .storage(Kind::Pvh)
        .ramdisk("raw.img")
        .memory(24)
        .start()?;

    testbed.step("reading the image in a guest");
    let disks = [disk("storage", "xvda", "r", "ram:disk0")];
    let mut guest = testbed.host.lean_guest("guest", Kind::Pv, &disks)?;
    let read = "dd if=/dev/xvda bs=4096 skip=1 count=1 2>/dev/null | head -n 1";
    let line = guest.ok(read, Duration::from_secs(20))?;
    ensure!(line == "a raw ramdisk\n", "the guest read {line:?}");
    guest.destroy()?;
    storage.shutdown()
}

fn large_ramdisk(testbed: &Testbed) -> Result<()> {
    // Nothing but a header, and holes: dom0 has no room for more.
    testbed.host.ok("cd /var/tmp && truncate -s 1022M big && \
         (tar --format=ustar -cf - big 2>/dev/null | head -c 512 >big.tar); \
         truncate -s 1023M big.tar && printf 'the last bytes' | \
         dd of=big.tar bs=1 seek=$((512 + (1022 << 20) - 14)) conv=notrunc 2>/dev/null")?;
    let storage = || {
        testbed
            .storage(Kind::Pvh)
            .ramdisk_of_dom0("/var/tmp/big.tar")
    };
    let mut running = storage().memory(1056).start()?;
    running.wait_console("image ram:big, 1071644672 bytes", MINUTE)?;
    let disks = [disk("storage", "xvda", "rw", "ram:big")];
    let mut guest = testbed.host.lean_guest("guest", Kind::Pv, &disks)?;
    let last = guest.ok("tail -c 14 /dev/xvda", MINUTE)?;
    ensure!(last == "the last bytes", "the guest read {last:?}");
    guest.destroy()?;
    running.shutdown()?;

    testbed.step("an archive that is too large for Xen's domain builder");
    testbed.host.ok("truncate -s 1025M /var/tmp/big.tar")?;
    let created = testbed.host.try_create(storage().memory(1056).config())?;
    testbed.host.ok("rm /var/tmp/big /var/tmp/big.tar")?;
    ensure!(created.status != 0, "xl create took a ramdisk of 1025 MiB");
    ensure!(
        created.err.contains("too large"),
        "xl create said: {}",
        created.err
    );
    Ok(())
}

fn gzipped_ramdisk(testbed: &Testbed) -> Result<()> {
    let image = Image::noise("disk", 2);
    let (here, _) = testbed.shared_file("images.tar");
    images::write_archive(&here, std::slice::from_ref(&image))?;
    testbed
        .host
        .ok("gzip -c /lab/images.tar >/var/tmp/images.tar.gz")?;
    let version = testbed.host.ok("xl info xen_version")?;
    let minor = version.trim().split('.').nth(1).map(str::parse::<u32>);
    let unpacked = minor.is_some_and(|minor| minor.is_ok_and(|minor| minor < 20));
    for kind in Kind::ALL {
        let mut storage = testbed
            .storage(kind)
            .ramdisk_of_dom0("/var/tmp/images.tar.gz")
            .memory(24)
            .start()?;
        if !unpacked {
            storage.expect_error(0, "compressed by gzip", MINUTE)?;
            storage.shutdown()?;
            continue;
        }
        let disks = [disk("storage", "xvda", "r", "ram:disk")];
        let mut guest = testbed.host.lean_guest("guest", Kind::Pv, &disks)?;
        let sum = guest.ok("sha256sum </dev/xvda", MINUTE)?;
        ensure!(
            sum.starts_with(&image.sha256()?),
            "the guest reads an image whose sum is {sum}"
        );
        guest.destroy()?;
        storage.shutdown()?;
    }
    testbed.host.ok("rm /var/tmp/images.tar.gz").map(drop)
}

fn shutdown_and_reboot(testbed: &Testbed) -> Result<()> {
    for kind in Kind::ALL {
        let images = [Image::mib("disk", 1)];
        let mut storage = testbed.storage(kind).images(&images)?.memory(24).start()?;

        testbed.step(format!("rebooting the {kind} driver domain"));
        storage.reboot()?;

        testbed.step("a guest on the driver domain that came back");
        let disks = [disk("storage", "xvda", "r", "ram:disk")];
        let mut guest = testbed.host.lean_guest("guest", Kind::Pv, &disks)?;
        guest.ok("dd if=/dev/xvda of=/dev/null bs=64k", MINUTE)?;
        guest.destroy()?;

        testbed.step("shutting it down");
        storage.shutdown()?;
    }
    Ok(())
}
