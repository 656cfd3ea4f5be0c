//! `cargo lab demo`, `cargo lab scenario` and `cargo lab list`.

use super::build;
use super::checks::Counts;
use crate::host::{qemu::Machine, xenstored::Xenstored};
use crate::image::{self, packages, release::Release};
use crate::testbed::Scenario;
use crate::testbed::own_host::OwnHostScenario;
use crate::testbed::progress::Progress;
use crate::testbed::report::Summary;
use crate::testbed::runner::{Run, Runner};
use crate::testbed::schedule;
use crate::{scenarios, workspace};
use anyhow::{Result, bail};
use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Instant;

/// The host on which scenarios run.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The release of Debian, and so of Xen.
    pub release: Release,
    /// The xenstored in dom0.
    pub xenstored: Xenstored,
    /// Hosts that run at the same time.
    pub hosts: usize,
    /// A unikernel that is there already.
    pub elf: Option<PathBuf>,
}

/// Scenarios of both sorts.
#[derive(Default)]
pub(super) struct Chosen {
    pub shared: Vec<Scenario>,
    pub own_host: Vec<OwnHostScenario>,
}

impl Chosen {
    pub fn all() -> Self {
        Self {
            shared: scenarios::all(),
            own_host: scenarios::own_host(),
        }
    }

    /// Their names, and what each proves.
    pub fn names(&self) -> Vec<(&'static str, &'static str)> {
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
    let setting = Setting {
        release,
        xenstored,
        hosts: 1,
        elf: None,
    };
    let summary = run_scenarios(&setting, &chosen, &Progress::default())?;
    print_end(&summary)?;
    println!(
        "Xen {release}, {:.0} s in all",
        start.elapsed().as_secs_f32()
    );
    Ok(print_counts(summary.counts()))
}

/// Runs the scenarios whose names contain one of `names`, or all.
pub fn some(setting: &Setting, names: &[String]) -> Result<bool> {
    let mut chosen = Chosen::all();
    chosen.retain(names)?;
    let summary = run_scenarios(setting, &chosen, &Progress::default())?;
    print_end(&summary)?;
    Ok(print_counts(summary.counts()))
}

/// Lists the scenarios.
pub fn list() {
    for (name, about) in Chosen::all().names() {
        println!("{name:20} {about}");
    }
}

/// Runs them.
pub(super) fn run_scenarios(
    setting: &Setting,
    chosen: &Chosen,
    progress: &Progress,
) -> Result<Summary> {
    let say = |text: &str| progress.step("lab", text);
    packages::ensure()?;
    if !chosen.own_host.is_empty() {
        packages::ensure_for_bochs()?;
    }
    // On a fresh machine the one compiles while the other downloads.
    let (unikernel, image) = std::thread::scope(|scope| {
        let unikernel = scope.spawn(|| setting.elf.clone().map_or_else(build::build, Ok));
        say("building the unikernel");
        let image = image::ensure(setting.release, &say);
        let unikernel = unikernel.join().expect("building does not panic");
        (unikernel, image)
    });
    let (unikernel, image) = (unikernel?, image?);
    fs::create_dir_all(workspace::lab())?;
    let mut summary = Summary::default();
    for scenario in &chosen.own_host {
        let say = |text: &str| progress.step(scenario.name, text);
        let outcome = scenario.run(&image, setting.xenstored, &unikernel, &say);
        outcome.announce(progress);
        summary.outcomes.push(outcome);
    }
    let run = Run {
        image,
        machine: Machine {
            xenstored: setting.xenstored,
            ..Machine::default()
        },
        unikernel,
        progress,
        lost: Mutex::default(),
    };
    let hosts = 0..setting.hosts;
    let mut runners: Vec<Runner> = hosts.map(|number| Runner::new(&run, number)).collect();
    summary.extend(schedule::run(&mut runners, &chosen.shared));
    progress.finish();
    Ok(summary)
}

/// Shows the tables, and saves the results.
pub(super) fn print_end(summary: &Summary) -> Result<()> {
    summary.save()?;
    println!("{}", summary.scenario_table());
    for table in summary.figure_tables() {
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
pub(super) fn print_counts(counts: Counts) -> bool {
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
