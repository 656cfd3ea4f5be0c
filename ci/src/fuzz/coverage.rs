//! The instrumentation of each crate. cargo has one set of flags for all crates, so it calls this
//! program in place of the compiler (`RUSTC_WORKSPACE_WRAPPER`), which adds each crate's own flags.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Set for the processes that cargo starts in place of the compiler.
pub const IS_COMPILER: &str = "BULKHEAD_FUZZ_COMPILER";

/// Counts the edges between basic blocks that an input takes.
const EDGES: [&str; 4] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
];

/// Shows libFuzzer the operands of each comparison, which it puts into inputs.
const COMPARISONS: [&str; 1] = ["-Cllvm-args=-sanitizer-coverage-trace-compares"];

/// The crates that read foreign data: they are to meet the values with which they compare it.
const PARSERS: [&str; 17] = [
    "bulkhead_blkback",
    "bulkhead_blkfront",
    "bulkhead_dma",
    "bulkhead_grant",
    "bulkhead_images",
    "bulkhead_nbd",
    "bulkhead_net",
    "bulkhead_nvme",
    "bulkhead_ring",
    "bulkhead_stream",
    "bulkhead_tls",
    "bulkhead_virtio",
    "bulkhead_upgrade",
    "bulkhead_volumes",
    "bulkhead_xen",
    "bulkhead_xenbus",
    "bulkhead_xenstore_client",
];

/// The only crates whose edges are counted. The generic code of the crates above is compiled where its types are
/// chosen, which is here.
const CARRIERS: [&str; 4] = [
    "bulkhead_blkback_testkit",
    "bulkhead_executor",
    "bulkhead_fuzz",
    "bulkhead_net_testing",
];

/// Returns the flags of a crate. Other crates have none: faults of the simulated Xen are not searched for.
fn flags(name: &str) -> Vec<&'static str> {
    if PARSERS.contains(&name) {
        [&EDGES[..], &COMPARISONS].concat()
    } else if CARRIERS.contains(&name) {
        EDGES.to_vec()
    } else {
        Vec::new()
    }
}

/// Returns a name for the choices made here, so that cargo rebuilds crates that were built with other
/// choices.
pub fn fingerprint() -> String {
    let crates = PARSERS.iter().chain(&CARRIERS);
    let decided = crates.map(|name| format!("{name}{}", flags(name).len()));
    format!(
        "--cfg fuzz_coverage=\"{}\"",
        decided.collect::<Vec<_>>().join("-")
    )
}

/// Copies this program to `folder`, where cargo finds it as the compiler, and returns its path. The file from which it
/// was started may be gone: the checks before build it anew.
pub fn install(folder: &Path) -> std::io::Result<PathBuf> {
    let compiler = folder.join("compiler");
    // One that runs cannot be written to.
    if compiler.exists() {
        fs::remove_file(&compiler)?;
    }
    fs::copy("/proc/self/exe", &compiler)?;
    Ok(compiler)
}

/// Becomes the compiler, with the flags of the crate that it is to compile, if cargo has started this program for that.
/// Returns an error if the compiler cannot be started, and `None` if cargo has not started it for that.
pub fn become_compiler() -> Option<std::io::Error> {
    env::var_os(IS_COMPILER)?;
    let mut arguments = env::args_os().skip(1);
    let compiler = arguments.next()?;
    let arguments: Vec<OsString> = arguments.collect();
    let name = arguments.iter().skip_while(|word| *word != "--crate-name");
    let name = name.take(2).last().and_then(|name| name.to_str());
    let own = flags(name.unwrap_or_default());
    Some(Command::new(compiler).args(&arguments).args(own).exec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace;
    use std::os::unix::fs::PermissionsExt;

    /// Set for the copy of this test that is to remove itself.
    const REMOVED: &str = "BULKHEAD_TEST_REMOVED_PROGRAM";

    #[test]
    fn a_program_that_was_removed_since_it_was_started_is_installed() {
        let name =
            "fuzz::coverage::tests::a_program_that_was_removed_since_it_was_started_is_installed";
        if let Some(folder) = env::var_os(REMOVED) {
            fs::remove_file(env::current_exe().unwrap()).unwrap();
            let installed = install(Path::new(&folder)).unwrap();
            let mode = fs::metadata(installed).unwrap().permissions().mode();
            assert_eq!(mode & 0o111, 0o111);
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("started");
        fs::copy(env::current_exe().unwrap(), &copy).unwrap();
        let status = Command::new(&copy)
            .args(["--exact", name])
            .env(REMOVED, folder.path())
            .status()
            .unwrap();
        assert!(status.success());
        assert!(!copy.exists() && folder.path().join("compiler").exists());
    }

    #[test]
    fn parsers_are_watched_closely_and_the_simulated_xen_not_at_all() {
        assert!(flags("bulkhead_ring").contains(&COMPARISONS[0]));
        assert_eq!(flags("bulkhead_fuzz"), EDGES);
        assert!(flags("bulkhead_xen_sim").is_empty());
        assert!(flags("build_script_build").is_empty());
    }

    #[test]
    fn every_crate_that_is_named_is_one_of_the_workspace() {
        let lock = fs::read_to_string(workspace::root().join("Cargo.lock")).unwrap();
        for name in PARSERS.iter().chain(&CARRIERS) {
            let package = name.replace('_', "-");
            assert!(lock.contains(&format!("name = \"{package}\"")), "{name}");
        }
    }
}
