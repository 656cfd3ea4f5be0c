//! `cargo lab test`: the whole test suite.

use super::build;
use super::checks::{self, Counts};
use super::fuzz;
use super::scenarios::{Chosen, Setting, print_counts, print_end, run_scenarios};
use crate::image::packages;
use crate::scenarios;
use crate::testbed::progress::Progress;
use crate::testbed::report::Summary;
use crate::testbed::schedule::LastHost;
use anyhow::Result;

/// The results so far.
#[derive(Default)]
struct Done {
    summary: Summary,
    /// The number of scenarios that could not even begin.
    not_begun: usize,
}

impl Done {
    /// Runs scenarios. If they cannot even begin, logs the reason and counts all of them as failed.
    fn run(&mut self, setting: &Setting, chosen: &Chosen, progress: &Progress, last: &LastHost) {
        match run_scenarios(setting, chosen, progress, last) {
            Ok(summary) => self.summary.extend(summary),
            Err(error) => {
                println!("FAILED: no scenario could be run: {error:#}");
                self.not_begun += chosen.names().len();
            }
        }
    }

    fn extend(&mut self, other: Self) {
        self.summary.extend(other.summary);
        self.not_begun += other.not_begun;
    }
}

/// Runs the scenarios that take one processor and no shared host: those with a host of their own, and on one host the
/// few for the other implementation of xenstored.
fn run_beside(setting: &Setting, own_host: Chosen) -> Done {
    let (progress, mut done) = (Progress::without_steps(), Done::default());
    done.run(setting, &own_host, &progress, &LastHost::free());
    let other = Setting {
        xenstored: setting.xenstored.other(),
        hosts: 1,
        ..setting.clone()
    };
    let under_both = Chosen {
        shared: scenarios::under_both(),
        ..Chosen::default()
    };
    done.run(&other, &under_both, &progress, &LastHost::free());
    done
}

/// Runs the whole test suite, as two lines of work for two processors. On one are the checks, on the other the
/// scenarios that need no shared host and those for the other implementation of xenstored. Where one line is done, a
/// host begins with all other scenarios. `setting` gives the number of hosts that do so; a single one begins when both
/// lines are done. `long` adds the scenarios that otherwise run by name only.
pub fn run(setting: &Setting, long: bool) -> Result<bool> {
    packages::ensure_for_tests()?;
    build::check_smallest()?;
    build::build_tls()?;
    let mut shared = Chosen::suite();
    if long {
        shared.shared.extend(scenarios::long());
    }
    let own_host = Chosen {
        own_host: std::mem::take(&mut shared.own_host),
        ..Chosen::default()
    };
    println!(
        "beside the checks: {}, and under {}: {}",
        names(&own_host.names()),
        setting.xenstored.other(),
        scenarios::UNDER_BOTH.join(", ")
    );
    let last = LastHost::default();
    let (done, checks) = std::thread::scope(|scope| {
        let beside = scope.spawn(|| {
            let done = run_beside(setting, own_host);
            last.release();
            done
        });
        let checks = checks::run().and_then(|mut counts| {
            let fuzzed = fuzz::check()?;
            counts.passed += fuzzed.passed;
            counts.failed += fuzzed.failed;
            Ok(counts)
        });
        let mut shared_done = Done::default();
        if checks.is_ok() {
            println!("hosts at a time: {}", setting.hosts);
            let progress = Progress::default();
            shared_done.run(setting, &shared, &progress, &last);
        }
        let mut done = beside.join().expect("a scenario does not panic");
        done.extend(shared_done);
        checks.map(|checks| (done, checks))
    })?;
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
