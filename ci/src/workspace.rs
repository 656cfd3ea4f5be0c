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

/// Returns the folders in which cargo keeps the sources of dependencies, one for each registry.
pub fn registry_sources() -> Vec<PathBuf> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::home_dir().map(|home| home.join(".cargo")));
    let registries = home.map(|home| home.join("registry/src"));
    let entries = registries.and_then(|registries| registries.read_dir().ok());
    let mut folders: Vec<PathBuf> = entries
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    folders.sort();
    folders
}
