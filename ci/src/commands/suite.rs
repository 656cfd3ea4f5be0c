//! `cargo lab test`.

use super::build;
use super::checks::{self, Counts};
use super::fuzz;
use super::scenarios::{Chosen, Setting, print_counts, print_end, run_scenarios};
use crate::image::packages;
use crate::scenarios;
use crate::testbed::progress::Progress;
use crate::testbed::report::Summary;
use anyhow::Result;

/// The results so far.
#[derive(Default)]
struct Done {
    summary: Summary,
    /// Scenarios that could not even begin.
    not_begun: usize,
}

impl Done {
    /// Runs scenarios; where that cannot even begin, says why and counts all of them as failed.
    fn run(&mut self, setting: &Setting, chosen: &Chosen, progress: &Progress) {
        match run_scenarios(setting, chosen, progress) {
            Ok(summary) => self.summary.extend(summary),
            Err(error) => {
                println!("FAILED: no scenario could be run: {error:#}");
                self.not_begun += chosen.names().len();
            }
        }
    }

    /// Runs those with a host of their own, and on one host the few that are for the other program that
    /// keeps xenstore.
    fn run_beside_the_checks(&mut self, setting: &Setting, own_host: Chosen, progress: &Progress) {
        self.run(setting, &own_host, progress);
        let other = Setting {
            xenstored: setting.xenstored.other(),
            hosts: 1,
            ..setting.clone()
        };
        let under_both = Chosen {
            shared: scenarios::under_both(),
            ..Chosen::default()
        };
        self.run(&other, &under_both, progress);
    }
}

/// The whole test suite. First come the checks, and beside them the scenarios that need no shared host and those
/// under the other program that keeps xenstore, which take one processor; then all other scenarios, on as
/// many hosts at a time as `setting` says.
pub fn run(setting: &Setting) -> Result<bool> {
    packages::ensure_for_tests()?;
    build::check_smallest()?;
    let Chosen { shared, own_host } = Chosen::all();
    let own_host = Chosen {
        own_host,
        ..Chosen::default()
    };
    println!(
        "beside the checks: {}, and under {}: {}",
        names(&own_host.names()),
        setting.xenstored.other(),
        scenarios::UNDER_BOTH.join(", ")
    );
    let mut done = Done::default();
    let checks = std::thread::scope(|scope| {
        let beside = scope.spawn(|| {
            done.run_beside_the_checks(setting, own_host, &Progress::without_steps());
        });
        let checks = checks::run().and_then(|mut counts| {
            let fuzzed = fuzz::check()?;
            counts.passed += fuzzed.passed;
            counts.failed += fuzzed.failed;
            Ok(counts)
        });
        if !beside.is_finished() {
            println!("waiting for what runs beside them");
        }
        beside.join().expect("a scenario does not panic");
        checks
    })?;
    let shared = Chosen {
        shared,
        ..Chosen::default()
    };
    println!("hosts at a time: {}", setting.hosts);
    done.run(setting, &shared, &Progress::default());
    print_end(&done.summary)?;
    let counts = done.summary.counts();
    Ok(print_counts(Counts {
        passed: checks.passed + counts.passed,
        failed: checks.failed + counts.failed + done.not_begun,
    }))
}

fn names(scenarios: &[(&str, &str)]) -> String {
    let names: Vec<&str> = scenarios.iter().map(|(name, _)| *name).collect();
    names.join(", ")
}
