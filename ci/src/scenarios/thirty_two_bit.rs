//! A 32-bit Linux guest: its rings have the 32-bit layout, its pages lie in PAE page tables.
//!
//! QEMU cannot emulate one under Xen (`docs/emulator-faults.md`), so Bochs does.

use crate::bochs::Bochs;
use crate::config::{Config, Kind};
use crate::image::guest32::{self, Guest32};
use crate::testbed::boot_disk::{self, Contents};
use crate::testbed::fio;
use crate::testbed::images::{self, Image};
use crate::testbed::own_host::{OwnHostScenario, Parts};
use crate::testbed::storage::{READY, disk};
use anyhow::{Context, Result, ensure};
use base64::prelude::{BASE64_STANDARD, Engine};
use std::fs;
use std::path::Path;
use std::time::Duration;

pub const SCENARIOS: &[OwnHostScenario] = &[OwnHostScenario {
    name: "linux-32bit",
    about: "Debian's 32-bit Linux boots from our disk and fio verifies it, on an Intel processor that Bochs emulates",
    run,
}];

/// The time limit: Bochs boots dom0 in two minutes and a half and the guest in as many, with a core to itself.
const LIMIT: Duration = Duration::from_secs(1500);

/// GRUB for PVH, which boots the guest. (Xen's own way to start a PVH kernel ends at Linux's first use of FS, which
/// this way leaves without a segment: a triple fault.)
const GRUB: &str = "/usr/lib/grub-xen/grub-i386-xen_pvh.bin";

/// The processors of Bochs's host: it has only one, and no fault to keep domains off it.
const ONLY_ONE: &str = "0";

fn run(parts: &Parts) -> Result<()> {
    let linux = guest32::ensure(parts.say)?;
    (parts.say)("making dom0's disk");
    let path = parts.dir.join("boot.img");
    boot_image(&path, &linux)?;
    let boot = Image::file("boot", &path)?;
    let expected = boot.sha256()?;

    let files = parts.dir.join("lab");
    fs::create_dir(&files)?;
    let images = [boot, Image::file("fio", &linux.fio)?];
    images::write_archive(&files.join("images.tar"), &images)?;
    fs::copy(parts.unikernel, files.join("bulkhead"))?;
    let size = fs::metadata(files.join("images.tar"))?.len();
    fs::write(files.join("storage.cfg"), storage(size).to_string())?;
    fs::write(files.join("guest.cfg"), guest().to_string())?;

    (parts.say)("booting Xen in Bochs");
    let mut host = Bochs::boot(&parts.dir, parts.image, parts.xenstored, &files, &script())?;
    // What was copied into its disk can be made again.
    fs::remove_dir_all(&files)?;
    fs::remove_file(&path)?;
    let output = host.finish(LIMIT, parts.say)?;
    judge(&output, &expected).with_context(|| format!("dom0 printed:\n{output}"))
}

/// Makes a disk on which GRUB finds 32-bit Linux, with options to read all of the disk and to have fio verify the
/// second partition.
fn boot_image(path: &Path, linux: &Guest32) -> Result<()> {
    let job = format!(
        "until [ -b /dev/xvda2 ] && [ -b /dev/xvdb ]; do sleep 0.1; done
         dd if=/dev/xvda bs=256k iflag=direct 2>/dev/null | sha256sum
         cd / && cpio -idu </dev/xvdb && {}",
        fio::verify_command("/dev/xvda2")
    );
    let menu = format!(
        "linux /boot/kernel console=hvc0 quiet pci=off lab.run={}\ninitrd /boot/initramfs\nboot\n",
        BASE64_STANDARD.encode(job)
    );
    boot_disk::write(
        path,
        &[
            ("boot/grub/grub.cfg", Contents::Text(&menu)),
            ("boot/kernel", Contents::Copy(&linux.kernel)),
            ("boot/initramfs", Contents::Copy(&linux.initramfs)),
        ],
    )
    .context("cannot make the disk to boot from")
}

fn storage(images: u64) -> Config {
    let mut config = Config::new("storage", Kind::Pvh, "/lab/bulkhead");
    config.ramdisk = Some("/lab/images.tar".to_owned());
    config.memory = (images >> 20) as u32 + 20;
    config.driver_domain = true;
    config.cpus = ONLY_ONE;
    config
}

fn guest() -> Config {
    let mut config = Config::new("guest", Kind::Pvh, GRUB);
    config.memory = 384;
    config.cpus = ONLY_ONE;
    config.disks = vec![
        disk("storage", "xvda", "rw", "ram:boot"),
        disk("storage", "xvdb", "ro", "ram:fio"),
    ];
    config
}

/// Returns dom0's script. It does everything in one go, since the lab cannot talk to this dom0, and prints the logs
/// whatever the result is.
fn script() -> String {
    format!(
        r#"set -e
trap 'set +e; cat /lab/console/guest-guest.log; echo "{LOG}"; cat /lab/console/guest-storage.log' EXIT
echo "step: booting storage as a PVH driver domain"
xl create -q /lab/storage.cfg
until grep -q "{READY}" /lab/console/guest-storage.log 2>/dev/null; do
    xl domid storage >/dev/null
    sleep 0.2
done
echo "step: booting 32-bit Linux, which reads the disk and has fio verify it"
xl create -q /lab/guest.cfg
while xl domid guest >/dev/null 2>&1; do
    if [ $SECONDS -gt {TIMEOUT} ]; then
        echo "32-bit Linux has not ended within {TIMEOUT} emulated seconds; these are its registers and its stack:"
        xenctx -k 0xc0000000 -C -l 40 "$(xl domid guest)"
        exit 1
    fi
    sleep 1
done
echo "step: shutting the driver domain down"
xl shutdown -w storage >/dev/null
"#
    )
}

/// The longest time that dom0's script waits for the end of the guest, in emulated seconds; it takes 140. They pass
/// quickly while a guest stands still, so that this is known long before the lab's own limit.
const TIMEOUT: u32 = 400;

/// The line above the driver domain's log, in dom0's output.
const LOG: &str = "log of the driver domain:";

/// Checks that the guest read the content of the image, that fio found the data that it wrote, and that the rings were
/// 32-bit.
fn judge(output: &str, expected: &str) -> Result<()> {
    let (guest, log) = output
        .split_once(LOG)
        .context("the driver domain left no log")?;
    let (_, job) = guest
        .split_once("@@begin i686 ")
        .context("no 32-bit Linux came up")?;
    let (job, status) = job
        .split_once("@@end ")
        .context("the guest did not come to its end")?;
    ensure!(status.starts_with("0\n"), "the guest's commands failed");
    ensure!(
        job.contains(expected),
        "the disk does not read as {expected}"
    );
    fio::parse(job)?;
    let connected: Vec<&str> = log
        .lines()
        .filter(|line| line.contains(": connected, "))
        .collect();
    // GRUB's two and Linux's.
    ensure!(
        connected.len() == 4 && connected.iter().all(|line| line.contains("x86_32-abi")),
        "not all of the disks connected twice, and as 32-bit ones: {connected:#?}"
    );
    ensure!(
        !log.contains("ERROR") && !log.contains("WARN"),
        "the driver domain's log has errors or warnings"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONNECTED: &str = "INFO  blkback: vbd 2/51712 (xvda): connected, 8 sectors, x86_32-abi\n";

    fn printed(guest: &str, log: &str) -> String {
        format!("step: one\n@@begin i686 6.1\n{guest}\n{LOG}\n{log}")
    }

    #[test]
    fn only_a_whole_run_passes() {
        let fio = "{\"jobs\": [{\"error\": 0, \"job_runtime\": 9, \"read\": {\"io_bytes\": 1}, \
                   \"write\": {\"io_bytes\": 1}}]}";
        let good = format!("cafe  -\n{fio}\n@@end 0");
        let log = CONNECTED.repeat(4);
        judge(&printed(&good, &log), "cafe").unwrap();

        let bad = [
            ("another sum", printed(&good.replace("cafe", "f00d"), &log)),
            (
                "a failure",
                printed(&good.replace("@@end 0", "@@end 1"), &log),
            ),
            ("no end", printed(&good.replace("@@end", ""), &log)),
            (
                "fio's error",
                printed(&good.replace("error\": 0", "error\": 84"), &log),
            ),
            ("64 bits", printed(&good, &log.replace("x86_32", "x86_64"))),
            ("too few disks", printed(&good, &CONNECTED.repeat(3))),
            (
                "an error",
                printed(&good, &format!("{log}ERROR bulkhead: oh")),
            ),
            ("no guest", format!("{LOG}\n{log}")),
        ];
        for (what, output) in bad {
            assert!(judge(&output, "cafe").is_err(), "{what}");
        }
    }
}
