//! The initramfs of a Linux domain in which the bench's NBD server runs: Debian's kernel, a network interface, and nbdkit
//! with a disk in its memory.

use super::initramfs::{self, base};
use super::root_tar::RootTar;
use super::{HostImage, complete, key};
use anyhow::{Context, Result};
use std::fs;
use std::path::PathBuf;

/// The server.
const NBDKIT: &str = "/usr/bin/nbdkit";

/// What it loads for a disk in its memory.
pub const MEMORY_PLUGIN: &str = "/usr/lib/x86_64-linux-gnu/nbdkit/plugins/nbdkit-memory-plugin.so";

/// The programs it runs.
pub(super) const PROGRAMS: &[&str] = &[NBDKIT, MEMORY_PLUGIN];

/// The root's file that lists the libraries of these.
pub(super) const LIBRARIES: &str = "lab-nbd-server-libraries";

const MODULES: &[&str] = &["xen-netfront"];

/// Makes it out of a host's root in a folder of the cache, unless the cache has it.
pub fn ensure(host: &HostImage, say: &dyn Fn(&str)) -> Result<PathBuf> {
    let root = host.disk.parent().context("the root disk has no folder")?;
    let root_name = root.to_string_lossy();
    let code = include_str!("nbd_server_domain.rs");
    let key = key(&[&root_name, code, initramfs::CODE, initramfs::SOURCES]);
    let dir = crate::workspace::cache().join(format!("nbd-server-{key}"));
    complete(&dir, |dir| {
        say("making the initramfs of the NBD server's domain");
        let archive = archive(&RootTar::open(&root.join("root.tar"))?)?;
        fs::write(dir.join("initramfs"), archive).context("cannot write the initramfs")
    })?;
    Ok(dir.join("initramfs"))
}

fn archive(tar: &RootTar) -> Result<Vec<u8>> {
    let mut cpio = base(tar, initramfs::GUEST_INIT)?;
    let version = initramfs::kernel_version(tar)?;
    initramfs::add_modules(&mut cpio, tar, &version, MODULES, initramfs::AT_BOOT)?;
    initramfs::add_programs(&mut cpio, tar, PROGRAMS, LIBRARIES)?;
    Ok(cpio.finish())
}
