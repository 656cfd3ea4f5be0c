//! The places of the lab's files.

use std::path::{Path, PathBuf};

/// Returns the root of the checkout.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("ci/ lies in the workspace")
        .to_path_buf()
}

/// Returns the folder in which cargo builds.
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// Returns `target/lab`: logs, instances and the cache. It does not follow `CARGO_TARGET_DIR`, so that every build of
/// the lab finds the one cache.
pub fn lab() -> PathBuf {
    root().join("target/lab")
}

/// Returns the folder of downloaded and assembled host images.
pub fn cache() -> PathBuf {
    lab().join("cache")
}
