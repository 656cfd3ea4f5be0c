//! The files with which a guest starts a second kernel by itself: `kexec`, that kernel, and its initramfs.

use super::cpio::Cpio;
use super::initramfs;
use super::root_tar::RootTar;
use anyhow::Result;

/// The archive's name in the folder that dom0 sees as `/guest`.
pub const FILE: &str = "second-kernel.cpio";

/// Debian's.
pub(super) const PROGRAM: &str = "/usr/sbin/kexec";

/// The root's file that lists its libraries.
pub(super) const LIBRARIES: &str = "lab-kexec-libraries";

/// The archive, for a guest that unpacks it below `/`: the program, and `vmlinuz` and `initramfs` for it.
pub(super) fn archive(tar: &RootTar, kernel: &[u8], initramfs: &[u8]) -> Result<Vec<u8>> {
    let mut cpio = Cpio::default();
    initramfs::add_programs(&mut cpio, tar, &[PROGRAM], LIBRARIES)?;
    cpio.file("vmlinuz", 0o644, kernel);
    cpio.file("initramfs", 0o644, initramfs);
    Ok(cpio.finish_as_disk())
}
