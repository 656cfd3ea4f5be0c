//! The crates with which the ELF is linked make no calls to an operating system.

use bulkhead_ci::{process, workspace};
use std::process::Command;

/// Crates that make Linux's system calls, or call C's library for them. The unikernel is built for Linux's target, so
/// that nothing else would show them: a system call has another meaning in the domain, if it has any.
const ASKING: &[&str] = &[
    "getrandom",
    "libc",
    "linux-raw-sys",
    "nix",
    "rustix",
    "syscalls",
];

/// Returns the names of all crates with which a package is linked.
fn linked(package: &str, features: &[&str]) -> Vec<String> {
    let output = Command::new(process::cargo())
        .args([
            "tree",
            "--locked",
            "--edges=normal",
            "--prefix=none",
            "--format={lib}",
        ])
        .args(["--target=x86_64-unknown-linux-gnu", "--package", package])
        .args(features)
        .current_dir(workspace::root())
        .output()
        .expect("cargo starts");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("text");
    let names = text
        .lines()
        .map(|line| line.replace(" (*)", "").replace('_', "-"));
    names.filter(|name| !name.is_empty()).collect()
}

#[test]
fn no_crate_of_the_elf_makes_system_calls() {
    for (package, features, expected) in [
        ("bulkhead-blkback", &["--features=unikernel"][..], "talc"),
        ("bulkhead-blkback", &["--features=unikernel,tls"], "rustls"),
        ("bulkhead-kernel", &["--features=unikernel,random"], "sha2"),
        ("bulkhead-tls", &[], "rustls"),
    ] {
        let names = linked(package, features);
        assert!(names.iter().any(|name| name == expected), "{names:?}");
        let asking: Vec<_> = names
            .iter()
            .filter(|name| ASKING.contains(&name.as_str()))
            .collect();
        assert!(asking.is_empty(), "{package} is linked with {asking:?}");
    }
}
