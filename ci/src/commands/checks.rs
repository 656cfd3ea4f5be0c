//! The checks that need no Xen: format, lints, unit and property tests, documentation.

use crate::process;
use crate::workspace;
use anyhow::{Context, Result};
use std::process::{Command, Stdio};
use std::time::Instant;

/// A check: its name, cargo's arguments, and an addition to the environment.
struct Check {
    name: &'static str,
    args: &'static [&'static str],
    env: Option<(&'static str, &'static str)>,
}

const fn check(name: &'static str, args: &'static [&'static str]) -> Check {
    Check {
        name,
        args,
        env: None,
    }
}

const FORMAT: Check = check("format", &["fmt", "--all", "--check"]);

const LINTS: Check = check(
    "lints",
    &[
        "clippy",
        "--quiet",
        "--workspace",
        "--all-targets",
        "--",
        "--deny",
        "warnings",
    ],
);

const UNIKERNEL_LINTS: Check = check(
    "lints of the unikernel",
    &[
        "clippy",
        "--quiet",
        "--package",
        "bulkhead-blkback",
        "--bin",
        "bulkhead",
        "--features",
        "unikernel",
        "--profile",
        "unikernel",
        "--target",
        "x86_64-unknown-linux-gnu",
        "--",
        "--deny",
        "warnings",
    ],
);

const NEXTEST: Check = check(
    "tests",
    &["nextest", "run", "--workspace", "--status-level", "fail"],
);

const TESTS: Check = check(
    "tests",
    &[
        "test",
        "--quiet",
        "--workspace",
        "--lib",
        "--bins",
        "--tests",
        "--examples",
    ],
);

const DOCTESTS: Check = check(
    "documentation tests",
    &["test", "--quiet", "--workspace", "--doc"],
);

const DOCS: Check = Check {
    name: "documentation",
    args: &[
        "doc",
        "--quiet",
        "--workspace",
        "--no-deps",
        "--document-private-items",
    ],
    env: Some(("RUSTDOCFLAGS", "--deny warnings")),
};

/// Runs all of them; the names of those that failed, and how many there were.
pub fn run() -> Result<(Vec<&'static str>, usize)> {
    let tests = if has_nextest() { NEXTEST } else { TESTS };
    let checks = [FORMAT, LINTS, UNIKERNEL_LINTS, tests, DOCTESTS, DOCS];
    let mut failed = Vec::new();
    for check in &checks {
        println!("check: {}", check.name);
        let start = Instant::now();
        let mut command = Command::new(process::cargo());
        command
            .args(check.args)
            .envs(check.env)
            .current_dir(workspace::root())
            .stdin(Stdio::null());
        let status = command.status().context("cannot start cargo")?;
        let seconds = start.elapsed().as_secs_f32();
        if status.success() {
            println!("passed {} ({seconds:.1} s)", check.name);
        } else {
            println!("FAILED {} ({seconds:.1} s)", check.name);
            failed.push(check.name);
        }
    }
    Ok((failed, checks.len()))
}

fn has_nextest() -> bool {
    Command::new(process::cargo())
        .args(["nextest", "--version"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
