//! Passes on the link arguments of a bootable ELF: to our own demo directly, to every other binary's build script as
//! metadata (`DEP_BULKHEAD_KERNEL_LINK_ARGS`, separated by the unit separator U+001F). Names the commit from which the
//! ELF is built, which it logs when it boots.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Folders of the workspace from which nothing gets into the ELF.
const ELSEWHERE: [&str; 4] = ["ci", "docs", "examples", "fuzz"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=link.ld");
    let folder = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let script = format!("-Wl,-T,{}", folder.join("link.ld").display());
    let args = [
        // No C runtime: the entry points are ours.
        "-nostartfiles",
        "-nostdlib",
        // An ELF that needs no relocation: the compiler's position-independent code is fine.
        "-static",
        "-no-pie",
        "-Wl,--build-id=none",
        // Xen copies the parts to where they belong: they need no alignment in the file.
        "-Wl,-z,max-page-size=16",
        "-Wl,-z,norelro",
        &script,
    ];
    println!("cargo::metadata=link_args={}", args.join("\u{1f}"));
    if env::var_os("CARGO_FEATURE_UNIKERNEL").is_some() {
        for arg in args {
            println!("cargo::rustc-link-arg-bins={arg}");
        }
        let commit = commit(folder.parent().expect("a workspace"));
        let commit = commit.as_deref().unwrap_or("unknown");
        println!("cargo::rustc-env=BULKHEAD_COMMIT={commit}");
    }
}

/// Returns the commit that is checked out, marked if a file that becomes part of the ELF differs from it; `None`
/// without git.
fn commit(workspace: &Path) -> Option<String> {
    let commit = git(workspace, ["rev-parse", "--short=12", "HEAD"])?;
    // Written by whatever moves HEAD.
    let moved = git(workspace, ["rev-parse", "--git-path", "logs/HEAD"])?;
    println!(
        "cargo::rerun-if-changed={}",
        workspace.join(moved).display()
    );
    let mut status = vec!["status", "--porcelain", "--untracked-files=no", "--"];
    let parts = parts(workspace);
    status.extend(parts.iter().map(String::as_str));
    for part in &parts {
        println!("cargo::rerun-if-changed={}", workspace.join(part).display());
    }
    let dirty = git(workspace, status).is_none_or(|changes| !changes.is_empty());
    Some(if dirty { commit + "-dirty" } else { commit })
}

/// Returns the files of the workspace from which the ELF is made.
fn parts(workspace: &Path) -> Vec<String> {
    let mut parts = vec!["Cargo.toml".to_owned(), "Cargo.lock".to_owned()];
    for entry in fs::read_dir(workspace).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !ELSEWHERE.contains(&&*name) && entry.path().join("Cargo.toml").exists() {
            parts.push(name + "/src");
        }
    }
    parts.retain(|part| workspace.join(part).exists());
    parts.sort();
    parts
}

fn git(workspace: &Path, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Option<String> {
    let output = Command::new("git")
        .arg("-C")
        .arg(workspace)
        .args(args)
        .output();
    let output = output.ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
