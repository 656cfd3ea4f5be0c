//! A domain that the lab created: its console, its life and its end.

use super::{Host, Output, length, read_from};
use crate::config::Config;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Time limit for a command of the toolstack.
pub const TOOLSTACK: Duration = Duration::from_secs(60);

/// Time limit for a domain to end when it is asked to: a driver domain has disks to close, and libxl waits for ten
/// seconds for each device of which a domain does not let go.
const SHUTDOWN: Duration = Duration::from_secs(40);

/// The share of the processors that every domain has in Xen's scheduler, and a larger one that outweighs a few busy
/// guests.
const WEIGHT: u32 = 256;
const MORE_WEIGHT: u32 = 2048;

/// dom0's larger share of the processors; dropping it gives dom0 the same share as others again.
pub struct Preference<'h>(&'h Host);

impl Drop for Preference<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.weigh_dom0(WEIGHT) {
            eprintln!("dom0 keeps its weight: {error:#}");
        }
    }
}

/// The shortest time for which a domain keeps a processor, in microseconds: Xen's default, and one for several busy
/// guests. Whenever Xen switches from one to another, the emulated processor loses all its cached address translations.
const TURN: u32 = 1_000;
const LONG_TURN: u32 = 10_000;

/// Longer turns for all domains; dropping it gives them Xen's default again.
pub struct LongTurns<'h>(&'h Host);

impl Drop for LongTurns<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.set_turn(TURN) {
            eprintln!("domains keep their long turns: {error:#}");
        }
    }
}

/// A domain. It is destroyed when this value is dropped.
#[derive(Debug)]
pub struct Domain<'h> {
    /// The host it runs on.
    pub host: &'h Host,
    /// Its name.
    pub name: String,
    /// Its number.
    pub id: u32,
    console_start: u64,
    gone: bool,
}

impl Host {
    /// Creates a domain and lets it run.
    pub fn create(&self, config: &Config) -> Result<Domain<'_>> {
        let path = self.write_config(config)?;
        // One that runs at once may end before xl is asked for its number.
        let unpause = format!("&& xl unpause '{}'", config.name);
        self.create_with(&path, &unpause, config)
    }

    /// Creates a domain that does not run yet.
    pub fn create_paused(&self, config: &Config) -> Result<Domain<'_>> {
        let path = self.write_config(config)?;
        self.create_with(&path, "", config)
    }

    /// Creates a domain, which does not run yet, from a configuration file of dom0's. Only the settings that an
    /// emulated host needs are taken from `config`: processors, clock and the kernel's command line.
    pub fn create_paused_from(&self, path: &str, config: &Config) -> Result<Domain<'_>> {
        let mut words = format!("{path} 'cpus=\"{}\"' 'tsc_mode=\"native\"'", config.cpus);
        if !config.cmdline.is_empty() {
            words += &format!(" 'cmdline=\"{}\"'", config.cmdline);
        }
        self.create_with(&words, "", config)
    }

    /// Creates a domain that does not run yet: `words` are passed to `xl create`. `then` is the shell's next command,
    /// which prints nothing.
    fn create_with(&self, words: &str, then: &str, config: &Config) -> Result<Domain<'_>> {
        // Made before the check: what xl left half made goes away with it.
        let mut domain = Domain {
            host: self,
            name: config.name.clone(),
            id: 0,
            console_start: length(&self.console_log(&config.name)),
            gone: false,
        };
        let name = &config.name;
        let script = format!("xl create -qp {words} && xl domid '{name}' {then}");
        let text = self.ok(&script)?;
        // xl prints remarks about the configuration before.
        let last = text.lines().last().unwrap_or_default();
        domain.id = last
            .trim()
            .parse()
            .with_context(|| format!("xl domid said {text:?}"))?;
        self.note_domain(domain.id, config, domain.console_start);
        Ok(domain)
    }

    /// Runs `xl create` with a configuration that may be refused.
    pub fn try_create(&self, config: &Config) -> Result<Output> {
        let path = self.write_config(config)?;
        self.exec(&format!("xl create -q {path}"), TOOLSTACK)
    }

    fn write_config(&self, config: &Config) -> Result<String> {
        let dir = self.instance().share().join("config");
        fs::create_dir_all(&dir)?;
        fs::write(dir.join(&config.name), config.to_string())?;
        Ok(format!("/lab/config/{}", config.name))
    }

    /// Attaches a disk to a running guest, as `xl block-attach` does, and waits until its backend is
    /// connected. Returns how long that took. `device` is the number of the virtual device.
    pub fn attach_disk(&self, guest: &Domain, disk: &str, device: u32) -> Result<Duration> {
        let script = format!("lab-xen attach {} {device} '{disk}'", guest.id);
        let output = self.exec(&script, TOOLSTACK)?;
        if output.status != 0 {
            bail!("{disk} was not attached: {}{}", output.out, output.err);
        }
        Ok(Duration::from_micros(output.out.trim().parse()?))
    }

    /// Returns the memory that a domain has, in MiB.
    pub fn memory_of(&self, name: &str) -> Result<u32> {
        let list = self.ok(&format!("xl list '{name}'"))?;
        let row = list.lines().nth(1).unwrap_or_default();
        row.split_whitespace()
            .nth(2)
            .and_then(|word| word.parse().ok())
            .with_context(|| format!("xl list printed {list}"))
    }

    /// Gives dom0 a larger share of the processors as long as the result lives, so that busy guests do not
    /// delay the toolstack.
    pub fn prefer_dom0(&self) -> Result<Preference<'_>> {
        self.weigh_dom0(MORE_WEIGHT)?;
        Ok(Preference(self))
    }

    fn weigh_dom0(&self, weight: u32) -> Result<()> {
        let script = format!("xl sched-credit2 -d Domain-0 -w {weight}");
        self.ok(&script).map(drop)
    }

    /// Lets each domain keep a processor for longer, as long as the result lives.
    pub fn lengthen_turns(&self) -> Result<LongTurns<'_>> {
        self.set_turn(LONG_TURN)?;
        Ok(LongTurns(self))
    }

    fn set_turn(&self, microseconds: u32) -> Result<()> {
        let script = format!("xl sched-credit2 -s -r {microseconds}");
        self.ok(&script).map(drop)
    }

    /// Returns the file that holds a domain's console.
    pub fn console_log(&self, name: &str) -> PathBuf {
        self.instance()
            .share()
            .join(format!("console/guest-{name}.log"))
    }
}

impl Domain<'_> {
    /// Returns everything that this domain printed.
    pub fn console(&self) -> String {
        read_from(&self.host.console_log(&self.name), self.console_start)
    }

    /// Returns how many bytes this domain has printed so far, for [`Self::console_from`].
    pub fn console_length(&self) -> usize {
        self.console().len()
    }

    /// Returns its output after the first `start` bytes.
    pub fn console_from(&self, start: usize) -> String {
        let text = self.console();
        text.get(start..).unwrap_or_default().to_owned()
    }

    /// Waits until the console shows `text`; the error shows the console's end.
    pub fn wait_console(&self, text: &str, limit: Duration) -> Result<()> {
        self.wait_console_from(0, text, limit).map(drop)
    }

    /// Waits until the console shows `text` after its first `start` bytes, and returns that line.
    pub fn wait_console_from(&self, start: usize, text: &str, limit: Duration) -> Result<String> {
        let deadline = Instant::now() + limit;
        loop {
            let console = self.console_from(start);
            if let Some(line) = console.lines().find(|line| line.contains(text)) {
                return Ok(line.to_owned());
            }
            self.host.tick(deadline).with_context(|| {
                let end = crate::process::tail(&console, 12);
                format!(
                    "{}'s console did not show {text:?} within {limit:?}; its end:\n{end}",
                    self.name
                )
            })?;
        }
    }

    /// Returns the processor time that it has used so far, as Xen counts it.
    pub fn cpu_time(&self) -> Result<Duration> {
        let text = self.host.ok(&format!("lab-xen cpu-time {}", self.id))?;
        Ok(Duration::from_nanos(text.trim().parse()?))
    }

    /// Unpauses a domain and waits until its console shows `text`. Returns how long that took, measured
    /// inside the host.
    pub fn unpause_until(&self, text: &str, limit: Duration) -> Result<Duration> {
        let script = format!(
            "lab-xen unpause-until {} /lab/console/guest-{}.log {} {text:?} {}",
            self.id,
            self.name,
            self.console_start,
            limit.as_secs()
        );
        let output = self.host.exec(&script, limit + TOOLSTACK)?;
        if output.status != 0 {
            let end = crate::process::tail(&self.console(), 12);
            bail!(
                "{} did not show {text:?}: {}{}; the end of its console:\n{end}",
                self.name,
                output.out,
                output.err
            );
        }
        Ok(Duration::from_micros(output.out.trim().parse()?))
    }

    /// Waits until Xen has removed it.
    pub fn wait_gone(&mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        // Where several domains end at once, asking xl again and again would hold them up. The
        // toolstack's own directory of a domain is the last that it removes.
        let Self { id, name, .. } = self;
        let gone = format!(
            "SECONDS=0; while [ $SECONDS -lt {} ] && xenstore-exists /libxl/{id}; do sleep 0.2; done; \
             ! xl domid '{name}'",
            limit.as_secs()
        );
        while self.host.exec(&gone, limit + TOOLSTACK)?.status != 0 {
            self.host
                .tick(deadline)
                .with_context(|| format!("{} is still there after {limit:?}", self.name))?;
        }
        self.gone = true;
        Ok(())
    }

    /// Asks it to shut down and waits for the end.
    pub fn shutdown(&mut self) -> Result<()> {
        self.host.ok(&format!("xl shutdown '{}'", self.name))?;
        self.wait_gone(SHUTDOWN)
    }

    /// Has it panic (one of our own domains), and waits until its code has ended.
    pub fn crash(&self) -> Result<()> {
        self.host.let_crash(self.id);
        self.host.ok(&format!("xl sysrq '{}' c", self.name))?;
        let deadline = Instant::now() + SHUTDOWN;
        // SHUTDOWN_crash (sched.h).
        let ended = format!("Domain {} has shut down, reason code 3 ", self.id);
        while !self.host.tool_stack_log().contains(&ended) {
            self.host
                .tick(deadline)
                .with_context(|| format!("{} does not crash", self.name))?;
        }
        Ok(())
    }

    /// Destroys it.
    pub fn destroy(&mut self) -> Result<()> {
        self.host.ok(&format!("xl destroy '{}'", self.name))?;
        self.gone = true;
        Ok(())
    }

    /// Destroys it after it has ended without letting go of its PCI devices. pciback is answered in its place: libxl
    /// waits for that for ten seconds, twice, if there are several devices.
    pub fn destroy_with_devices(&mut self) -> Result<()> {
        // As in xenbus.h: 7 is Reconfiguring, 8 Reconfigured, 4 Connected.
        let script = format!(
            "xl destroy '{}' & pid=$!; \
             back=/local/domain/0/backend/pci/{id}/0/state; front=/local/domain/{id}/device/pci/0/state; \
             while kill -0 $pid 2>/dev/null; do \
             case $(xenstore-read $back 2>/dev/null) in \
             7) xenstore-write $front 7;; 8) xenstore-write $front 4;; esac; \
             sleep 0.1; done; wait $pid",
            self.name,
            id = self.id
        );
        self.host.ok(&script)?;
        self.gone = true;
        Ok(())
    }

    /// Destroys several domains of one host at the same time.
    pub fn destroy_all<'d, 'h: 'd>(
        domains: impl IntoIterator<Item = &'d mut Domain<'h>>,
    ) -> Result<()> {
        let domains: Vec<_> = domains.into_iter().collect();
        let names: Vec<&str> = domains.iter().map(|domain| domain.name.as_str()).collect();
        let script = format!(
            "pids=; for name in {}; do xl destroy $name & pids=\"$pids $!\"; done; \
             for pid in $pids; do wait $pid || exit; done",
            names.join(" ")
        );
        if let Some(first) = domains.first() {
            first.host.ok(&script)?;
        }
        domains.into_iter().for_each(|domain| domain.gone = true);
        Ok(())
    }

    /// Notes that it ended with its host: there is nothing to destroy.
    pub fn ended_with_host(&mut self) {
        self.gone = true;
    }

    /// Writes an operator's request into the node `data/NODE`, and returns the answer.
    pub fn ask(&self, node: &str, request: &str) -> Result<String> {
        let node = format!("/local/domain/{}/data/{node}", self.id);
        let script = format!(
            "xenstore-rm {node}-answer 2>/dev/null\nxenstore-write {node} '{request}'\n\
             for n in $(seq 100); do xenstore-read -R {node}-answer 2>/dev/null && exit; sleep 0.1; done\n\
             echo 'no answer'; exit 1"
        );
        Ok(self.host.ok(&script)?.trim().to_owned())
    }

    /// Pauses it.
    pub fn pause(&self) -> Result<()> {
        self.host.ok(&format!("xl pause '{}'", self.name)).map(drop)
    }

    /// Unpauses it.
    pub fn unpause(&self) -> Result<()> {
        self.host
            .ok(&format!("xl unpause '{}'", self.name))
            .map(drop)
    }

    /// Saves it to a file and ends it, as `xl save` does. [`Self::restore`] creates it again.
    pub fn save(&self, path: &str, limit: Duration) -> Result<()> {
        let script = format!("xl save '{}' {path}", self.name);
        let output = self.host.exec(&script, limit)?;
        if output.status != 0 {
            bail!("{script}: {}{}", output.out, output.err);
        }
        Ok(())
    }

    /// Restores it from the file of [`Self::save`]; it has another number then.
    pub fn restore(&mut self, path: &str, limit: Duration) -> Result<()> {
        let script = format!("xl restore {path}");
        let output = self.host.exec(&script, limit)?;
        if output.status != 0 {
            bail!("{script}: {}{}", output.out, output.err);
        }
        self.wait_remade(TOOLSTACK)
    }

    /// Waits until the toolstack has created another domain in the place of this one, and stands for that one.
    pub fn wait_remade(&mut self, limit: Duration) -> Result<()> {
        let Self { id, name, .. } = self;
        let script = format!(
            "SECONDS=0; while [ $SECONDS -lt {} ]; do new=$(xl domid '{name}' 2>/dev/null) && \
             [ $new != {id} ] && echo $new && exit; sleep 0.5; done; exit 1",
            limit.as_secs(),
        );
        let output = self.host.exec(&script, limit + TOOLSTACK)?;
        if output.status != 0 {
            bail!("no other {name} came in the place of domain {id} within {limit:?}");
        }
        let before = std::mem::replace(id, output.out.trim().parse()?);
        self.host.note_reboot(before, self.id);
        Ok(())
    }
}

impl Drop for Domain<'_> {
    fn drop(&mut self) {
        if !self.gone {
            let script = format!("xl destroy '{}' 2>/dev/null", self.name);
            // The check between scenarios finds what this could not remove.
            let _ = self.host.exec(&script, TOOLSTACK);
        }
    }
}
