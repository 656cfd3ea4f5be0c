//! `cargo lab demo`, `cargo lab scenario` and `cargo lab list`.

use super::build;
use super::checks::Counts;
use crate::host::{pci, qemu::Machine, xenstored::Xenstored};
use crate::image::{self, HostImage, packages, release::Release};
use crate::testbed::own_host::OwnHostScenario;
use crate::testbed::progress::Progress;
use crate::testbed::report::Summary;
use crate::testbed::runner::{Run, Runner};
use crate::testbed::schedule::{self, Job, LastHost};
use crate::testbed::{Part, Scenario};
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
    /// A unikernel that was built already.
    pub elf: Option<PathBuf>,
}

/// Scenarios of all kinds.
#[derive(Default)]
pub(super) struct Chosen {
    /// The scenarios that share hosts.
    pub shared: Vec<Scenario>,
    /// The scenarios that share hosts with devices for domains.
    pub with_devices: Vec<Scenario>,
    /// The scenarios that bring a host of their own.
    pub own_host: Vec<OwnHostScenario>,
}

impl Chosen {
    /// Returns the scenarios of the test suite.
    pub fn suite() -> Self {
        Self {
            shared: scenarios::suite(),
            with_devices: scenarios::with_devices(),
            own_host: Vec::new(),
        }
    }

    /// Returns the scenarios that otherwise run by name only.
    pub fn long() -> Self {
        Self {
            shared: scenarios::long(),
            with_devices: scenarios::long_with_devices(),
            own_host: scenarios::long_own_host(),
        }
    }

    /// Returns all scenarios.
    pub fn all() -> Self {
        let (mut all, long) = (Self::suite(), Self::long());
        all.extend(long);
        all
    }

    /// Adds others.
    pub fn extend(&mut self, others: Self) {
        self.shared.extend(others.shared);
        self.with_devices.extend(others.with_devices);
        self.own_host.extend(others.own_host);
    }

    /// Returns the name of each, and the statement that it proves.
    pub fn names(&self) -> Vec<(&'static str, &'static str)> {
        let shared = self.shared.iter().chain(&self.with_devices);
        let shared = shared.map(|one| (one.name, one.about));
        let own_host = self.own_host.iter().map(|one| (one.name, one.about));
        shared.chain(own_host).collect()
    }

    /// Returns the scenarios whose names contain one of these words; without any, those of the suite.
    fn by(words: &[String]) -> Result<Self> {
        if words.is_empty() {
            return Ok(Self::suite());
        }
        let mut chosen = Self::all();
        let names = chosen.names();
        let unknown = |word: &&String| !names.iter().any(|(name, _)| name.contains(word.as_str()));
        if let Some(unknown) = words.iter().find(unknown) {
            bail!("no scenario's name contains {unknown:?}; `cargo lab list` shows them");
        }
        let wanted = |name: &str| words.iter().any(|word| name.contains(word.as_str()));
        for shared in [&mut chosen.shared, &mut chosen.with_devices] {
            shared.retain(|scenario| wanted(scenario.name));
        }
        chosen.own_host.retain(|scenario| wanted(scenario.name));
        Ok(chosen)
    }

    /// Returns the scenarios that share hosts, with the devices of their hosts.
    fn jobs(&self) -> Vec<Job> {
        let job = |devices| move |&scenario| Job { scenario, devices };
        let plain = self.shared.iter().map(job(&[]));
        let with_devices = self.with_devices.iter().map(job(pci::LAB));
        with_devices.chain(plain).collect()
    }
}

/// Runs the scenarios of the demo and shows their measurements.
pub fn demo(release: Release, xenstored: Xenstored) -> Result<bool> {
    let start = Instant::now();
    let mut chosen = Chosen {
        shared: scenarios::suite(),
        ..Chosen::default()
    };
    chosen.shared.retain(|scenario| scenario.part == Part::Demo);
    let setting = Setting {
        release,
        xenstored,
        hosts: 1,
        elf: None,
    };
    let summary = run_alone(&setting, &chosen)?;
    print_end(&summary)?;
    println!(
        "Xen {release}, {:.0} s in all",
        start.elapsed().as_secs_f32()
    );
    Ok(print_counts(&summary.counts()))
}

/// Runs the scenarios whose names contain one of `names`, or those of the suite.
pub fn some(setting: &Setting, names: &[String]) -> Result<bool> {
    let chosen = Chosen::by(names)?;
    let summary = run_alone(setting, &chosen)?;
    print_end(&summary)?;
    Ok(print_counts(&summary.counts()))
}

/// Lists the scenarios, those that are not in the suite at the end.
pub fn list() {
    let show = |all: Vec<(&str, &str)>| {
        for (name, about) in all {
            println!("{name:20} {about}");
        }
    };
    show(Chosen::suite().names());
    println!("\nby name, or with `cargo lab test --long`:");
    show(Chosen::long().names());
}

/// Runs the scenarios on a machine that does nothing else.
fn run_alone(setting: &Setting, chosen: &Chosen) -> Result<Summary> {
    let progress = Progress::default();
    let summary = run_scenarios(setting, chosen, &progress, &LastHost::free());
    progress.finish();
    summary
}

/// Has `build` build the unikernel, and meanwhile makes the image of the hosts: on a fresh machine the one compiles while
/// the other downloads.
pub(super) fn prepare(
    release: Release,
    progress: &Progress,
    build: impl FnOnce() -> Result<PathBuf> + Send,
) -> Result<(PathBuf, HostImage)> {
    let say = |text: &str| progress.step("lab", text);
    std::thread::scope(|scope| {
        let unikernel = scope.spawn(build);
        say("preparing the unikernel, and the image of the hosts");
        let image = image::ensure(release, &say);
        let unikernel = unikernel.join().expect("building does not panic");
        Ok((unikernel?, image?))
    })
}

/// Runs the scenarios; the last host begins when its processor is free.
pub(super) fn run_scenarios(
    setting: &Setting,
    chosen: &Chosen,
    progress: &Progress,
    last: &LastHost,
) -> Result<Summary> {
    packages::ensure()?;
    if !chosen.own_host.is_empty() {
        packages::ensure_for_bochs()?;
    }
    let build = || setting.elf.clone().map_or_else(build::build, Ok);
    let (unikernel, image) = prepare(setting.release, progress, build)?;
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
            mitigations: false,
            ..Machine::default()
        },
        unikernel,
        progress,
        lost: Mutex::default(),
    };
    let hosts = 0..setting.hosts;
    let mut runners: Vec<Runner> = hosts.map(|number| Runner::new(&run, number)).collect();
    summary.extend(schedule::run(&mut runners, &chosen.jobs(), last));
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
pub(super) fn print_counts(counts: &Counts) -> bool {
    if !counts.failures.is_empty() {
        println!("failed: {}", counts.failures.join(", "));
    }
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
            Chosen::by(&words).map(|chosen| chosen.names().len())
        };
        assert_eq!(count(&[]).unwrap(), Chosen::suite().names().len());
        assert_eq!(count(&["main-"]).unwrap(), 2);
        assert_eq!(count(&["main-pv", "32bit"]).unwrap(), 3);
        assert_eq!(count(&["-endings"]).unwrap(), 2, "the long one too");
        assert!(count(&["main-", "nonsense"]).is_err());
    }
}
