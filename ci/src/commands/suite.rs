//! `cargo lab test`: the whole test suite.

use super::build;
use super::checks::{self, Counts};
use super::fuzz;
use super::scenarios::{Chosen, Setting, prepare, print_counts, print_end, run_scenarios};
use crate::image::packages;
use crate::scenarios;
use crate::testbed::progress::Progress;
use crate::testbed::report::Summary;
use crate::testbed::schedule::LastHost;
use anyhow::Result;
use std::path::PathBuf;

/// The results so far.
#[derive(Default)]
struct Done {
    summary: Summary,
    /// The scenarios that could not even begin.
    not_begun: Counts,
}

impl Done {
    /// Runs scenarios. If they cannot even begin, logs the reason and counts all of them as failed.
    fn run(&mut self, setting: &Setting, chosen: &Chosen, progress: &Progress, last: &LastHost) {
        match run_scenarios(setting, chosen, progress, last) {
            Ok(summary) => self.summary.extend(summary),
            Err(error) => self.none(chosen, &error, progress),
        }
    }

    /// Counts all of these scenarios as failed, for that reason.
    fn none(&mut self, chosen: &Chosen, error: &anyhow::Error, progress: &Progress) {
        progress.line(&format!("FAILED: no scenario could be run: {error:#}"));
        let names = chosen.names().into_iter().map(|(name, _)| name.to_owned());
        let failures: Vec<_> = names.collect();
        self.not_begun.add(Counts {
            failed: failures.len(),
            failures,
            ..Counts::default()
        });
    }
}

/// Builds all ELFs, and returns the path of the whole one.
fn build_all() -> Result<PathBuf> {
    // The whole one takes the place of the smallest.
    build::check_smallest()?;
    let elf = build::build()?;
    build::build_tls()?;
    Ok(elf)
}

/// Runs the checks, and afterwards fuzzes, guided by coverage, if `long`.
fn run_checks(long: bool, progress: &Progress) -> Result<Counts> {
    let mut counts = checks::run(long, progress)?;
    if long {
        counts.add(fuzz::check(progress)?);
    }
    Ok(counts)
}

/// Runs the scenarios: those with a host of their own, the few for the other implementation of xenstored, and all others.
fn run_all_scenarios(
    setting: &Setting,
    mut chosen: Chosen,
    progress: &Progress,
    last: &LastHost,
) -> Done {
    let mut done = Done::default();
    let own_host = Chosen {
        own_host: std::mem::take(&mut chosen.own_host),
        ..Chosen::default()
    };
    if !own_host.own_host.is_empty() {
        done.run(setting, &own_host, progress, &LastHost::free());
    }
    let other = Setting {
        xenstored: setting.xenstored.other(),
        hosts: 1,
        ..setting.clone()
    };
    let under_both = Chosen {
        shared: scenarios::under_both(),
        ..Chosen::default()
    };
    done.run(&other, &under_both, progress, &LastHost::free());
    done.run(setting, &chosen, progress, last);
    done
}

/// Runs the whole test suite, as two lines of work for two processors. On one are the checks, on the other the
/// scenarios. When the checks are done, the last of the hosts begins; with a single one, the scenarios do then that
/// share hosts. `setting` gives the number of hosts. `long` adds what otherwise runs by name only.
pub fn run(setting: &Setting, long: bool) -> Result<bool> {
    packages::ensure_for_tests(long)?;
    let mut chosen = Chosen::suite();
    if long {
        chosen.extend(Chosen::long());
    }
    println!(
        "hosts at a time: {}; under {}: {}",
        setting.hosts,
        setting.xenstored.other(),
        scenarios::UNDER_BOTH.join(", ")
    );
    let (progress, last) = (Progress::default(), LastHost::default());
    let (done, checks) = std::thread::scope(|scope| {
        let checks = scope.spawn(|| {
            let checks = run_checks(long, &progress);
            last.release();
            checks
        });
        let done = match prepare(setting.release, &progress, build_all) {
            Ok((elf, _)) => {
                let elf = Some(elf);
                let setting = Setting {
                    elf,
                    ..setting.clone()
                };
                run_all_scenarios(&setting, chosen, &progress, &last)
            }
            Err(error) => {
                let mut done = Done::default();
                done.none(&chosen, &error, &progress);
                done
            }
        };
        (done, checks.join().expect("a check does not panic"))
    });
    progress.finish();
    let mut counts = checks?;
    print_end(&done.summary)?;
    counts.add(done.summary.counts());
    counts.add(done.not_begun);
    Ok(print_counts(&counts))
}
