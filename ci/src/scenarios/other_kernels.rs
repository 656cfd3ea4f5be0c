//! Frontends beside a 64-bit Linux that `xl` starts: GRUB.

use crate::config::Kind;
use crate::host::guest::Guest;
use crate::testbed::boot_disk::{self, Contents};
use crate::testbed::images::Image;
use crate::testbed::storage::{Running, disk};
use crate::testbed::{MINUTE, Part, Scenario, Testbed};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::Path;
use std::time::Duration;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "grub-pv",
        about: "a PV guest boots from our disk through PV GRUB, then Linux takes over the same disk",
        part: Part::Suite,
        run: |testbed| grub(testbed, Kind::Pv),
    },
    Scenario {
        name: "grub-pvh",
        about: "a PVH guest boots from our disk through GRUB for PVH, whose requests have the 32-bit layout",
        part: Part::Suite,
        run: |testbed| grub(testbed, Kind::Pvh),
    },
];

/// The time limit for GRUB, which reads 64 MiB, at half a MiB a second where the machine has much else to do.
const GRUB: Duration = Duration::from_secs(240);

/// Waits for the disk: a lean guest takes commands before it has its disk.
const THERE: &str = "until [ -b /dev/xvda2 ]; do sleep 0.1; done";

/// A variable of GRUB's environment that GRUB writes to the disk, and its value.
const SAVED: &str = "lab";
const WORD: &str = "written-by-grub";

fn grub(testbed: &Testbed, kind: Kind) -> Result<()> {
    // GRUB for PV loads an ELF into a domain that looks as xl would have made it; GRUB for PVH goes by
    // the boot protocol of PCs.
    let (grub, kernel, abi) = match kind {
        Kind::Pv => ("grub-x86_64-xen.bin", "vmlinux", "x86_64-abi"),
        _ => ("grub-i386-xen_pvh.bin", "vmlinuz", "x86_32-abi"),
    };
    testbed.step("making a disk to boot from");
    let files = testbed.guest_files();
    let (path, _) = testbed.shared_file("boot.img");
    boot_image(testbed, &path, &files.join(kernel), &files)?;
    let mut storage = boot_storage(testbed, kind, &path)?;

    testbed.step(format!("booting a {kind} guest through GRUB"));
    let disks = [disk("storage", "xvda", "rw", "ram:boot.img")];
    let mut config = testbed.host.guest_config("guest", kind, &disks)?;
    config.kernel = format!("/usr/lib/grub-xen/{grub}");
    config.ramdisk = None;
    config.cmdline = String::new();
    let domain = testbed.host.create(&config)?;
    domain.wait_console("@@ready", GRUB)?;
    let mut guest = Guest::wait(domain)?;
    let log = storage.console();
    let connected: Vec<&str> = log
        .lines()
        .filter(|line| line.contains(": connected, "))
        .collect();
    ensure!(
        connected.len() == 2 && connected[0].contains(abi) && connected[1].contains("x86_64-abi"),
        "GRUB and Linux did not connect one after the other: {connected:#?}"
    );

    testbed.step("Linux on the same disk");
    guest.ok(THERE, MINUTE)?;
    let saved = environment(&format!("{SAVED}={WORD}\n"));
    replace(&path, environment("").as_bytes(), saved.as_bytes())?;
    let expected = Image::file("boot.img", &path)?.sha256()?;
    let read = guest.ok("dd if=/dev/xvda bs=256k iflag=direct | sha256sum", MINUTE)?;
    ensure!(
        read.contains(&expected),
        "the disk reads as {read}, expected {expected}"
    );
    let rewritten = guest.ok(
        "dd if=/dev/urandom of=/tmp/data bs=1M count=8 2>/dev/null; sha256sum </tmp/data; \
         dd if=/tmp/data of=/dev/xvda2 bs=64k oflag=direct 2>/dev/null; \
         dd if=/dev/xvda2 bs=256k iflag=direct 2>/dev/null | sha256sum",
        MINUTE,
    )?;
    let sums: Vec<&str> = rewritten.lines().collect();
    ensure!(
        sums.len() == 2 && sums[0] == sums[1],
        "the second partition does not hold what was written: {rewritten}"
    );
    guest.destroy()?;
    storage.shutdown()
}

/// Starts a driver domain with that disk.
fn boot_storage<'h>(testbed: &Testbed<'h>, kind: Kind, path: &Path) -> Result<Running<'h>> {
    let image = Image::file("boot.img", path)?;
    let memory = (path.metadata()?.len() >> 20) as u32 + 20;
    testbed
        .storage(kind)
        .images(&[image])?
        .memory(memory)
        .start()
}

/// Makes a disk on which GRUB finds a kernel.
fn boot_image(testbed: &Testbed, path: &Path, kernel: &Path, files: &Path) -> Result<()> {
    let cmdline = testbed.host.guest_config("guest", Kind::Pvh, &[])?.cmdline;
    let menu = format!(
        "{SAVED}={WORD}\nsave_env -f /boot/grub/grubenv {SAVED}\n\
         linux /boot/kernel {cmdline}\ninitrd /boot/initramfs\nboot\n"
    );
    boot_disk::write(
        path,
        &[
            ("boot/grub/grub.cfg", Contents::Text(&menu)),
            ("boot/grub/grubenv", Contents::Text(&environment(""))),
            ("boot/kernel", Contents::Copy(kernel)),
            (
                "boot/initramfs",
                Contents::Copy(&files.join("initramfs-lean")),
            ),
        ],
    )
    .context("cannot make the disk to boot from")
}

/// Returns a file of GRUB's environment, as `grub-editenv` makes one: 1024 bytes, those not used filled with `#`.
fn environment(variables: &str) -> String {
    format!(
        "{:#<1024}",
        format!("# GRUB Environment Block\n{variables}")
    )
}

/// Replaces the one place at which a file has these bytes by other bytes of the same number.
fn replace(path: &Path, old: &[u8], new: &[u8]) -> Result<()> {
    let mut data = fs::read(path)?;
    let place = data.windows(old.len()).position(|bytes| bytes == old);
    let place = place.context("the disk does not have GRUB's environment")?;
    data[place..place + old.len()].copy_from_slice(new);
    fs::write(path, data).context("cannot write what the disk should hold")
}
