//! `cargo lab demo`, `cargo lab test`, `cargo lab scenario` and `cargo lab list`.

use super::{
    build,
    checks::{self, Counts},
    fuzz,
};
use crate::host::{qemu::Machine, xenstored::Xenstored};
use crate::image::{self, packages, release::Release};
use crate::testbed::Scenario;
use crate::testbed::own_host::OwnHostScenario;
use crate::testbed::progress::Progress;
use crate::testbed::report::Summary;
use crate::testbed::runner::Runner;
use crate::{scenarios, workspace};
use anyhow::{Result, bail};
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

/// Scenarios of both sorts.
#[derive(Default)]
struct Chosen {
    shared: Vec<Scenario>,
    own_host: Vec<OwnHostScenario>,
}

impl Chosen {
    fn all() -> Self {
        Self {
            shared: scenarios::all(),
            own_host: scenarios::own_host(),
        }
    }

    /// Their names, and what each proves.
    fn names(&self) -> Vec<(&'static str, &'static str)> {
        let shared = self.shared.iter().map(|one| (one.name, one.about));
        let own_host = self.own_host.iter().map(|one| (one.name, one.about));
        shared.chain(own_host).collect()
    }

    /// Keeps those whose names contain one of these words (all without any).
    fn retain(&mut self, words: &[String]) -> Result<()> {
        let names = self.names();
        let unknown = |word: &&String| !names.iter().any(|(name, _)| name.contains(word.as_str()));
        if let Some(unknown) = words.iter().find(unknown) {
            bail!("no scenario's name contains {unknown:?}; `cargo lab list` shows them");
        }
        let wanted =
            |name: &str| words.is_empty() || words.iter().any(|word| name.contains(word.as_str()));
        self.shared.retain(|scenario| wanted(scenario.name));
        self.own_host.retain(|scenario| wanted(scenario.name));
        Ok(())
    }
}

/// Runs the scenarios of the demo and shows what they measured.
pub fn demo(release: Release, xenstored: Xenstored) -> Result<bool> {
    let start = Instant::now();
    let mut chosen = Chosen {
        shared: scenarios::all(),
        own_host: Vec::new(),
    };
    chosen.shared.retain(|scenario| scenario.demo);
    let summary = run_scenarios(release, xenstored, &chosen, None, &Progress::default())?;
    print_end(&summary)?;
    println!(
        "Xen {release}, {:.0} s in all",
        start.elapsed().as_secs_f32()
    );
    Ok(print_counts(summary.counts()))
}

/// Runs the scenarios whose names contain one of `names`, or all.
pub fn some(
    release: Release,
    xenstored: Xenstored,
    names: &[String],
    elf: Option<PathBuf>,
) -> Result<bool> {
    let mut chosen = Chosen::all();
    chosen.retain(names)?;
    let summary = run_scenarios(release, xenstored, &chosen, elf, &Progress::default())?;
    print_end(&summary)?;
    Ok(print_counts(summary.counts()))
}

/// Runs the whole test suite. The scenarios that have a host of their own, and use one processor, run beside
/// the checks. At the end a few run again on a host with the other xenstored.
pub fn test(release: Release, xenstored: Xenstored) -> Result<bool> {
    packages::ensure_for_tests()?;
    let Chosen { shared, own_host } = Chosen::all();
    for scenario in &own_host {
        println!("beside the checks: {}", scenario.name);
    }
    let (checks, (beside, not_begun)) = std::thread::scope(|scope| {
        let own_host = scope.spawn(|| {
            let chosen = Chosen {
                own_host,
                ..Chosen::default()
            };
            run_or_fail(release, xenstored, &chosen, &Progress::without_steps())
        });
        let checks = checks::run().and_then(|mut counts| {
            let fuzzed = fuzz::check()?;
            counts.passed += fuzzed.passed;
            counts.failed += fuzzed.failed;
            Ok(counts)
        });
        if !own_host.is_finished() {
            println!("waiting for what runs beside them");
        }
        (checks, own_host.join().expect("a scenario does not panic"))
    });
    let checks = checks?;
    let chosen = Chosen {
        shared,
        ..Chosen::default()
    };
    let (mut summary, mut failed) = run_or_fail(release, xenstored, &chosen, &Progress::default());
    summary.extend(beside);
    let again = Chosen {
        shared: scenarios::under_both(),
        ..Chosen::default()
    };
    println!("under {}:", xenstored.other());
    let (other, other_failed) =
        run_or_fail(release, xenstored.other(), &again, &Progress::default());
    summary.extend(other);
    failed += other_failed;
    print_end(&summary)?;
    let counts = summary.counts();
    Ok(print_counts(Counts {
        passed: checks.passed + counts.passed,
        failed: checks.failed + counts.failed + failed + not_begun,
    }))
}

/// Lists the scenarios.
pub fn list() {
    for (name, about) in Chosen::all().names() {
        println!("{name:20} {about}");
    }
}

/// Runs them. If that cannot even begin, says why and counts all of them as failed.
fn run_or_fail(
    release: Release,
    xenstored: Xenstored,
    chosen: &Chosen,
    progress: &Progress,
) -> (Summary, usize) {
    run_scenarios(release, xenstored, chosen, None, progress).map_or_else(
        |error| {
            println!("FAILED: no scenario could be run: {error:#}");
            (Summary::default(), chosen.names().len())
        },
        |summary| (summary, 0),
    )
}

fn run_scenarios(
    release: Release,
    xenstored: Xenstored,
    chosen: &Chosen,
    elf: Option<PathBuf>,
    progress: &Progress,
) -> Result<Summary> {
    let say = |text: &str| progress.step("lab", text);
    packages::ensure()?;
    if !chosen.own_host.is_empty() {
        packages::ensure_for_bochs()?;
    }
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
    let mut summary = Summary::default();
    for scenario in &chosen.own_host {
        let say = |text: &str| progress.step(scenario.name, text);
        let outcome = scenario.run(&image, xenstored, &unikernel, &say);
        outcome.announce(progress);
        summary.outcomes.push(outcome);
    }
    let machine = Machine {
        xenstored,
        ..Machine::default()
    };
    let mut runner = Runner::new(image, machine, unikernel, progress);
    summary.extend(runner.run(&chosen.shared));
    progress.finish();
    Ok(summary)
}

/// Shows the tables, and saves the results.
fn print_end(summary: &Summary) -> Result<()> {
    summary.save()?;
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
    Ok(())
}

/// Prints the last line of a run. Returns whether nothing failed.
fn print_counts(counts: Counts) -> bool {
    println!("{} passed, {} failed", counts.passed, counts.failed);
    counts.failed == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenarios_are_chosen_by_parts_of_their_names() {
        let count = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
            let mut chosen = Chosen::all();
            chosen.retain(&words).map(|()| chosen.names().len())
        };
        assert_eq!(count(&[]).unwrap(), Chosen::all().names().len());
        assert_eq!(count(&["main-"]).unwrap(), 2);
        assert_eq!(count(&["main-pv", "32bit"]).unwrap(), 3);
        assert!(count(&["main-", "nonsense"]).is_err());
    }
}
