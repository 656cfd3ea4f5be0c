//! Measurements while fio runs: the processor time of every domain, and disturbances.

use crate::host::Host;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

/// The part of a processor that domains which take no part may use together. dom0 needs half of that to start the
/// guests' jobs, before fio does its first I/O.
const OTHER_DOMAINS: f64 = 0.2;

/// The part of a processor that programs beside the emulator may use of those that it needs.
const OTHER_PROGRAMS: f64 = 0.15;

/// Processors that the emulated host keeps busy.
const EMULATED: f64 = 2.0;

/// The load of every domain.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Load {
    /// The part of a processor that each domain used.
    domains: BTreeMap<u32, f64>,
}

impl Load {
    /// Returns the part of a processor that a domain used.
    pub fn of(&self, domain: u32) -> f64 {
        self.domains.get(&domain).copied().unwrap_or(0.0)
    }

    /// Returns the part of a processor that all domains but these used.
    pub fn others(&self, taking_part: &[u32]) -> f64 {
        let others = self.domains.iter();
        others
            .filter(|(domain, _)| !taking_part.contains(domain))
            .map(|(_, part)| part)
            .sum()
    }

    /// Reads the output of `lab-xen load`.
    fn parse(text: &str) -> Result<(Duration, Self)> {
        let mut lines = text.lines().skip_while(|line| *line == "begun");
        let window: f64 = lines.next().context("no window")?.trim().parse()?;
        let domains = lines.map(|line| {
            let (domain, used) = line.split_once(' ').context("no pair of numbers")?;
            Ok((domain.parse()?, used.trim().parse::<f64>()? / window))
        });
        let domains = domains.collect::<Result<_>>()?;
        Ok((Duration::from_nanos(window as u64), Self { domains }))
    }
}

/// A window of time watched.
#[derive(Clone, Debug)]
pub struct Watched {
    /// Length of the measurement.
    pub window: Duration,
    /// The load of every domain.
    pub load: Load,
    /// The part of a processor that other programs took on the machine that emulates the host, beyond
    /// those that the emulator leaves free.
    pub programs: f64,
}

/// The first reading of a window. The program that takes both readings is started before the window and waits in it:
/// dom0 should do nothing while a measurement runs.
pub struct Watch<'h> {
    host: &'h Host,
    machine: Machine,
}

impl<'h> Watch<'h> {
    /// Begins a window.
    pub fn begin(host: &'h Host) -> Result<Self> {
        host.ok("rm -f /run/load.*; mkfifo /run/load.fifo || exit\n\
             timeout 600 lab-xen load /run/load.fifo </dev/null >/run/load.out 2>&1 &\n\
             for i in $(seq 600); do [ -s /run/load.out ] && exit; sleep 0.05; done; exit 1")
            .context("the first reading was not taken")?;
        let machine = Machine::now(host)?;
        Ok(Self { host, machine })
    }

    /// Ends the window.
    pub fn end(self) -> Result<Watched> {
        let programs = Machine::now(self.host)?.taken_since(&self.machine);
        let text = self
            .host
            .ok("echo >/run/load.fifo; for i in $(seq 600); do\n\
             [ -e /run/load.fifo ] || { cat /run/load.out; exit; }; sleep 0.05; done; exit 1")?;
        let (window, load) =
            Load::parse(&text).with_context(|| format!("lab-xen load said {text:?}"))?;
        Ok(Watched {
            window,
            load,
            programs,
        })
    }
}

impl Watched {
    /// Returns the processor time that a domain used.
    pub fn used(&self, domain: u32) -> Duration {
        self.window.mul_f64(self.load.of(domain))
    }

    /// Returns the disturbance of a measurement of these domains, if there was one.
    pub fn disturbance(&self, taking_part: &[u32]) -> Option<String> {
        let others = self.load.others(taking_part);
        if others > OTHER_DOMAINS {
            return Some(format!("other domains used {:.0} %", others * 100.0));
        }
        (self.programs > OTHER_PROGRAMS).then(|| {
            let taken = self.programs * 100.0;
            format!("other programs took {taken:.0} % of a processor")
        })
    }
}

/// The machine that emulates the host: its processor time so far, in ticks of its clock.
struct Machine {
    total: f64,
    busy: f64,
    emulator: f64,
    processors: f64,
}

impl Machine {
    fn now(host: &Host) -> Result<Self> {
        let pid = host.instance().pid().context("the host's QEMU ended")?;
        let all = fs::read_to_string("/proc/stat")?;
        let one = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        Self::parse(&all, &one).context("/proc/stat is not in the expected format")
    }

    /// Reads /proc/stat from `all`, and that of the emulator from `one` (see proc(5)).
    fn parse(all: &str, one: &str) -> Option<Self> {
        let numbers = |line: &str| -> Vec<f64> {
            line.split_whitespace()
                .filter_map(|word| word.parse().ok())
                .collect()
        };
        let ticks = numbers(all.lines().find(|line| line.starts_with("cpu "))?);
        // user, nice, system, idle, iowait, irq, softirq, steal; guest time is part of user's.
        let total = ticks.iter().take(8).sum();
        let idle = ticks.get(3)? + ticks.get(4)?;
        let processors = all
            .lines()
            .filter(|line| line.starts_with("cpu") && !line.starts_with("cpu "))
            .count();
        // The name may contain blanks; fields 14 and 15 are user and system time, and 3 follows it.
        let (_, fields) = one.rsplit_once(") ")?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
        Some(Self {
            total,
            busy: total - idle,
            emulator: field(14)? + field(15)?,
            processors: processors as f64,
        })
    }

    /// Returns the part of a processor that other programs took and that the emulator might have needed.
    fn taken_since(&self, earlier: &Machine) -> f64 {
        let total = self.total - earlier.total;
        if total <= 0.0 {
            return 0.0;
        }
        let others = (self.busy - earlier.busy) - (self.emulator - earlier.emulator);
        let used = others / total * self.processors;
        let spare = (self.processors - EMULATED).max(0.0);
        (used - spare).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_are_parts_of_the_window() {
        let (window, load) =
            Load::parse("begun\n2000000\n0 100000\n3 1000000\n7 1900000\n").unwrap();
        assert_eq!(window, Duration::from_millis(2));
        assert!((load.of(3) - 0.5).abs() < 1e-9);
        assert!((load.others(&[3, 7]) - 0.05).abs() < 1e-9);
        assert_eq!(load.of(9), 0.0);
        assert!(Load::parse("begun\n").is_err());
        assert!(Load::parse("12\nnonsense\n").is_err());
    }

    #[test]
    fn what_others_take_from_the_emulator_is_seen() {
        let stat = |user: u32, idle: u32| {
            format!("cpu  {user} 0 0 {idle} 0 0 0 0 0 0\ncpu0 1 2\ncpu1 1 2\nintr 5\n")
        };
        let one =
            |user: u32| format!("42 (qemu system) S 1 2 3 4 5 6 7 8 9 10 {user} 0 0 0 20 0\n");
        let before = Machine::parse(&stat(100, 100), &one(10)).unwrap();
        // 200 ticks of two processors: 150 the emulator's, 30 others', 20 idle.
        let after = Machine::parse(&stat(280, 120), &one(160)).unwrap();
        assert!((after.taken_since(&before) - 0.3).abs() < 1e-9);
        let watched = Watched {
            window: Duration::from_secs(2),
            load: Load::default(),
            programs: 0.3,
        };
        assert!(watched.disturbance(&[]).unwrap().contains("30 %"));
    }
}
