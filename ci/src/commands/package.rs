//! `cargo lab package`: the Debian package.

use super::build;
use crate::image::packages;
use crate::{package, workspace};
use anyhow::Result;
use std::fs;
use std::path::PathBuf;

/// Builds the unikernel without TLS and with it, unless they are given, and the package of both; the last line is the
/// package's path.
pub fn run(elf: Option<PathBuf>, tls_elf: Option<PathBuf>) -> Result<()> {
    packages::ensure_for_packaging()?;
    package::check_manual()?;
    let elf = elf.map_or_else(build::build, Ok)?;
    let tls_elf = tls_elf.map_or_else(build::build_tls, Ok)?;
    let dir = workspace::lab().join("package");
    fs::create_dir_all(&dir)?;
    let package = package::build(&elf, &tls_elf, &dir)?;
    println!("{}", package.display());
    Ok(())
}
