//! The CD from which a PC boots Xen: ISOLINUX, Xen, and the files that Xen starts as dom0.

use crate::host::xenstored::Xenstored;
use crate::image::HostImage;
use crate::process;
use anyhow::Result;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

/// ISOLINUX.
pub const ISOLINUX: &str = "/usr/lib/ISOLINUX/isolinux.bin";
/// ISOLINUX's module that loads Xen.
pub const MBOOT: &str = "/usr/lib/syslinux/modules/bios/mboot.c32";
/// Files that ISOLINUX needs beside it.
const NEEDED: &[&str] = &["ldlinux.c32", "libcom32.c32"];

/// dom0's memory in MiB.
const DOM0_MEMORY: u32 = 512;

/// Makes the CD's image.
pub fn write(path: &Path, image: &HostImage, xenstored: Xenstored) -> Result<()> {
    let dir = path.with_extension("files");
    fs::create_dir_all(dir.join("isolinux"))?;
    let add = |name: &str, from: &Path| symlink(from, dir.join(name));
    add("isolinux/isolinux.bin", Path::new(ISOLINUX))?;
    let mboot = Path::new(MBOOT);
    add("isolinux/mboot.c32", mboot)?;
    for module in NEEDED {
        add(&format!("isolinux/{module}"), &mboot.with_file_name(module))?;
    }
    add("xen", &image.xen.canonicalize()?)?;
    add("kernel", &image.kernel.canonicalize()?)?;
    add("initramfs", &image.initramfs.canonicalize()?)?;
    fs::write(dir.join("isolinux/isolinux.cfg"), menu(xenstored))?;
    process::run_logged(
        Command::new("xorriso")
            .args(["-as", "mkisofs", "-quiet", "-follow-links", "-o"])
            .arg(path)
            .args(["-b", "isolinux/isolinux.bin", "-c", "isolinux/boot.cat"])
            .args(["-no-emul-boot", "-boot-load-size", "4", "-boot-info-table"])
            .arg(&dir),
        &path.with_extension("log"),
    )?;
    fs::remove_dir_all(&dir)?;
    Ok(())
}

/// Returns the boot loader's menu. Xen delivers guests' interrupts itself (`apicv=0`): the processor that Bochs
/// emulates delivers one that waits at the entry into a guest even if the guest has disabled interrupts
/// (`docs/emulator-faults.md`).
fn menu(xenstored: Xenstored) -> String {
    let option = xenstored.dom0_option();
    format!(
        "default xen\nprompt 0\nlabel xen\n  kernel mboot.c32\n  append /xen console=com1 com1=115200,8n1 \
         dom0_mem={DOM0_MEMORY}M,max:{DOM0_MEMORY}M guest_loglvl=all apicv=0 console_timestamps=boot \
         --- /kernel console=hvc0 quiet {option} --- /initramfs\n"
    )
}
