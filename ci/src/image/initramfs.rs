//! The contents of dom0's and the guests' initramfs archives.

use super::cpio::Cpio;
use super::root_tar::RootTar;
use super::{guest_fio, pcifront, unpack};
use anyhow::{Context, Result};
use std::path::Path;

/// The scripts that go into the archives; part of the cache's key.
pub const SOURCES: &str = concat!(
    include_str!("../../scripts/dom0-early.sh"),
    include_str!("../../scripts/dom0-init.sh"),
    include_str!("../../scripts/guest-init.sh"),
    include_str!("../../scripts/console-commands.sh"),
    include_str!("../../scripts/lab-xen.py"),
);

/// The code that makes them; part of the cache's key, too.
pub(super) const CODE: &str = concat!(
    include_str!("initramfs.rs"),
    include_str!("cpio.rs"),
    include_str!("guest_fio.rs"),
    include_str!("pcifront.rs"),
    include_str!("root_tar.rs")
);

/// Programs that guests get beside [`fio`](guest_fio).
pub(super) const GUEST_PROGRAMS: &[&str] = &["/usr/sbin/mke2fs", "/usr/sbin/e2fsck", "/usr/bin/dd"];

/// The root's file that lists the libraries of these.
pub(super) const GUEST_LIBRARIES: &str = "lab-libraries";

/// The first program of a guest.
pub(super) const GUEST_INIT: &str = concat!(
    include_str!("../../scripts/guest-init.sh"),
    include_str!("../../scripts/console-commands.sh"),
);

/// Modules that dom0 needs to find its root disk. `crc32c_generic` is ext4's soft dependency.
const DOM0_MODULES: &[&str] = &["virtio_pci", "virtio_blk", "crc32c_generic", "ext4"];

/// Modules that dom0 also needs where Bochs, not QEMU, provides the disk.
const LATER_DOM0_MODULES: &[&str] = &["ata_piix", "sd_mod"];

/// Modules that a guest needs for its disks.
const GUEST_MODULES: &[&str] = &["xen-blkfront", "crc32c_generic", "ext4"];

/// Modules that a guest may load later: the bench's disks without a backend.
const LATER_GUEST_MODULES: &[&str] = &["null_blk", "xen-pcifront", "nvme"];

/// Modules that a lean guest needs for its disks.
const LEAN_GUEST_MODULES: &[&str] = &["xen-blkfront"];

/// dom0's archive: just enough to mount the root disk.
pub fn dom0(tar: &RootTar, version: &str) -> Result<Vec<u8>> {
    let mut cpio = base(tar, include_str!("../../scripts/dom0-early.sh"))?;
    let script = include_str!("../../scripts/dom0-init.sh");
    cpio.file("dom0-init.sh", 0o755, script.as_bytes());
    let tool = include_str!("../../scripts/lab-xen.py");
    cpio.file("lab-xen", 0o755, tool.as_bytes());
    add_modules(&mut cpio, tar, version, DOM0_MODULES, AT_BOOT)?;
    add_modules(&mut cpio, tar, version, LATER_DOM0_MODULES, LATER)?;
    Ok(cpio.finish())
}

/// A guest's archive: all it ever runs. Neither archive is compressed, because unpacking costs an
/// emulated processor more than reading. What is compiled for it is made in `dir`.
pub fn guest(tar: &RootTar, version: &str, dir: &Path) -> Result<Vec<u8>> {
    let mut cpio = base(tar, GUEST_INIT)?;
    add_modules(&mut cpio, tar, version, GUEST_MODULES, AT_BOOT)?;
    add_modules(&mut cpio, tar, version, LATER_GUEST_MODULES, LATER)?;
    add_programs(&mut cpio, tar, GUEST_PROGRAMS, GUEST_LIBRARIES)?;
    guest_fio::add(&mut cpio, tar, dir)?;
    cpio.symlink("usr/sbin/mkfs.ext4", "mke2fs");
    cpio.file("etc/mke2fs.conf", 0o644, &tar.read("etc/mke2fs.conf")?.0);
    Ok(cpio.finish())
}

/// A lean guest's archive: busybox and the block frontend.
pub fn lean_guest(tar: &RootTar, version: &str) -> Result<Vec<u8>> {
    let mut cpio = base(tar, GUEST_INIT)?;
    add_modules(&mut cpio, tar, version, LEAN_GUEST_MODULES, AT_BOOT)?;
    Ok(cpio.finish())
}

/// Makes the start of every archive: an init script and busybox.
pub(super) fn base(tar: &RootTar, init: &str) -> Result<Cpio> {
    let mut cpio = Cpio::default();
    // The kernel opens it before any script runs.
    cpio.char_device("dev/console", 5, 1);
    cpio.file("init", 0o755, init.as_bytes());
    let (busybox, _) = tar.read("bin/busybox")?;
    cpio.file("bin/busybox", 0o755, &busybox);
    Ok(cpio)
}

/// The version of the root's kernel, as its files and folders are called.
pub(super) fn kernel_version(tar: &RootTar) -> Result<String> {
    tar.list("boot")?
        .into_iter()
        .find_map(|name| name.strip_prefix("vmlinuz-").map(str::to_owned))
        .context("the root has no kernel")
}

/// Adds programs, and the libraries that the root's file `list` has for them.
pub(super) fn add_programs(
    cpio: &mut Cpio,
    tar: &RootTar,
    programs: &[&str],
    list: &str,
) -> Result<()> {
    let mut files = tar.libraries(list)?;
    files.extend(programs.iter().map(|&program| program.to_owned()));
    for path in files {
        let (data, mode) = tar.read(&path)?;
        cpio.file(&path, mode, &data);
    }
    Ok(())
}

/// The file that has the paths of the modules that init loads, and of those that may be loaded later.
pub(super) const AT_BOOT: &str = "modules.order";
pub(super) const LATER: &str = "modules.later";

/// Adds modules with all that they depend on, and their paths in loading order in the file `list`.
pub(super) fn add_modules(
    cpio: &mut Cpio,
    tar: &RootTar,
    version: &str,
    wanted: &[&str],
    list: &str,
) -> Result<()> {
    let top = format!("usr/lib/modules/{version}");
    let top = if tar.has_file(&format!("{top}/modules.dep")) {
        top
    } else {
        format!("lib/modules/{version}")
    };
    let (dep, _) = tar
        .read(&format!("{top}/modules.dep"))
        .context("the root's kernel has no module index")?;
    let dep = String::from_utf8_lossy(&dep).into_owned();
    let mut order = String::new();
    for path in load_order(&dep, wanted) {
        let (mut data, _) = tar.read(&format!("{top}/{path}"))?;
        if path.ends_with(".xz") {
            data = unpack::any(&data).with_context(|| format!("cannot unpack {path}"))?;
        }
        let place = format!("/modules/{}", path.trim_end_matches(".xz"));
        if place.ends_with(pcifront::FILE)
            && let Some(mended) = pcifront::mended(&data)
        {
            data = mended;
        }
        cpio.file(&place, 0o644, &data);
        order += &format!("{place}\n");
    }
    cpio.file(list, 0o644, order.as_bytes());
    Ok(())
}

/// Paths of the wanted modules and their dependencies, each after what it needs. A module that the
/// index lacks is built into the kernel.
fn load_order(dep: &str, wanted: &[&str]) -> Vec<String> {
    let plain = |name: &str| name.replace('-', "_");
    let mut order: Vec<String> = Vec::new();
    for &module in wanted {
        let line = dep
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(path, _)| {
                let file = path.rsplit('/').next().unwrap_or(path);
                let stem = file.split('.').next().unwrap_or(file);
                plain(stem) == plain(module)
            });
        let Some((path, needs)) = line else { continue };
        // depmod lists the nearest dependency first.
        let all = needs.split_whitespace().rev().chain([path]);
        for path in all {
            if !order.iter().any(|known| known == path) {
                order.push(path.to_owned());
            }
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_load_after_what_they_need() {
        let dep = "kernel/fs/ext4/ext4.ko: kernel/lib/crc16.ko kernel/fs/jbd2/jbd2.ko\n\
                   kernel/lib/crc16.ko:\n\
                   kernel/fs/jbd2/jbd2.ko:\n\
                   kernel/drivers/block/xen-blkfront.ko.xz:\n";
        assert_eq!(
            load_order(dep, &["xen_blkfront", "built_in", "ext4"]),
            [
                "kernel/drivers/block/xen-blkfront.ko.xz",
                "kernel/fs/jbd2/jbd2.ko",
                "kernel/lib/crc16.ko",
                "kernel/fs/ext4/ext4.ko"
            ]
        );
    }
}
