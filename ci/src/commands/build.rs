//! `cargo lab build`: the unikernel, a stripped ELF that Xen boots.

use crate::process;
use crate::system_calls;
use crate::workspace;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The largest ELF that is accepted. A block frontend, a network frontend with TCP/IP and the client of NBD servers on
/// it, a PCI frontend and the drivers of NVMe controllers and of virtio-blk devices have state machines of their own,
/// and the tables of disks have readers; starting again in place after a crash, with upgrades, takes 90 KB. Before that
/// was added, the limit was 1 MiB, because of which TLS became an ELF of its own.
const SIZE_LIMIT: u64 = 1120 << 10;

/// The largest ELF that serves RAM images and `null:` alone (`--no-default-features`).
const SMALLEST_LIMIT: u64 = 400 << 10;

/// The largest ELF with TLS, which is an ELF of its own.
const TLS_LIMIT: u64 = 2048 << 10;

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Codegen options of the ELF alone. As it is linked as a whole (`lto`), those of the last crate apply to all. Cargo's
/// configuration has no place for them: its settings for the target would apply to build scripts and tests, too.
const CODEGEN: [&str; 6] = [
    // It runs where it was linked, below 2 GiB: an address is a number of four bytes, and what holds addresses (tables of
    // methods, places of panics) is constant.
    "-C",
    "relocation-model=static",
    // A table has eight bytes for each case then. A few comparisons take less.
    "-C",
    "llvm-args=-min-jump-table-entries=8",
    // Instructions that occur in several functions are kept once, and called. The ELF gets 5 % smaller. The request path
    // executes 3 to 5 % more instructions of its own, which is less than a hundredth of what a request costs with Xen's.
    "-C",
    "llvm-args=-enable-machine-outliner=always",
];

/// The compiler asks LLVM to put closures where they are called, up to 325 instructions of its own kind, and takes the
/// bodies of async functions for closures: most would be in each of their callers. With this, they count as any other
/// function does; functions of the request path that are to be inlined nevertheless say `always`. It has an effect before the
/// crates are linked, too, so that it is for all of them.
const INLINING: &str = "llvm-args=-inlinehint-threshold=50";

/// Returns cargo's configuration for all crates that become part of the ELF. Build scripts do not get it, as a target is
/// named.
fn configuration() -> String {
    let mut flags = vec!["-C".to_owned(), INLINING.to_owned()];
    // Panic messages name the files of dependencies, wherever cargo keeps them, by their crate's name and version.
    for sources in workspace::registry_sources() {
        flags.push(format!("--remap-path-prefix={}/=", sources.display()));
    }
    format!("target.{TARGET}.rustflags={flags:?}")
}

/// Checks a file that an option names, so that a mistake is seen before a host is booted.
pub fn existing_file(path: &str) -> Result<PathBuf, String> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => Ok(PathBuf::from(path)),
        Ok(_) => Err("this is not a file".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Builds the ELF and returns its path.
pub fn build() -> Result<PathBuf> {
    let elf = build_binary("bulkhead-blkback", "bulkhead", "unikernel", &[])?;
    ensure_size(&elf, SIZE_LIMIT)?;
    system_calls::ensure_none(&elf)?;
    Ok(elf)
}

/// Builds the ELF with TLS and returns its path. It is installed as `bulkhead-tls`.
pub fn build_tls() -> Result<PathBuf> {
    let (package, name) = ("bulkhead-blkback", "bulkhead");
    let elf = build_binary(package, name, "unikernel-tls", &["--features", "tls"])?;
    ensure_size(&elf, TLS_LIMIT)?;
    // Random numbers are what libraries ask an operating system for.
    system_calls::ensure_none(&elf)?;
    Ok(elf)
}

/// Checks that the ELF is small without the stores that can be left out. [`build`] builds the whole one again.
pub fn check_smallest() -> Result<()> {
    let (package, name) = ("bulkhead-blkback", "bulkhead");
    let elf = build_binary(package, name, "unikernel", &["--no-default-features"])?;
    ensure_size(&elf, SMALLEST_LIMIT)
}

fn ensure_size(elf: &Path, limit: u64) -> Result<()> {
    let size = fs::metadata(elf)?.len();
    ensure!(
        size <= limit,
        "{} has {size} bytes, more than {limit}",
        elf.display()
    );
    Ok(())
}

/// Builds the demo of the runtime, `kernel/demo/hello.rs`, and returns its path.
pub fn build_demo() -> Result<PathBuf> {
    build_binary("bulkhead-kernel", "hello", "unikernel", &[])
}

/// Builds one of the examples in `examples/`, and returns its path.
pub fn build_example(name: &str) -> Result<PathBuf> {
    build_binary("bulkhead-examples", name, "unikernel", &[])
}

fn build_binary(package: &str, name: &str, profile: &str, more: &[&str]) -> Result<PathBuf> {
    let mut command = Command::new(process::cargo());
    command
        .args(["--config", &configuration()])
        .args(["rustc", "--quiet", "--profile", profile, "--target", TARGET])
        .args(["--package", package, "--bin", name])
        .args(["--features", "unikernel"])
        .args(more)
        .arg("--")
        .args(CODEGEN)
        .current_dir(workspace::root())
        .stdin(Stdio::null());
    let status = command.status().context("cannot start cargo")?;
    ensure!(status.success(), "building {name} failed");
    let elf = workspace::target().join(TARGET).join(profile).join(name);
    ensure!(elf.is_file(), "cargo built no {}", elf.display());
    Ok(elf)
}

/// Builds the ELF, with TLS if that is asked for, and prints its path on the last line.
pub fn run(tls: bool) -> Result<()> {
    let elf = if tls { build_tls()? } else { build()? };
    println!("{} KiB", fs::metadata(&elf)?.len().div_ceil(1024));
    println!("{}", elf.display());
    Ok(())
}
