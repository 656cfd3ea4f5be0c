//! ext2 file systems made without mounting anything.

use crate::process;
use anyhow::Result;
use std::path::Path;
use std::process::Command;

/// The size of a block in bytes.
pub const BLOCK: u64 = 4096;

/// The source of a file's contents.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// A folder of the machine.
    Folder(&'a Path),
    /// A tar archive.
    Tar(&'a Path),
}

/// Makes a file system of `bytes` bytes with room for the given number of files, and leaves a log beside it.
pub fn write(path: &Path, source: Source<'_>, bytes: u64, files: u64) -> Result<()> {
    let (option, from) = match source {
        Source::Folder(folder) => ("-d", folder),
        Source::Tar(tar) => ("-a", tar),
    };
    process::run_logged(
        Command::new("genext2fs")
            .args(["-B", &BLOCK.to_string()])
            .args(["-b", &bytes.div_ceil(BLOCK).to_string()])
            .args(["-N", &files.to_string(), option])
            .arg(from)
            .arg(path),
        &path.with_extension("log"),
    )
}
