//! The checks that need no Xen: format, lints, unit and property tests, documentation.

use crate::process;
use crate::testbed::progress::Progress;
use crate::workspace;
use anyhow::{Context, Result};
use std::fs::{self, File};
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
        "--workspace",
        "--all-targets",
        "--",
        "--deny",
        "warnings",
    ],
);

/// Lints of a binary as it is built for the domain.
macro_rules! elf_lints {
    ($check:literal, $profile:literal, $($what:literal),+) => {
        check(
            $check,
            &[
                "clippy",
                $($what,)+
                "--target",
                "x86_64-unknown-linux-gnu",
                "--profile",
                $profile,
                "--",
                "--deny",
                "warnings",
            ],
        )
    };
}

const UNIKERNEL_LINTS: Check = elf_lints!(
    "unikernel-lints",
    "unikernel",
    "--package=bulkhead-blkback",
    "--bin=bulkhead",
    "--features=unikernel"
);

const SMALLEST_LINTS: Check = elf_lints!(
    "smallest-lints",
    "unikernel",
    "--package=bulkhead-blkback",
    "--bin=bulkhead",
    "--no-default-features",
    "--features=unikernel"
);

const TLS_LINTS: Check = elf_lints!(
    "tls-lints",
    // As above, so that the crates of both are checked once.
    "unikernel",
    "--package=bulkhead-blkback",
    "--bin=bulkhead",
    "--features=unikernel,tls"
);

const EXAMPLES_LINTS: Check = elf_lints!(
    "examples-lints",
    "unikernel",
    "--package=bulkhead-examples",
    "--bins",
    "--features=unikernel"
);

/// The tests of the smallest ELF's request path, which differs: nothing is kept for the time after a crash. What has
/// to do with neither requests nor the ends of disks is the same code, which the other tests have seen.
const SMALLEST_TESTS: Check = check(
    "smallest-tests",
    &[
        "test",
        "--package",
        "bulkhead-blkback",
        "--no-default-features",
        "--no-fail-fast",
        "--lib",
        "--test",
        "backend",
        "--",
        "abis",
        "async_store",
        "bad_requests",
        "barriers",
        "closing",
        "discard",
        "engine",
        "fairness",
        "indexes",
        "lasting",
        "persistent",
        "queues",
        "random",
        "requests_below",
        "rings",
        "smoke",
        "state_machine",
        "unanswered",
        "waiting_store",
    ],
);

const NEXTEST: Check = check(
    "tests",
    &[
        "nextest",
        "run",
        "--workspace",
        "--no-fail-fast",
        "--status-level",
        "fail",
    ],
);

const TESTS: Check = check(
    "tests",
    &[
        "test",
        "--workspace",
        "--no-fail-fast",
        "--lib",
        "--bins",
        "--tests",
        "--examples",
    ],
);

const DOCTESTS: Check = check(
    "doctests",
    &["test", "--workspace", "--no-fail-fast", "--doc"],
);

const DOCS: Check = Check {
    name: "documentation",
    args: &["doc", "--workspace", "--no-deps"],
    env: Some(("RUSTDOCFLAGS", "--deny warnings")),
};

/// The counts of requests that are not kept for the time after a crash.
const INSTRUCTIONS: Check = check(
    "instructions",
    &[
        "bench",
        "--package",
        "bulkhead-blkback",
        "--no-default-features",
        "--bench",
        "instructions",
    ],
);

/// The counts of requests that are kept for the time after a crash, against a baseline of their own.
const RECOVERING_INSTRUCTIONS: Check = check(
    "recovering-instructions",
    &[
        "bench",
        "--package",
        "bulkhead-blkback",
        "--features",
        "recover",
        "--bench",
        "instructions",
    ],
);

/// The numbers of checks, and of the single tests in them, that passed and failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// The number that passed.
    pub passed: usize,
    /// The number that failed.
    pub failed: usize,
    /// The names of the checks in which they failed.
    pub failures: Vec<String>,
}

impl Counts {
    /// Adds other results.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.failures.extend(other.failures);
    }
}

/// The checks that `cargo lab test --long` adds: what differs in the smallest ELF. Its lints are always checked, and
/// it is always built.
const LONG: &[Check] = &[SMALLEST_TESTS, INSTRUCTIONS];

/// Runs the checks, with `long` all of them. Shows the end of the log of each that fails.
pub fn run(long: bool, progress: &Progress) -> Result<Counts> {
    let tests = if has_nextest() { NEXTEST } else { TESTS };
    let dir = workspace::lab().join("checks");
    fs::create_dir_all(&dir)?;
    let mut total = Counts::default();
    let checks = [
        FORMAT,
        LINTS,
        UNIKERNEL_LINTS,
        SMALLEST_LINTS,
        TLS_LINTS,
        EXAMPLES_LINTS,
        tests,
        DOCTESTS,
        DOCS,
        RECOVERING_INSTRUCTIONS,
    ];
    let long = if long { LONG } else { &[] };
    for check in checks.iter().chain(long) {
        progress.line(&format!("check: {}", check.name));
        let start = Instant::now();
        let log = dir.join(format!("{}.log", check.name));
        let out = File::create(&log)?;
        let err = out.try_clone()?;
        let status = Command::new(process::cargo())
            .args(check.args)
            .envs(check.env)
            .env("CARGO_TERM_COLOR", "never")
            .current_dir(workspace::root())
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .status()
            .context("cannot start cargo")?;
        let seconds = start.elapsed().as_secs_f32();
        let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
        let mut counts = count_tests(&text);
        if status.success() {
            progress.line(&format!("passed {} ({seconds:.1} s)", check.name));
            // A check without single tests counts as one.
            counts.passed = counts.passed.max(1);
        } else {
            progress.line(&process::tail(&text, 60));
            progress.line(&format!(
                "FAILED {} ({seconds:.1} s), log: {}",
                check.name,
                log.display()
            ));
            counts.failed = counts.failed.max(1);
            counts.failures.push(check.name.to_owned());
        }
        total.add(counts);
    }
    Ok(total)
}

/// Adds up what nextest (`12 tests run: 11 passed, 1 failed`) or the test harnesses
/// (`test result: ok. 12 passed; 0 failed;`) report.
fn count_tests(log: &str) -> Counts {
    let mut counts = Counts::default();
    for line in log.lines().filter(|line| {
        line.contains("tests run:") || line.contains("test run:") || line.contains("test result:")
    }) {
        let words: Vec<&str> = line
            .split([' ', ',', ';'])
            .filter(|word| !word.is_empty())
            .collect();
        for pair in words.windows(2) {
            let Ok(number) = pair[0].parse::<usize>() else {
                continue;
            };
            match pair[1] {
                "passed" => counts.passed += number,
                "failed" => counts.failed += number,
                // nextest: died of a signal, or took too long.
                "exec" | "timed" => counts.failed += number,
                _ => {}
            }
        }
    }
    counts
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_runners_results_are_counted() {
        let nextest =
            "     Summary [   1.2s] 121 tests run: 119 passed (1 slow), 2 failed, 3 skipped\n";
        assert_eq!(
            count_tests(nextest),
            Counts {
                passed: 119,
                failed: 2,
                ..Counts::default()
            }
        );
        let harness = "test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured\n\
                       test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured\n";
        assert_eq!(
            count_tests(harness),
            Counts {
                passed: 15,
                failed: 1,
                ..Counts::default()
            }
        );
        assert_eq!(count_tests("warning: 12 passed\n"), Counts::default());
    }
}
