//! Runs scenarios one after another on one host, keeps their logs and judges their failures.

use super::host_state::{self, HostState};
use super::progress::Progress;
use super::report::{Outcome, Summary};
use super::schedule::Job;
use super::{Scenario, Testbed};
use crate::fault::{self, Verdict};
use crate::host::{Host, length, pci::PciDevice, qemu::Machine, read_from};
use crate::image::HostImage;
use crate::process::tail;
use crate::workspace;
use anyhow::{Context, Result, anyhow};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// The time limit of a scenario, unless it asks for more ([`Testbed::may_take`]); its waits have tighter limits of
/// their own. The longest take two minutes on an idle machine; other work on it has made that six.
const SCENARIO_LIMIT: Duration = Duration::from_secs(600);

/// The most reruns of a scenario, each because of a fault of the emulation that was seen. The longest scenarios have
/// dozens of domains, of which one is affected now and then; on a busy machine that has happened three times in a row.
const MOST_RERUNS: u32 = 4;

/// The time that all scenarios together may lose to reruns: a whole run must end within an hour.
const MOST_LOST: Duration = Duration::from_secs(600);

/// The time within which the toolstack has to remove the last traces of a scenario's domains.
const CLEANUP_LIMIT: Duration = Duration::from_secs(15);

/// The parts of all hosts of a run, and the state that they share.
pub struct Run<'a> {
    /// The files that a host boots.
    pub image: HostImage,
    /// The machine that QEMU emulates, but for the devices that scenarios need.
    pub machine: Machine,
    /// The bootable ELF.
    pub unikernel: PathBuf,
    /// The display of the run's progress.
    pub progress: &'a Progress,
    /// The time of the attempts that a fault of the emulation ended.
    pub lost: Mutex<Duration>,
}

/// A host, which is booted anew whenever anything went wrong on it.
pub struct Runner<'a> {
    run: &'a Run<'a>,
    /// The host's number among the hosts of the run.
    number: usize,
    host: Option<Booted>,
    boots: u32,
}

/// A host that has been booted.
struct Booted {
    host: Host,
    /// Its devices for domains.
    devices: &'static [PciDevice],
    /// The state of the host before the first scenario.
    before: HostState,
}

/// The lengths of a host's logs when a scenario began.
struct Marks {
    xen: u64,
    dom0: u64,
    commands: u64,
    consoles: BTreeMap<PathBuf, u64>,
}

impl<'a> Runner<'a> {
    /// Returns a runner, whose first scenario boots its host.
    pub fn new(run: &'a Run<'a>, number: usize) -> Self {
        Self {
            run,
            number,
            host: None,
            boots: 0,
        }
    }

    /// Runs one scenario after another. `next` gets the devices for domains that the host has, if there is a host.
    pub fn run(&mut self, next: impl Fn(Option<&[PciDevice]>) -> Option<Job>) -> Summary {
        let mut outcomes = Vec::new();
        while let Some(job) = next(self.host.as_ref().map(|booted| booted.devices)) {
            let outcome = self.run_one(&job);
            outcome.announce(self.run.progress);
            outcomes.push(outcome);
        }
        Summary {
            outcomes,
            boots: std::mem::take(&mut self.boots),
        }
    }

    /// Ends its host.
    pub fn stop(&mut self) {
        self.host = None;
    }

    /// Returns the name of a scenario in the tables and among the logs.
    pub fn title(&self, scenario: &Scenario) -> String {
        self.run.machine.xenstored.title(scenario.name)
    }

    fn run_one(&mut self, job: &Job) -> Outcome {
        let scenario = &job.scenario;
        let start = Instant::now();
        let mut reruns = 0;
        let mut emulator_faults = Vec::new();
        let mut begin = start;
        let mut attempt = self.attempt(job, "");
        while attempt.excused {
            let lost = self.lose(begin.elapsed());
            if reruns == MOST_RERUNS || lost > MOST_LOST {
                break;
            }
            begin = Instant::now();
            reruns += 1;
            self.run.progress.line(&format!(
                "EMULATOR FAULT in {}, running it again: {}",
                scenario.name, attempt.emulator_faults[0]
            ));
            emulator_faults.append(&mut attempt.emulator_faults);
            attempt = self.attempt(job, &format!("-rerun-{reruns}"));
        }
        emulator_faults.append(&mut attempt.emulator_faults);
        Outcome {
            name: self.title(scenario),
            seconds: start.elapsed().as_secs_f32(),
            error: attempt.error,
            emulator_faults,
            reruns,
            figures: attempt.figures,
        }
    }

    /// Notes that this much time was lost to a fault of the emulation, and returns the sum.
    fn lose(&self, time: Duration) -> Duration {
        let mut lost = self.run.lost.lock().expect("no thread panicked");
        *lost += time;
        *lost
    }

    /// Runs a scenario once: on the shared host, or on a new one if anything went wrong before or the scenario needs
    /// other devices.
    fn attempt(&mut self, job: &Job, suffix: &str) -> Attempt {
        let scenario = &job.scenario;
        let dir = workspace::lab().join(format!("{}{suffix}", self.title(scenario)));
        let _ = fs::remove_dir_all(&dir);
        if let Err(error) = fs::create_dir_all(&dir)
            .map_err(Into::into)
            .and_then(|()| self.ensure_host(job))
        {
            let kept = self.keep_boot_logs(&dir);
            let cause = error.root_cause().to_string();
            let cause = cause.lines().next().unwrap_or_default();
            let emulator_faults = vec![format!("the host did not boot: {cause}")];
            let error = Some(format!("{error:#}\nlogs: {}", kept.display()));
            return Attempt {
                error,
                excused: true,
                emulator_faults,
                ..Attempt::default()
            };
        }
        let Booted { host, before, .. } = self.host.as_ref().expect("it was just booted");
        let marks = Marks::of(host);
        host.take_emulator_faults();
        host.watch(Instant::now() + SCENARIO_LIMIT);
        let testbed = Testbed::new(host, &self.run.image, scenario.name, self.run.progress);
        let mut result = (scenario.run)(&testbed)
            .with_context(|| format!("while {}", testbed.last_step.borrow()));
        host.unwatch();
        if result.is_ok() {
            result = nothing_left(host, before);
        }
        let logs = marks.keep(host, &dir);
        let mut verdict = fault::in_logs(&logs.xen, &logs.dom0, &host.domains());
        verdict.emulator.extend(host.take_emulator_faults());
        verdict
            .emulator
            .extend(fault::in_consoles(&logs.consoles, &host.domains()));
        verdict.own.extend(host.crashes());
        if result.is_ok() && !verdict.own.is_empty() {
            result = Err(anyhow!("one of our own domains crashed"));
        }
        let clean = result.is_ok() && verdict.emulator.is_empty();
        let mut figures = testbed.figures.into_inner();
        for figure in &mut figures {
            figure.row = self.run.machine.xenstored.title(&figure.row);
        }
        let error = result.err();
        let excused = error
            .as_ref()
            .is_some_and(|error| verdict.allows_rerun(&format!("{error:#}")));
        let error = error.map(|error| explain(&error, &verdict, &logs, &dir));
        if !clean {
            self.host = None;
        }
        Attempt {
            error,
            excused,
            emulator_faults: verdict.emulator,
            figures,
        }
    }

    fn ensure_host(&mut self, job: &Job) -> Result<()> {
        let &Job { scenario, devices } = job;
        if (self.host.as_ref()).is_some_and(|booted| booted.devices == devices) {
            return Ok(());
        }
        self.host = None;
        let run = self.run;
        run.progress
            .step(scenario.name, &format!("booting Xen {}", run.image.release));
        self.boots += 1;
        let machine = Machine {
            devices,
            ..run.machine.clone()
        };
        let host = Host::boot(self.host_dir(), &run.image, &machine, false)?;
        fs::copy(&run.unikernel, host.instance().share().join("bulkhead"))
            .with_context(|| format!("cannot copy {}", run.unikernel.display()))?;
        // They stay assignable whichever domain had them last.
        for device in devices {
            host.make_assignable(device)?;
        }
        let before = HostState::of(&host)?;
        self.host = Some(Booted {
            host,
            devices,
            before,
        });
        Ok(())
    }

    fn host_dir(&self) -> PathBuf {
        let name = format!("scenarios-{}-{}", self.run.image.release, self.number);
        let name = self.run.machine.xenstored.title(&name);
        workspace::lab().join("hosts").join(name)
    }

    fn keep_boot_logs(&self, dir: &Path) -> PathBuf {
        for log in ["xen.log", "qemu.log", "share/dom0.log"] {
            let name = Path::new(log).file_name().expect("it names a file");
            // A log may be missing if the boot ended early; the others still tell.
            let _ = fs::copy(self.host_dir().join(log), dir.join(name));
        }
        dir.to_path_buf()
    }
}

#[derive(Default)]
struct Attempt {
    error: Option<String>,
    /// True if it failed because of a fault of the emulation.
    excused: bool,
    emulator_faults: Vec<String>,
    figures: Vec<super::Figure>,
}

/// Checks that a scenario that passes has left the host as it was.
fn nothing_left(host: &Host, before: &HostState) -> Result<()> {
    let left = host_state::check(host, before, CLEANUP_LIMIT)?;
    anyhow::ensure!(
        left.is_empty(),
        "the scenario left something behind:\n{}",
        tail(&left.join("\n"), 12)
    );
    Ok(())
}

struct Logs {
    xen: String,
    dom0: String,
    consoles: BTreeMap<String, String>,
    /// The diagnosis that was made when a command was late.
    diagnosis: Option<String>,
}

impl Marks {
    fn of(host: &Host) -> Self {
        let instance = host.instance();
        Self {
            xen: length(&instance.xen_log()),
            dom0: length(&instance.dom0_log()),
            commands: length(&instance.command_log()),
            consoles: console_files(host)
                .into_iter()
                .map(|path| (path.clone(), length(&path)))
                .collect(),
        }
    }

    /// Copies the log lines since then into the scenario's folder.
    fn keep(&self, host: &Host, dir: &Path) -> Logs {
        let instance = host.instance();
        let keep = |name: &str, path: &Path, start: u64| {
            let text = read_from(path, start);
            // Losing a log must not hide the scenario's own result.
            if let Err(error) = fs::write(dir.join(name), &text) {
                eprintln!("cannot keep {name}: {error}");
            }
            text
        };
        keep("dom0-commands.log", &instance.command_log(), self.commands);
        let mut consoles = BTreeMap::new();
        for path in console_files(host) {
            let start = self.consoles.get(&path).copied().unwrap_or(0);
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .replace("guest-", "console-");
            if length(&path) > start {
                consoles.insert(name.clone(), keep(&name, &path, start));
            }
        }
        Logs {
            xen: keep("xen.log", &instance.xen_log(), self.xen),
            dom0: keep("dom0.log", &instance.dom0_log(), self.dom0),
            consoles,
            diagnosis: host.take_diagnosis(),
        }
    }
}

fn console_files(host: &Host) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(host.instance().share().join("console")) else {
        return Vec::new();
    };
    entries.flatten().map(|entry| entry.path()).collect()
}

/// Returns the error, and the lines of the logs that matter for it.
fn explain(error: &anyhow::Error, verdict: &Verdict, logs: &Logs, dir: &Path) -> String {
    let mut text = format!("{error:#}");
    // Of logs, the end tells most; what was asked for is wanted whole.
    const LAST: usize = 12;
    const ALL: usize = 100;
    let mut add = |title: &str, lines: Vec<&str>, most: usize| {
        if !lines.is_empty() {
            text += &format!("\n{title}:");
            for line in lines.iter().rev().take(most).rev() {
                text += &format!("\n  {}", line.trim_end());
            }
        }
    };
    add(
        "our own domain's fault",
        verdict.own.iter().map(String::as_str).collect(),
        LAST,
    );
    for (name, console) in &logs.consoles {
        let matter = ["ERROR", "WARN", "panic", "exception", "BUG", "Oops"];
        let lines = console
            .lines()
            .filter(|line| matter.iter().any(|word| line.contains(word)));
        add(name, lines.collect(), LAST);
    }
    add(
        "from our domains through Xen",
        logs.xen
            .lines()
            .filter(|line| {
                line.split_once("(d")
                    .is_some_and(|(_, rest)| rest.starts_with(|c: char| c.is_ascii_digit()))
            })
            .collect(),
        LAST,
    );
    if let Some(diagnosis) = &logs.diagnosis {
        add(
            "what was seen when a command was late",
            diagnosis.lines().collect(),
            ALL,
        );
    }
    text + &format!("\nlogs: {}", dir.display())
}
