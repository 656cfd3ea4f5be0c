//! Programs that the lab needs on its machine, installed with apt when they are missing.

use crate::bochs::boot_cd;
use crate::process::find_program;
use anyhow::{Context, Result, bail};
use std::process::{Command, Stdio};

/// A program, or a path, and the Debian package that holds it.
const NEEDED: &[(&str, &str)] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("qemu-img", "qemu-utils"),
    ("mmdebstrap", "mmdebstrap"),
    ("genext2fs", "genext2fs"),
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
    ("setpriv", "util-linux"),
    ("cc", "gcc"),
];

/// Programs that only the test suite needs, to count instructions.
const NEEDED_BY_TESTS: &[(&str, &str)] = &[("valgrind", "valgrind")];

/// Programs that only fuzzing needs, to compile libFuzzer.
const NEEDED_BY_FUZZING: &[(&str, &str)] = &[("cc", "gcc"), ("g++", "g++")];

/// Programs that only the Debian package needs; `mandoc` looks for mistakes in the manual page.
const NEEDED_BY_PACKAGING: &[(&str, &str)] = &[("dpkg-deb", "dpkg"), ("mandoc", "mandoc")];

/// Programs that only the scenarios under Bochs need. Some packages hold no program: a file of theirs stands
/// for them.
const NEEDED_BY_BOCHS: &[(&str, &str)] = &[
    ("bochs-bin", "bochs"),
    // Its BIOS, and that of its screen.
    ("/usr/share/bochs/BIOS-bochs-latest", "bochsbios"),
    ("/usr/share/bochs/VGABIOS-lgpl-latest", "vgabios"),
    // A screen that needs no display.
    (
        "/usr/lib/x86_64-linux-gnu/bochs/plugins/libbx_term_gui.so",
        "bochs-term",
    ),
    // What it boots from.
    ("xorriso", "xorriso"),
    (boot_cd::ISOLINUX, "isolinux"),
    (boot_cd::MBOOT, "syslinux-common"),
];

/// Returns the packages whose program is missing here.
fn missing(needed: &[(&str, &'static str)]) -> Vec<&'static str> {
    needed
        .iter()
        .filter(|(program, _)| !find_program(program))
        .map(|&(_, package)| package)
        .collect()
}

/// Installs the programs that the lab lacks, or prints the one command that would.
pub fn ensure() -> Result<()> {
    install(NEEDED)
}

/// Installs the programs that Bochs lacks, or prints the one command that would.
pub fn ensure_for_bochs() -> Result<()> {
    install(NEEDED_BY_BOCHS)
}

/// Installs the programs that fuzzing lacks, or prints the one command that would.
pub fn ensure_for_fuzzing() -> Result<()> {
    install(NEEDED_BY_FUZZING)
}

/// Installs the programs that packaging lacks, or prints the one command that would.
pub fn ensure_for_packaging() -> Result<()> {
    install(NEEDED_BY_PACKAGING)
}

/// Installs the programs that the test suite lacks, with `long` those of all of it, or prints the one command that would.
pub fn ensure_for_tests(long: bool) -> Result<()> {
    let mut all = [NEEDED, NEEDED_BY_TESTS, NEEDED_BY_PACKAGING].concat();
    if long {
        all.extend([NEEDED_BY_FUZZING, NEEDED_BY_BOCHS].concat());
    }
    install(&all)
}

fn install(needed: &[(&str, &'static str)]) -> Result<()> {
    let missing = missing(needed);
    if missing.is_empty() {
        return Ok(());
    }
    let line = format!(
        "apt-get install --yes --no-install-recommends {}",
        missing.join(" ")
    );
    if !is_root() {
        bail!("some programs are missing; run this once:\n\n    sudo {line}\n");
    }
    eprintln!("installing {}", missing.join(", "));
    let first = apt(&["install", "--yes", "--no-install-recommends"], &missing)?;
    if !first {
        // The package lists of a fresh machine are often absent or old.
        apt(&["update"], &[])?;
        if !apt(&["install", "--yes", "--no-install-recommends"], &missing)? {
            bail!("`{line}` failed");
        }
    }
    let still = self::missing(needed);
    if !still.is_empty() {
        bail!("apt-get succeeded, but these are still missing: {still:?}");
    }
    Ok(())
}

fn apt(args: &[&str], packages: &[&str]) -> Result<bool> {
    Ok(Command::new("apt-get")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .arg("--quiet=2")
        .args(args)
        .args(packages)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .context("cannot start apt-get: the lab needs Debian or a child of it")?
        .success())
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}
