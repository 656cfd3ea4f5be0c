//! A 32-bit Linux guest: Debian's `linux-image-686-pae`, a lean initramfs, and fio. It is bookworm's whatever
//! the host is, for Debian's newer releases have no 32-bit kernel.

use super::cpio::Cpio;
use super::initramfs::{self, base};
use super::root_tar::RootTar;
use super::{complete, key};
use crate::{process, workspace};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const SUITE: &str = "bookworm";

/// The mirror of the packages. They are used only for a guest of the lab, so they need no security updates.
const MIRROR: &str = "http://deb.debian.org/debian";

const PACKAGES: &str = "linux-image-686-pae,busybox-static,fio";

const PROGRAM: &str = "/usr/bin/fio";

/// The root's file that lists its libraries.
const LIBRARIES: &str = "lab-libraries";

/// Files that are left out of the root, which is only taken apart.
const EXCLUDED: &[&str] = &["usr/share", "lib/modules/*/kernel/sound"];

/// Its only module, and where the archive has it.
const BLKFRONT: &str = "kernel/drivers/block/xen-blkfront.ko";
const BLKFRONT_HERE: &str = "/modules/xen-blkfront.ko";

const INIT: &str = concat!(
    include_str!("../../scripts/guest-init.sh"),
    include_str!("../../scripts/guest-once.sh"),
);

/// The files of the cache that a 32-bit guest boots.
#[derive(Clone, Debug)]
pub struct Guest32 {
    /// Its kernel, as a boot loader wants it.
    pub kernel: PathBuf,
    /// Its initramfs: busybox and the block frontend.
    pub initramfs: PathBuf,
    /// An archive for it to unpack below `/`: fio. It can be a disk's image.
    pub fio: PathBuf,
}

/// Makes it in a folder of the cache, unless the cache has it. `say` is told what is being done.
pub fn ensure(say: &dyn Fn(&str)) -> Result<Guest32> {
    let root_key = key(&[SUITE, PACKAGES, PROGRAM, LIBRARIES, &EXCLUDED.concat()]);
    let root = workspace::cache().join(format!("root32-{root_key}"));
    complete(&root, |dir| make_root(dir, say))?;

    let code = include_str!("guest32.rs");
    let key = key(&[&root_key, INIT, code, initramfs::CODE]);
    let dir = workspace::cache().join(format!("guest32-{key}"));
    complete(&dir, |dir| make_boot(&root.join("root.tar"), dir, say))?;
    Ok(Guest32 {
        kernel: dir.join("vmlinuz"),
        initramfs: dir.join("initramfs"),
        fio: dir.join("fio.cpio"),
    })
}

/// Downloads and unpacks the packages; none of their programs but `ld.so` is ever run.
fn make_root(dir: &Path, say: &dyn Fn(&str)) -> Result<()> {
    say(&format!("downloading 32-bit Debian {SUITE}"));
    let list = format!("chroot \"$1\" /lib/ld-linux.so.2 --list {PROGRAM} >\"$1/{LIBRARIES}\"");
    let excluded: Vec<String> = EXCLUDED
        .iter()
        .map(|path| format!("\"$1\"/{path}"))
        .collect();
    process::run_logged(
        Command::new("mmdebstrap")
            .args(["--variant=extract", "--architectures=i386", "--format=tar"])
            .arg(format!("--include={PACKAGES}"))
            .arg(format!("--extract-hook={list}"))
            .arg(format!("--extract-hook=rm -rf {}", excluded.join(" ")))
            .arg(SUITE)
            .arg(dir.join("root.tar"))
            .arg(MIRROR),
        &dir.join("mmdebstrap.log"),
    )
}

fn make_boot(tar: &Path, dir: &Path, say: &dyn Fn(&str)) -> Result<()> {
    say("making the 32-bit guest's archives");
    let tar = RootTar::open(tar)?;
    let version = initramfs::kernel_version(&tar)?;
    let (kernel, _) = tar.read(&format!("boot/vmlinuz-{version}"))?;
    fs::write(dir.join("vmlinuz"), kernel)?;

    let mut lean = base(&tar, INIT)?;
    // A package that was only unpacked has no index of modules yet; this one needs no other.
    let (blkfront, _) = tar.read(&format!("lib/modules/{version}/{BLKFRONT}"))?;
    lean.file(BLKFRONT_HERE, 0o644, &blkfront);
    lean.file(
        initramfs::AT_BOOT,
        0o644,
        format!("{BLKFRONT_HERE}\n").as_bytes(),
    );
    fs::write(dir.join("initramfs"), lean.finish())?;

    let mut fio = Cpio::default();
    initramfs::add_programs(&mut fio, &tar, &[PROGRAM], LIBRARIES)?;
    fs::write(dir.join("fio.cpio"), fio.finish_as_disk()).context("cannot write fio's archive")
}
