//! The host image: a Debian root with Xen, and the initramfs archives (dom0's and the guests').
//!
//! Two layers, each cached under a key made of everything on which it depends: the root (a download of a minute), and
//! the files that are made from it (seconds).

pub mod cpio;
pub mod ext2;
pub mod guest32;
mod guest_fio;
mod initramfs;
pub mod linux_driver_domain;
pub mod nbd_server_domain;
pub mod packages;
mod pcifront;
pub mod release;
mod root_tar;
mod second_kernel;
mod unpack;

use crate::digest::hex;
use crate::{process, workspace};
use anyhow::{Context, Result};
use release::Release;
use root_tar::RootTar;
pub use second_kernel::FILE as SECOND_KERNEL;
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Paths that dpkg leaves out: documentation, and drivers for hardware that the lab never has.
const EXCLUDED: &[&str] = &[
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/i18n/*",
    "/boot/System.map*",
    // What GRUB would be installed from; its images for Xen's domains lie elsewhere.
    "/usr/lib/grub/*",
    // No initramfs of Debian's is wanted: the lab makes its own.
    "/etc/kernel/postinst.d/initramfs-tools",
    "/lib/modules/*/kernel/sound/*",
    "/lib/modules/*/kernel/drivers/*",
    "/usr/lib/modules/*/kernel/sound/*",
    "/usr/lib/modules/*/kernel/drivers/*",
];

/// Exceptions from [`EXCLUDED`].
const INCLUDED: &[&str] = &[
    "/lib/modules/*/kernel/drivers/ata/ata_piix*",
    "/lib/modules/*/kernel/drivers/ata/libata*",
    "/lib/modules/*/kernel/drivers/block/*",
    "/lib/modules/*/kernel/drivers/char/*",
    "/lib/modules/*/kernel/drivers/dax/dax.*",
    "/lib/modules/*/kernel/drivers/md/dm-mod.*",
    "/lib/modules/*/kernel/drivers/net/xen-*",
    "/lib/modules/*/kernel/drivers/nvme/*",
    "/lib/modules/*/kernel/drivers/pci/xen-*",
    "/lib/modules/*/kernel/drivers/scsi/s*",
    "/lib/modules/*/kernel/drivers/virtio/*",
    "/lib/modules/*/kernel/drivers/xen/*",
    "/usr/lib/modules/*/kernel/drivers/ata/ata_piix*",
    "/usr/lib/modules/*/kernel/drivers/ata/libata*",
    "/usr/lib/modules/*/kernel/drivers/block/*",
    "/usr/lib/modules/*/kernel/drivers/char/*",
    "/usr/lib/modules/*/kernel/drivers/dax/dax.*",
    "/usr/lib/modules/*/kernel/drivers/md/dm-mod.*",
    "/usr/lib/modules/*/kernel/drivers/net/xen-*",
    "/usr/lib/modules/*/kernel/drivers/nvme/*",
    "/usr/lib/modules/*/kernel/drivers/pci/xen-*",
    "/usr/lib/modules/*/kernel/drivers/scsi/s*",
    "/usr/lib/modules/*/kernel/drivers/virtio/*",
    "/usr/lib/modules/*/kernel/drivers/xen/*",
];

/// Programs (as a shell's patterns) that some archive of the lab gets with the shared libraries they need; the root's
/// file of that name lists these.
const PROGRAMS: &[(&str, &[&str])] = &[
    (initramfs::GUEST_LIBRARIES, initramfs::GUEST_PROGRAMS),
    (guest_fio::LIBRARIES, &[guest_fio::PROGRAM]),
    (second_kernel::LIBRARIES, &[second_kernel::PROGRAM]),
    (
        linux_driver_domain::LIBRARIES,
        linux_driver_domain::PROGRAMS,
    ),
    (nbd_server_domain::LIBRARIES, nbd_server_domain::PROGRAMS),
];

/// The files of the cache that a host needs to boot.
#[derive(Clone, Debug)]
pub struct HostImage {
    /// The release of Debian, and so of Xen.
    pub release: Release,
    /// The hypervisor, an uncompressed ELF.
    pub xen: PathBuf,
    /// dom0's kernel.
    pub kernel: PathBuf,
    /// dom0's initramfs.
    pub initramfs: PathBuf,
    /// dom0's root disk.
    pub disk: PathBuf,
    /// A folder shown to dom0 as `/guest`: `vmlinuz`, the same unpacked as `vmlinux`, `initramfs` and
    /// `initramfs-lean` of Linux guests, and [`SECOND_KERNEL`].
    pub guest: PathBuf,
}

/// Returns the image of a release, made or completed first where the cache lacks it. Calls `say` with each step.
pub fn ensure(release: Release, say: &dyn Fn(&str)) -> Result<HostImage> {
    let parts = format!(
        "{:?} {EXCLUDED:?} {INCLUDED:?} {PROGRAMS:?}",
        release.packages()
    );
    let root_key = key(&[&parts, release.suite()]);
    let root_dir = workspace::cache().join(format!("root-{release}-{root_key}"));
    complete(&root_dir, |dir| make_root(release, dir, say))?;

    let boot_key = key(&[
        &root_key,
        initramfs::SOURCES,
        initramfs::CODE,
        include_str!("second_kernel.rs"),
        include_str!("unpack.rs"),
    ]);
    let dir = workspace::cache().join(format!("boot-{release}-{boot_key}"));
    complete(&dir, |dir| make_boot(&root_dir, release, dir, say))?;
    Ok(HostImage {
        release,
        xen: dir.join("xen"),
        kernel: dir.join("guest/vmlinuz"),
        initramfs: dir.join("dom0-initramfs"),
        disk: root_dir.join("root.ext2"),
        guest: dir.join("guest"),
    })
}

/// Makes a folder of the cache in one step: the folder exists whole or not at all.
fn complete(dir: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let partial = dir.with_extension(format!("partial-{}", std::process::id()));
    fs::create_dir_all(&partial)?;
    make(&partial)?;
    match fs::rename(&partial, dir) {
        // Another run was faster.
        Err(_) if dir.is_dir() => Ok(fs::remove_dir_all(&partial)?),
        result => result.with_context(|| format!("cannot create {}", dir.display())),
    }
}

fn make_root(release: Release, dir: &Path, say: &dyn Fn(&str)) -> Result<()> {
    say(&format!(
        "downloading Debian {} with Xen {release}",
        release.suite()
    ));
    let tar = dir.join("root.tar");
    let mut command = Command::new("mmdebstrap");
    command
        .args(["--variant=minbase", "--format=tar"])
        .arg(format!("--include={}", release.packages().join(",")));
    for path in EXCLUDED {
        command.arg(format!("--dpkgopt=path-exclude={path}"));
    }
    for path in INCLUDED {
        command.arg(format!("--dpkgopt=path-include={path}"));
    }
    for (list, programs) in PROGRAMS {
        command.arg(format!(
            "--customize-hook=chroot \"$1\" sh -c 'ldd {}' >\"$1/{list}\"",
            programs.join(" ")
        ));
    }
    command.arg(release.suite()).arg(&tar);
    process::run_logged(&mut command, &dir.join("mmdebstrap.log"))?;

    say("making the root disk");
    const FREE: u64 = 256 << 20;
    const FILES: u64 = 65536;
    ext2::write(
        &dir.join("root.ext2"),
        ext2::Source::Tar(&tar),
        fs::metadata(&tar)?.len() + FREE,
        FILES,
    )
}

fn make_boot(root: &Path, release: Release, dir: &Path, say: &dyn Fn(&str)) -> Result<()> {
    say("making the initramfs archives");
    let tar = RootTar::open(&root.join("root.tar"))?;
    let guest = dir.join("guest");
    fs::create_dir_all(&guest)?;

    let (xen_gz, _) = tar.read(&format!("boot/xen-{release}-amd64.gz"))?;
    fs::write(dir.join("xen"), unpack::any(&xen_gz)?)?;

    let version = initramfs::kernel_version(&tar)?;
    let (bz_image, _) = tar.read(&format!("boot/vmlinuz-{version}"))?;
    fs::write(guest.join("vmlinuz"), &bz_image)?;
    fs::write(guest.join("vmlinux"), unpack::kernel(&bz_image)?)?;

    fs::write(dir.join("dom0-initramfs"), initramfs::dom0(&tar, &version)?)?;
    let archive = initramfs::guest(&tar, &version, dir)?;
    fs::write(guest.join("initramfs"), archive)?;
    let lean = initramfs::lean_guest(&tar, &version)?;
    let second = second_kernel::archive(&tar, &bz_image, &lean)?;
    fs::write(guest.join("initramfs-lean"), lean)?;
    fs::write(guest.join(SECOND_KERNEL), second)?;
    Ok(())
}

fn key(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let mut hex = hex(&hash.finalize());
    hex.truncate(12);
    hex
}
