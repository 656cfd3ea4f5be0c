//! Small C libraries of the lab's own, compiled by the machine's compiler and kept in the cache.

use crate::workspace;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// Compiles a C source, unless the cache has it. Returns the library's path.
pub fn build(name: &str, source: &str) -> Result<PathBuf> {
    let file = workspace::cache().join(format!("{name}.c"));
    let library = file.with_extension("so");
    if library.exists() && fs::read_to_string(&file).is_ok_and(|text| text == source) {
        return Ok(library);
    }
    fs::create_dir_all(workspace::cache())?;
    fs::write(&file, source)?;
    let status = Command::new("cc")
        .args(["-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o"])
        .args([&library, &file])
        .status()
        .context("cannot start cc")?;
    ensure!(status.success(), "cc cannot compile {name}.c");
    Ok(library)
}
