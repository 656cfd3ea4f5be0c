//! A booted Xen host: running commands in dom0, and reaching its files.

pub mod block_list;
mod command;
mod dom0_diagnosis;
pub mod domain;
pub mod guest;
mod guest_diagnosis;
mod monitor;
pub mod pci;
pub mod qemu;
pub mod vbd_statistics;
pub mod xen_state;
pub mod xenstored;

use crate::config::Config;
use crate::fault;
use crate::image::{self, HostImage};
use crate::process::tail;
use crate::workspace;
use anyhow::{Context, Result, bail};
use qemu::{Instance, Machine};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU32;
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::thread::sleep;
use std::time::{Duration, Instant};

pub use command::Output;

/// The folders in dom0 with the kernels that are not ours: Linux and GRUB.
const STOCK: &[&str] = &["/guest/", "/usr/lib/grub-xen/"];

/// The words on a driver domain's command line by which it may be crashed on purpose.
const CRASHES_ON_PURPOSE: [&str; 2] = ["test-crash=on", "test-crash=often"];

/// Time limit for a host to boot (15 s on an idle machine), and for QEMU to write its process number.
const BOOT: Duration = Duration::from_secs(360);
const PID_FILE: Duration = Duration::from_secs(60);

/// The interval at which a wait checks the host's files.
const TICK: Duration = Duration::from_millis(10);

/// The interval at which a wait checks the domains.
const LOOK: Duration = Duration::from_millis(500);

/// A running host.
#[derive(Debug)]
pub struct Host {
    instance: Instance,
    stop_on_drop: bool,
    next: AtomicU32,
    tsc_khz: OnceLock<u32>,
    mitigations: bool,
    seen: Mutex<Seen>,
    watched: Mutex<Watched>,
}

/// The state that every wait checks, besides its own condition, while a scenario runs.
#[derive(Debug, Default)]
struct Watched {
    /// The time at which all waits end.
    deadline: Option<Instant>,
    /// The number of domains that there had been before.
    domains: usize,
    /// The length of Xen's log at that time.
    xen_log: u64,
    /// The time at which the domains are checked again.
    next_look: Option<Instant>,
}

/// The host's records by which a fault of the emulation is told from a failure.
#[derive(Debug, Default)]
struct Seen {
    domains: Vec<KnownDomain>,
    emulator_faults: Vec<String>,
    /// The findings of the first time that a command was late.
    diagnosis: Option<String>,
}

/// A domain that was created on a host.
#[derive(Clone, Debug)]
pub struct KnownDomain {
    /// Its number.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// True for a stock Linux guest, false for a domain of ours.
    pub linux: bool,
    /// True if it is meant to crash.
    pub may_crash: bool,
    /// True if it is meant to start again in place after a crash.
    pub may_restart: bool,
    /// Length of its console's log when it was created.
    pub console_start: u64,
}

impl Host {
    fn new(instance: Instance, stop_on_drop: bool, mitigations: bool) -> Self {
        Self {
            instance,
            stop_on_drop,
            next: AtomicU32::new(0),
            tsc_khz: OnceLock::new(),
            mitigations,
            seen: Mutex::default(),
            watched: Mutex::default(),
        }
    }

    /// Boots a host in `dir` and waits until dom0 answers.
    pub fn boot(dir: PathBuf, image: &HostImage, machine: &Machine, keep: bool) -> Result<Self> {
        let instance = Instance { dir };
        instance.start(image, machine, !keep)?;
        let host = Self::new(instance, !keep, machine.mitigations);
        if let Err(error) = host.wait_ready(BOOT) {
            host.stop()?;
            return Err(error);
        }
        Ok(host)
    }

    /// Attaches to a host that another process started.
    pub fn attach(dir: PathBuf) -> Result<Self> {
        let instance = Instance { dir };
        if instance.pid().is_none() {
            bail!("no host runs in {}", instance.dir.display());
        }
        Ok(Self::new(instance, false, true))
    }

    /// Returns the folder of a named host, which outlives the command that started it.
    pub fn named(name: &str) -> PathBuf {
        workspace::lab().join("hosts").join(name)
    }

    /// Returns the counts of executed instructions, if they are counted.
    pub fn instructions(&self) -> Option<PathBuf> {
        Some(self.instance.instructions()).filter(|counts| counts.exists())
    }

    /// Returns its files.
    pub fn instance(&self) -> &Instance {
        &self.instance
    }

    /// Ends the host at once.
    pub fn stop(&self) -> Result<()> {
        self.instance.kill()
    }

    /// Cuts the power, turns it on again, and waits until dom0 answers. All domains are gone then, and so is data that
    /// had not been written to the lasting disk.
    pub fn cycle_power(&self) -> Result<()> {
        self.instance.cycle_power(self.stop_on_drop)?;
        self.seen().domains.clear();
        {
            let mut watched = self.watched.lock().expect("no thread panicked");
            watched.domains = 0;
            watched.xen_log = length(&self.instance.xen_log());
        }
        self.wait_ready(BOOT)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("no thread panicked")
    }

    /// Returns the frequency of the processors' clock, as Xen measured it.
    pub fn tsc_khz(&self) -> Result<u32> {
        if let Some(&khz) = self.tsc_khz.get() {
            return Ok(khz);
        }
        let khz = self.ok("lab-xen cpu-khz")?.trim().parse()?;
        Ok(*self.tsc_khz.get_or_init(|| khz))
    }

    /// From now on every wait ends at `deadline`, whatever its own limit, or as soon as one of our own
    /// domains crashes.
    pub fn watch(&self, deadline: Instant) {
        *self.watched.lock().expect("no thread panicked") = Watched {
            deadline: Some(deadline),
            domains: self.domains().len(),
            xen_log: length(&self.instance.xen_log()),
            next_look: Some(Instant::now()),
        };
    }

    /// Changes the time at which all waits end.
    pub fn watch_until(&self, deadline: Instant) {
        self.watched.lock().expect("no thread panicked").deadline = Some(deadline);
    }

    /// Ends what [`Self::watch`] began.
    pub fn unwatch(&self) {
        self.watched.lock().expect("no thread panicked").deadline = None;
    }

    /// Returns the crashes of our own domains since [`Self::watch`]: those that ended a domain, as the toolstack logged
    /// them, and those that a domain has survived, as its console says.
    pub fn crashes(&self) -> Vec<String> {
        let start = self.watched.lock().expect("no thread panicked").domains;
        let domains = self.domains();
        let domains = domains.get(start..).unwrap_or_default();
        let mut crashes = fault::crashes(&self.tool_stack_log(), domains);
        crashes.extend(domains.iter().filter_map(|known| {
            let console = read_from(&self.console_log(&known.name), known.console_start);
            fault::restart(&console, known)
        }));
        crashes
    }

    /// Returns what the toolstack logged about all domains, in no particular order.
    pub fn tool_stack_log(&self) -> String {
        fs::read_dir(self.instance.tool_stack_logs())
            .into_iter()
            .flatten()
            .map(|entry| read_from(&entry.map(|entry| entry.path()).unwrap_or_default(), 0))
            .collect()
    }

    /// Returns the domains created so far.
    pub fn domains(&self) -> Vec<KnownDomain> {
        self.seen().domains.clone()
    }

    /// Returns the faults of the emulation since the last call that no log shows: programs of dom0 that died, and the
    /// findings about a silent guest or a silent dom0.
    pub fn take_emulator_faults(&self) -> Vec<String> {
        std::mem::take(&mut self.seen().emulator_faults)
    }

    fn note_domain(&self, id: u32, config: &Config, console_start: u64) {
        self.seen().domains.push(KnownDomain {
            id,
            name: config.name.clone(),
            linux: STOCK.iter().any(|folder| config.kernel.starts_with(folder)),
            may_crash: false,
            may_restart: CRASHES_ON_PURPOSE
                .iter()
                .any(|word| config.cmdline.contains(word)),
            console_start,
        });
    }

    /// Notes that a domain is meant to crash from now on: that ends no wait and is no failure.
    pub fn let_crash(&self, id: u32) {
        let domains = &mut self.seen().domains;
        for known in domains.iter_mut().filter(|known| known.id == id) {
            known.may_crash = true;
        }
    }

    /// Notes that the toolstack has created domain `after` in the place of `before`.
    fn note_reboot(&self, before: u32, after: u32) {
        let domains = &mut self.seen().domains;
        if let Some(known) = domains.iter().find(|known| known.id == before).cloned() {
            domains.push(KnownDomain { id: after, ..known });
        }
    }

    fn wait_ready(&self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        // QEMU writes its process number a moment after it is started.
        let pid_file = Instant::now() + PID_FILE;
        while self.instance.pid().is_none() && Instant::now() < pid_file {
            sleep(TICK);
        }
        self.instance.prefer_main_thread();
        while !self.instance.ready().exists() {
            self.tick(deadline).with_context(|| {
                let log = fs::read(self.instance.xen_log()).unwrap_or_default();
                format!(
                    "dom0 did not come up; the end of its log:\n{}",
                    tail(&String::from_utf8_lossy(&log), 20)
                )
            })?;
        }
        Ok(())
    }

    /// Waits a moment. An error means that the time is over or the host is dead.
    pub(crate) fn tick(&self, deadline: Instant) -> Result<()> {
        self.wait_tick()?;
        if Instant::now() > deadline {
            bail!("time is over");
        }
        Ok(())
    }

    /// Waits a moment. An error means that the host is dead or the scenario's time is over.
    fn wait_tick(&self) -> Result<()> {
        if self.instance.pid().is_none() {
            let log = fs::read_to_string(self.instance.dir.join("qemu.log")).unwrap_or_default();
            bail!("the host's QEMU ended\n{}", tail(&log, 5));
        }
        self.check_scenario()?;
        sleep(TICK);
        Ok(())
    }
}

impl Host {
    /// Checks for the events that end every wait: the scenario's time is over, or a domain has failed.
    fn check_scenario(&self) -> Result<()> {
        let now = Instant::now();
        let xen_start = {
            let mut watched = self.watched.lock().expect("no thread panicked");
            let Some(deadline) = watched.deadline else {
                return Ok(());
            };
            if now > deadline {
                bail!("the whole scenario's time is over");
            }
            if watched.next_look.is_some_and(|next| now < next) {
                return Ok(());
            }
            watched.next_look = Some(now + LOOK);
            watched.xen_log
        };
        if let Some(crash) = self.crashes().first() {
            bail!("{crash}");
        }
        // The lab does not wait for a guest that the emulation has killed.
        let xen = read_from(&self.instance.xen_log(), xen_start);
        match fault::in_logs(&xen, "", &self.domains()).emulator.first() {
            Some(fault) => bail!("{fault}"),
            None => Ok(()),
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if self.stop_on_drop {
            let _ = self.instance.kill();
        }
    }
}

/// Boots a host with the image of a release.
pub fn boot_named(name: &str, release: image::release::Release, machine: &Machine) -> Result<Host> {
    let image = image::ensure(release, &|text| eprintln!("{text}"))?;
    Host::boot(Host::named(name), &image, machine, true)
}

/// Returns the text of a file after its first `start` bytes; nothing if there is no such file.
pub fn read_from(path: &Path, start: u64) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let rest = bytes.get(start as usize..).unwrap_or_default();
    String::from_utf8_lossy(rest).into_owned()
}

/// Returns a file's length; 0 if there is no such file.
pub fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |meta| meta.len())
}
