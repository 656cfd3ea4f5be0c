//! `cargo lab demo`, `cargo lab test`, `cargo lab scenario` and `cargo lab list`.

use super::{
    build,
    checks::{self, Counts},
};
use crate::host::qemu::Machine;
use crate::image::{self, packages, release::Release};
use crate::lab::Scenario;
use crate::lab::progress::Progress;
use crate::lab::report::Summary;
use crate::lab::runner::Runner;
use crate::{scenarios, workspace};
use anyhow::{Result, bail};
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

/// Shows the main job: from a fresh clone to the table.
pub fn demo(release: Release) -> Result<bool> {
    let start = Instant::now();
    let all = scenarios::all();
    let chosen: Vec<&Scenario> = all.iter().filter(|scenario| scenario.demo).collect();
    let summary = run_scenarios(release, &chosen, None)?;
    print_end(&summary);
    println!(
        "Xen {release}, {:.0} s in all",
        start.elapsed().as_secs_f32()
    );
    Ok(print_counts(summary.counts()))
}

/// Runs the scenarios whose names contain one of `names`, or all.
pub fn some(release: Release, names: &[String], elf: Option<PathBuf>) -> Result<bool> {
    let all = scenarios::all();
    let chosen = choose(&all, names)?;
    let summary = run_scenarios(release, &chosen, elf)?;
    print_end(&summary);
    Ok(print_counts(summary.counts()))
}

/// The whole test suite.
pub fn test(release: Release) -> Result<bool> {
    packages::ensure_for_tests()?;
    let checks = checks::run()?;
    let all = scenarios::all();
    let chosen: Vec<&Scenario> = all.iter().collect();
    let lab = match run_scenarios(release, &chosen, None) {
        Ok(summary) => {
            print_end(&summary);
            summary.counts()
        }
        Err(error) => {
            println!("FAILED: no scenario could be run: {error:#}");
            Counts {
                passed: 0,
                failed: chosen.len(),
            }
        }
    };
    Ok(print_counts(Counts {
        passed: checks.passed + lab.passed,
        failed: checks.failed + lab.failed,
    }))
}

/// Lists the scenarios.
pub fn list() {
    for scenario in scenarios::all() {
        println!("{:20} {}", scenario.name, scenario.about);
    }
}

fn choose<'a>(all: &'a [Scenario], names: &[String]) -> Result<Vec<&'a Scenario>> {
    if let Some(unknown) = names.iter().find(|name| {
        !all.iter()
            .any(|scenario| scenario.name.contains(name.as_str()))
    }) {
        bail!("no scenario's name contains {unknown:?}; `cargo lab list` shows them");
    }
    let wanted = |scenario: &&Scenario| {
        names.is_empty()
            || names
                .iter()
                .any(|name| scenario.name.contains(name.as_str()))
    };
    Ok(all.iter().filter(wanted).collect())
}

fn run_scenarios(release: Release, chosen: &[&Scenario], elf: Option<PathBuf>) -> Result<Summary> {
    let progress = Progress::default();
    let say = |text: &str| progress.step("lab", text);
    packages::ensure()?;
    // On a fresh machine the one compiles while the other downloads.
    let (unikernel, image) = std::thread::scope(|scope| {
        let unikernel = scope.spawn(|| elf.map_or_else(build::build, Ok));
        say("building the unikernel");
        let image = image::ensure(release, &say);
        let unikernel = unikernel.join().expect("building does not panic");
        (unikernel, image)
    });
    let (unikernel, image) = (unikernel?, image?);
    fs::create_dir_all(workspace::lab())?;
    Runner::new(image, Machine::default(), unikernel, &progress).run(chosen)
}

fn print_end(summary: &Summary) {
    println!("{}", summary.scenario_table());
    if let Some(table) = summary.figure_table() {
        println!("{table}");
    }
    for warning in summary.warnings() {
        println!("{warning}");
    }
    println!(
        "hosts booted: {}, scenarios run again: {} time(s)",
        summary.boots,
        summary.reruns()
    );
}

/// The last line of a run, alone on its line; whether nothing failed.
fn print_counts(counts: Counts) -> bool {
    println!("{} passed, {} failed", counts.passed, counts.failed);
    counts.failed == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenarios_are_chosen_by_parts_of_their_names() {
        let all = scenarios::all();
        let count = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
            choose(&all, &names).map(|chosen| chosen.len())
        };
        assert_eq!(count(&[]).unwrap(), all.len());
        assert_eq!(count(&["main-"]).unwrap(), 2);
        assert!(count(&["main-", "nonsense"]).is_err());
    }
}
