//! The initramfs of a Linux driver domain, Bulkhead's nearest peer: Debian's kernel, xen-blkback over a
//! RAM disk, over a disk of its own or over a device that is passed through, and `xl devd`.

use super::initramfs::{self, base};
use super::root_tar::RootTar;
use super::{HostImage, complete, key};
use anyhow::{Context, Result};
use std::fs;
use std::path::PathBuf;

/// The programs it runs, as patterns for a shell.
pub(super) const PROGRAMS: &[&str] = &["/usr/lib/xen-*/bin/xl", "/usr/bin/xenstore", NBD_CLIENT];

/// Has the kernel connect to servers of disks on the network.
const NBD_CLIENT: &str = "/usr/sbin/nbd-client";

/// The root's file that lists the libraries of these.
pub(super) const LIBRARIES: &str = "lab-driver-libraries";

const MODULES: &[&str] = &[
    "xen-evtchn",
    "xen-gntdev",
    "xen-gntalloc",
    "xen-privcmd",
    "xenfs",
    "xen-blkfront",
    "xen-blkback",
    "brd",
];

/// Those that it loads if it has a device passed through.
const DEVICE_MODULES: &[&str] = &["xen-pcifront", "nvme"];

/// Those that it loads if it has a network interface.
const NETWORK_MODULES: &[&str] = &["xen-netfront", "nbd"];

/// The file with the paths of these.
const NETWORK: &str = "modules.network";

const INIT: &str = concat!(
    include_str!("../../scripts/driver-init.sh"),
    include_str!("../../scripts/console-commands.sh"),
);
const HOTPLUG: &str = include_str!("../../scripts/driver-hotplug.sh");

/// The files of the cache that a Linux driver domain boots.
#[derive(Clone, Debug)]
pub struct LinuxDriverDomain {
    /// Its initramfs. Its kernel is the guests'.
    pub initramfs: PathBuf,
}

/// Makes it out of a host's root in a folder of the cache, unless the cache has it.
pub fn ensure(host: &HostImage, say: &dyn Fn(&str)) -> Result<LinuxDriverDomain> {
    let root = host.disk.parent().context("the root disk has no folder")?;
    let root_name = root.to_string_lossy();
    let code = include_str!("linux_driver_domain.rs");
    let key = key(&[&root_name, INIT, HOTPLUG, code, initramfs::CODE]);
    let dir = crate::workspace::cache().join(format!("driver-{key}"));
    complete(&dir, |dir| {
        say("making the Linux driver domain's initramfs");
        let archive = archive(&RootTar::open(&root.join("root.tar"))?)?;
        fs::write(dir.join("initramfs"), archive).context("cannot write the initramfs")
    })?;
    Ok(LinuxDriverDomain {
        initramfs: dir.join("initramfs"),
    })
}

fn archive(tar: &RootTar) -> Result<Vec<u8>> {
    let mut cpio = base(tar, INIT)?;
    let version = initramfs::kernel_version(tar)?;
    initramfs::add_modules(&mut cpio, tar, &version, MODULES, initramfs::AT_BOOT)?;
    initramfs::add_modules(&mut cpio, tar, &version, DEVICE_MODULES, initramfs::LATER)?;
    initramfs::add_modules(&mut cpio, tar, &version, NETWORK_MODULES, NETWORK)?;
    initramfs::add_programs(&mut cpio, tar, &[], LIBRARIES)?;
    let xen = tar
        .list("usr/lib")?
        .into_iter()
        .find(|name| name.starts_with("xen-") && tar.has_file(&format!("usr/lib/{name}/bin/xl")))
        .context("the root has no xl")?;
    cpio.file(
        "usr/bin/xl",
        0o755,
        &tar.read(&format!("usr/lib/{xen}/bin/xl"))?.0,
    );
    cpio.file("usr/bin/xenstore", 0o755, &tar.read("usr/bin/xenstore")?.0);
    cpio.file("usr/sbin/nbd-client", 0o755, &tar.read(NBD_CLIENT)?.0);
    // The program goes by what it is called.
    for verb in ["read", "write"] {
        cpio.symlink(&format!("usr/bin/xenstore-{verb}"), "xenstore");
    }
    cpio.file("etc/xen/xl.conf", 0o644, b"");
    cpio.file("etc/xen/scripts/block", 0o755, HOTPLUG.as_bytes());
    Ok(cpio.finish())
}
