//! Instructions for an operation, counted by a plugin of QEMU's (`ci/plugin/instructions.c`): the cost of serving on a
//! host whose processors are shared. Counts do not depend on the speed or the load of the machine.

use super::contestant::Contestant;
use super::job::RAMP;
use crate::shared_object;
use anyhow::{Context, Result, ensure};
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const SOURCE: &str = include_str!("../../plugin/instructions.c");

/// The margin by which a job's counts begin later and end earlier than its figures.
const MARGIN: Duration = Duration::from_millis(300);

/// The emulated processors: dom0 has the first, driver domains the second, guests the third. A fourth is that of the
/// server on the network, if it has a domain of its own.
const DOM0: usize = 0;
const SERVER: usize = 1;
const GUEST: usize = 2;

/// The number of 64-bit words that the plugin keeps for each processor.
const WORDS: usize = 8;

/// Compiles the plugin. Returns its path.
pub fn build() -> Result<PathBuf> {
    shared_object::build("instructions", SOURCE)
}

/// The instructions that one processor executed since the host was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Executed {
    xen: u64,
    /// Instructions of a Linux kernel, its programs, or the unikernel.
    domain: u64,
    /// Number of entries into Xen.
    entries: u64,
}

impl Executed {
    fn since(self, earlier: Executed) -> Executed {
        Executed {
            xen: self.xen - earlier.xen,
            domain: self.domain - earlier.domain,
            entries: self.entries - earlier.entries,
        }
    }

    fn all(self) -> u64 {
        self.xen + self.domain
    }
}

/// Reads the plugin's file: at least three processors.
fn parse(bytes: &[u8]) -> Result<Vec<Executed>> {
    let words: Vec<u64> = bytes
        .chunks_exact(8)
        .map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes")))
        .collect();
    let processors = words.chunks_exact(WORDS).map(|words| {
        let [xen, kernel, program, low, entries, ..] = *words else {
            unreachable!("chunks of eight words");
        };
        Executed {
            xen,
            domain: kernel + program + low,
            entries,
        }
    });
    let processors: Vec<Executed> = processors.collect();
    ensure!(processors.len() > GUEST, "QEMU's plugin counts nothing");
    Ok(processors)
}

/// The instructions that the emulated processors executed while a job ran.
#[derive(Clone, Debug)]
pub struct Window {
    executed: Vec<Executed>,
    took: Duration,
}

impl Window {
    /// Waits for the part of a job that has just begun in which its figures are measured, and counts in it.
    pub fn watch(counts: &Path, runtime: Duration) -> Result<Self> {
        let read = || parse(&fs::read(counts).context("QEMU's plugin left no counts")?);
        std::thread::sleep(RAMP + MARGIN);
        let (begin, before) = (Instant::now(), read()?);
        std::thread::sleep(runtime.saturating_sub(MARGIN * 2));
        let (took, after) = (begin.elapsed(), read()?);
        let both = after.into_iter().zip(before);
        let executed = both.map(|(after, before)| after.since(before)).collect();
        Ok(Self { executed, took })
    }

    /// Returns the cost of each operation of a job that did `iops` of them in a second.
    pub fn per_operation(&self, contestant: Contestant, iops: f64) -> PerOperation {
        let operations = iops * self.took.as_secs_f64();
        let per = |count: u64| count as f64 / operations;
        let in_dom0 = contestant.server().is_none();
        let server = self.executed[if in_dom0 { DOM0 } else { SERVER }];
        let (guest, dom0) = (self.executed[GUEST], self.executed[DOM0]);
        PerOperation {
            server: per(server.domain),
            xen: per(server.xen),
            entries: per(server.entries),
            guest: per(guest.all()),
            guest_xen: per(guest.xen),
            guest_entries: per(guest.entries),
            dom0: (!in_dom0).then(|| per(dom0.all())),
            sum: per(self.executed.iter().map(|one| one.all()).sum()),
        }
    }
}

/// The instructions for an operation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PerOperation {
    /// Instructions of the server itself: the unikernel, or a Linux and its programs.
    pub server: f64,
    /// Instructions of Xen on the server's processor.
    pub xen: f64,
    /// The number of entries into Xen there.
    pub entries: f64,
    /// Instructions on the guest's processor, Xen's included.
    pub guest: f64,
    /// Instructions of Xen among these.
    pub guest_xen: f64,
    /// The number of entries into Xen there.
    pub guest_entries: f64,
    /// Instructions of dom0 with its Xen, where it is not the server.
    pub dom0: Option<f64>,
    /// The sum of all, unused processors included.
    pub sum: f64,
}

#[cfg(test)]
mod tests {
    use super::super::contestant::Family;
    use super::*;

    fn window() -> Window {
        let executed = |xen, domain, entries| Executed {
            xen,
            domain,
            entries,
        };
        Window {
            executed: vec![
                executed(1000, 3000, 10),
                executed(20_000, 40_000, 400),
                executed(5000, 65_000, 100),
            ],
            took: Duration::from_secs(2),
        }
    }

    #[test]
    fn the_plugin_counts_for_each_processor() {
        let words = |from: u64| (from..from + 8).flat_map(u64::to_le_bytes);
        let bytes: Vec<u8> = [0, 10, 20, 30].into_iter().flat_map(words).collect();
        let [dom0, server, ..] = parse(&bytes).unwrap()[..] else {
            panic!("there are four");
        };
        assert_eq!((dom0.xen, dom0.domain, dom0.entries), (0, 1 + 2 + 3, 4));
        assert_eq!((server.xen, server.domain), (10, 11 + 12 + 13));
        assert!(parse(&bytes[..128]).is_err());
        assert_eq!(dom0.since(dom0), Executed::default());
    }

    #[test]
    fn instructions_are_divided_by_the_operations_of_the_window() {
        let cost = window().per_operation(Contestant::Linux(Family::Pvh), 50.0);
        assert_eq!((cost.server, cost.xen, cost.entries), (400.0, 200.0, 4.0));
        assert_eq!(
            (cost.guest, cost.guest_xen, cost.dom0),
            (700.0, 50.0, Some(40.0))
        );
        assert_eq!(cost.sum, 1340.0);
    }

    #[test]
    fn what_dom0_serves_is_counted_once() {
        let cost = window().per_operation(Contestant::Dom0Blkback, 50.0);
        assert_eq!((cost.server, cost.xen, cost.dom0), (30.0, 10.0, None));
        assert_eq!(cost.sum, 1340.0);
    }

    #[test]
    fn the_plugin_compiles() {
        assert!(build().unwrap().exists());
    }
}
