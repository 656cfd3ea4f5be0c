//! `cargo lab fuzz`: the fuzz targets with libFuzzer, for minutes or for hours.

use super::checks::Counts;
use super::scenarios::print_counts;
use crate::fuzz;
use crate::image::packages;
use crate::testbed::progress::Progress;
use anyhow::Result;
use std::time::{Duration, Instant};

/// The time for which `cargo lab test --long` fuzzes all targets together.
const IN_THE_SUITE: Duration = Duration::from_secs(60);

/// The random seed that `cargo lab test --long` gives libFuzzer: a tree is tried with the same inputs on each machine, as many as it
/// does in that time. `cargo lab fuzz` begins differently each time.
const SEED_OF_THE_SUITE: u32 = 1;

/// Options of `cargo lab fuzz`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Names of targets (all without any).
    targets: Vec<String>,
    /// The total time, which the targets share.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    minutes: u64,
}

/// Fuzzes, and returns whether no input failed.
pub fn run(options: &Options) -> Result<bool> {
    let targets = fuzz::chosen(&options.targets)?;
    packages::ensure_for_fuzzing()?;
    let time = Duration::from_secs(options.minutes * 60);
    let progress = Progress::default();
    let counts = all(&targets, time, None, &progress)?;
    progress.finish();
    Ok(print_counts(&counts))
}

/// Fuzzes all targets, as a part of the test suite.
pub fn check(progress: &Progress) -> Result<Counts> {
    progress.line("check: fuzzing");
    let seed = Some(SEED_OF_THE_SUITE);
    all(&fuzz::targets()?, IN_THE_SUITE, seed, progress)
}

fn all(
    targets: &[String],
    time: Duration,
    seed: Option<u32>,
    progress: &Progress,
) -> Result<Counts> {
    let start = Instant::now();
    fuzz::build()?;
    let seconds = start.elapsed().as_secs_f32();
    progress.line(&format!("built in {seconds:.0} s"));
    let mut outcomes = Vec::new();
    for (target, time) in targets.iter().zip(fuzz::shares(targets, time)) {
        progress.line(&format!("fuzzing {target} for {} s", time.as_secs()));
        outcomes.push(fuzz::run(target, time, seed)?);
    }
    progress.line(&fuzz::table(&outcomes).to_string());
    for outcome in &outcomes {
        if let Some(crash) = &outcome.crash {
            progress.line(&format!("FAILED {}", crash.message(&outcome.target)));
        }
    }
    let failed = outcomes.iter().filter(|outcome| outcome.crash.is_some());
    let failures: Vec<_> = failed
        .map(|outcome| format!("fuzzing {}", outcome.target))
        .collect();
    Ok(Counts {
        passed: outcomes.len() - failures.len(),
        failed: failures.len(),
        failures,
    })
}
