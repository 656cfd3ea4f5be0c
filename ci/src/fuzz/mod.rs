//! Fuzzing led by coverage, on the stable toolchain: the targets of `fuzz/` are built with libFuzzer
//! and run one after the other, each for its share of the time.
//!
//! ```text
//!   fuzz/seeds ──unpack-seeds──► target/fuzz/seeds ──┐
//!                                                    ├─► a target ──► target/fuzz/corpus, what it kept
//!   target/fuzz/corpus, of earlier runs ─────────────┘        └─────► target/fuzz/crashes, what failed
//! ```

mod coverage;
mod report;

pub use coverage::become_compiler;
pub use report::{Crash, Outcome, table};

use crate::process;
use crate::workspace;
use anyhow::{Context, Result, bail, ensure};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

/// The flags of all crates. (cargo-fuzz passes the instrumentation by `-Zsanitizer` options, which only a nightly
/// compiler has.)
const RUSTFLAGS: &str = "--cfg fuzzing -Cforce-frame-pointers=yes";

/// The target for which cargo builds. With a target named, build scripts and macros are built without these flags.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";

/// The profile in the workspace's `Cargo.toml`.
const PROFILE: &str = "fuzz";

/// The shares of the time of some targets; the others get 1. These drive whole machines, where an input takes longest
/// and has most to find.
const SHARES: [(&str, u32); 8] = [
    ("backend", 6),
    ("life", 4),
    ("blkfront", 2),
    ("nbd", 2),
    ("net", 2),
    ("nvme", 2),
    ("tls", 2),
    ("virtio", 2),
];

/// The seconds after which an input counts as hanging. One that takes a second is slow.
const LONGEST: u32 = 20;

/// The memory in MiB above which an input fails.
const MOST_MEMORY: u32 = 1024;

/// Length limit of inputs. The part of an input that a target reads is shorter, or repeats itself.
const LONGEST_INPUT: u32 = 4096;

/// Returns `target/fuzz`.
fn folder() -> PathBuf {
    workspace::root().join("target/fuzz")
}

/// Returns the targets: each has its program in `fuzz/fuzz_targets`.
pub fn targets() -> Result<Vec<String>> {
    let programs = workspace::root().join("fuzz/fuzz_targets");
    let mut names = Vec::new();
    for program in fs::read_dir(&programs).context("cannot list the fuzz targets")? {
        let path = program?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.file_stem().unwrap_or_default();
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Returns the targets of these names, or all without any.
pub fn chosen(names: &[String]) -> Result<Vec<String>> {
    let all = targets()?;
    if let Some(unknown) = names.iter().find(|name| !all.contains(name)) {
        bail!(
            "there is no fuzz target {unknown:?}, only {}",
            all.join(", ")
        );
    }
    let wanted = |name: &String| names.is_empty() || names.contains(name);
    Ok(all.into_iter().filter(wanted).collect())
}

/// Returns the time for which each of the targets may run, out of a total.
pub fn shares(targets: &[String], total: Duration) -> Vec<Duration> {
    let share = |name: &String| {
        let own = SHARES.iter().find(|share| share.0 == name);
        own.map_or(1, |share| share.1)
    };
    let all: u32 = targets.iter().map(share).sum();
    let of = |name| (total * share(name) / all.max(1)).max(Duration::from_secs(1));
    targets.iter().map(of).collect()
}

/// Builds the targets, and unpacks their seeds.
pub fn build() -> Result<()> {
    fs::create_dir_all(folder())?;
    let compiler = coverage::install(&folder())?;
    process::run_logged(
        Command::new(process::cargo())
            .args(["build", "--package", "bulkhead-fuzz", "--bins"])
            .args(["--features", "libfuzzer", "--profile", PROFILE])
            .args(["--target", PLATFORM, "--target-dir"])
            .arg(folder())
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env(
                "RUSTFLAGS",
                format!("{RUSTFLAGS} {}", coverage::fingerprint()),
            )
            .env("RUSTC_WORKSPACE_WRAPPER", compiler)
            .env(coverage::IS_COMPILER, "1")
            .current_dir(workspace::root()),
        &folder().join("build.log"),
    )?;
    process::run_logged(
        Command::new(process::cargo())
            .args(["run", "--package", "bulkhead-fuzz"])
            .args(["--example", "unpack-seeds", "--"])
            .arg(folder().join("seeds"))
            .current_dir(workspace::root()),
        &folder().join("seeds.log"),
    )
}

/// Runs a target for that time, or until it fails. `seed` decides on the inputs: with the same seed, a tree is tried
/// with the same inputs, as far as the time suffices. Without one, libFuzzer takes another each time.
pub fn run(target: &str, time: Duration, seed: Option<u32>) -> Result<Outcome> {
    let (corpus, seeds) = (folder().join("corpus"), folder().join("seeds"));
    let (corpus, seeds) = (corpus.join(target), seeds.join(target));
    let found = folder().join("found").join(target);
    for folder in [&corpus, &found] {
        fs::create_dir_all(folder)?;
    }
    let log = folder().join(format!("{target}.log"));
    let arguments = [
        format!("-max_total_time={}", time.as_secs().max(1)),
        format!("-max_len={LONGEST_INPUT}"),
        format!("-artifact_prefix={}/", found.display()),
        "-print_final_stats=1".to_owned(),
        format!("-seed={}", seed.unwrap_or(0)),
    ];
    let folders = [&corpus, &seeds].map(|folder| folder.display().to_string());
    let status = start(target, arguments.iter().chain(&folders), &log)?;
    let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    let mut outcome = Outcome::read(target, &text);
    outcome.corpus = fs::read_dir(&corpus)?.count();
    if !status.success() {
        let Some(input) = report::input_of_crash(&text) else {
            bail!(
                "{target} failed ({status}) and left no input; the end of {}:\n{}",
                log.display(),
                process::tail(&text, 15)
            );
        };
        outcome.crash = Some(keep(target, &input, report::reason(&text))?);
    }
    Ok(outcome)
}

/// Keeps the input that made a target fail, as a text that can be a seed, and tries it once more by itself.
fn keep(target: &str, input: &Path, reason: String) -> Result<Crash> {
    let bytes = fs::read(input).with_context(|| format!("cannot read {}", input.display()))?;
    let crashes = folder().join("crashes");
    fs::create_dir_all(&crashes)?;
    let name = input.file_name().unwrap_or_default().to_string_lossy();
    // `crash-` and the digest that libFuzzer names it by.
    let digest = name.rsplit('-').next().unwrap_or_default();
    let short = &digest[..digest.len().min(12)];
    let text = crashes.join(format!("{target}-{short}.hex"));
    fs::write(&text, report::as_seed(target, &reason, &bytes))?;
    let log = crashes.join(format!("{target}-{short}.log"));
    let again = start(target, [&input.display().to_string()], &log)?;
    Ok(Crash {
        input: text,
        log,
        reason,
        repeats: !again.success(),
        digits: report::in_message(&bytes),
    })
}

/// Runs a target's program, with its output in `log`.
fn start<'a>(
    target: &str,
    arguments: impl IntoIterator<Item = &'a String>,
    log: &Path,
) -> Result<ExitStatus> {
    let program = folder().join(PLATFORM).join(PROFILE).join(target);
    ensure!(program.is_file(), "cargo built no {}", program.display());
    let out = File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
    let err = out.try_clone()?;
    Command::new(&program)
        .arg(format!("-timeout={LONGEST}"))
        .arg(format!("-rss_limit_mb={MOST_MEMORY}"))
        .args(arguments)
        .current_dir(workspace::root())
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .status()
        .with_context(|| format!("cannot start {}", program.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_is_one_that_the_smoke_test_runs() {
        let source = workspace::root().join("fuzz/src/lib.rs");
        let source = fs::read_to_string(source).unwrap();
        let targets = targets().unwrap();
        for target in &targets {
            assert!(source.contains(&format!("(\"{target}\", ")), "{target}");
        }
        for (name, _) in SHARES {
            assert!(targets.iter().any(|target| target == name), "{name}");
        }
    }

    #[test]
    fn a_target_that_there_is_not_is_refused_with_those_that_there_are() {
        let names = |names: &[&str]| {
            chosen(
                &names
                    .iter()
                    .map(|&name| name.to_owned())
                    .collect::<Vec<_>>(),
            )
        };
        assert_eq!(names(&[]).unwrap(), targets().unwrap());
        assert_eq!(names(&["ring", "archive"]).unwrap(), ["archive", "ring"]);
        let error = names(&["rings"]).unwrap_err().to_string();
        assert!(
            error.contains("\"rings\"") && error.contains("archive"),
            "{error}"
        );
    }

    #[test]
    fn the_time_is_shared_out() {
        let targets = ["archive", "backend", "ring"].map(str::to_owned);
        let shares = shares(&targets, Duration::from_secs(80));
        let seconds: Vec<u64> = shares.iter().map(Duration::as_secs).collect();
        assert_eq!(seconds, [10, 60, 10]);
    }
}
