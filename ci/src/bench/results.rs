//! Measurements, and the figures derived from them.

use super::Plan;
use super::contestant::Contestant;
use super::instructions;
use super::job::Job;
use super::memory::Memory;
use super::spread::Spread;
use super::statistics::PerOperation;
use serde::Serialize;

/// One contestant's run of one job in one round.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// The round.
    pub round: u32,
    /// The contestant that was measured.
    pub contestant: Contestant,
    /// The job that ran.
    pub job: Job,
    /// Operations per second.
    pub iops: f64,
    /// Bytes per second.
    pub bytes_per_second: f64,
    /// Mean latency in microseconds.
    pub mean_us: f64,
    /// The 99th percentile of latency in microseconds.
    pub p99_us: f64,
    /// The share of the guest that got least, 1 being its fair share.
    pub least_share: f64,
    /// The sum of the operations per second of several guests, as a multiple of the rate of one guest alone, a moment
    /// before.
    pub times_alone: Option<f64>,
    /// Microseconds of the backend domain's processor for an operation.
    pub backend_us: f64,
    /// Microseconds of the guests' processor for an operation.
    pub guest_us: f64,
    /// Microseconds of dom0's processor for an operation, if it serves the backend's own disks.
    pub dom0_us: Option<f64>,
    /// Microseconds of the processor of the server on the network for an operation, if it has a domain of its own.
    pub nbd_server_us: Option<f64>,
    /// The counts of backend and guests for an operation.
    pub cost: Option<PerOperation>,
    /// Instructions for an operation, where they are counted.
    pub instructions: Option<instructions::PerOperation>,
    /// The disturbance of the run, if there was one.
    pub disturbance: Option<String>,
}

impl Run {
    /// Returns the figure by which contestants are compared: operations, or MB, per second.
    pub fn figure(&self) -> f64 {
        if self.job.is_bandwidth() {
            self.bytes_per_second / 1e6
        } else {
            self.iops
        }
    }

    /// Returns the run as a line of text.
    pub fn line(&self) -> String {
        let unit = if self.job.is_bandwidth() {
            "MB/s"
        } else {
            "IOPS"
        };
        let note = match &self.disturbance {
            Some(what) => format!("  DISTURBED: {what}"),
            None => String::new(),
        };
        let dom0 = match self.dom0_us {
            Some(dom0) => format!(", dom0 {dom0:.0} us"),
            None => String::new(),
        };
        let server = match self.nbd_server_us {
            Some(server) => format!(", server {server:.0} us"),
            None => String::new(),
        };
        format!(
            "{:17} {:8.0} {unit}, mean {:.0} us, p99 {:.0} us; CPU for each: backend {:.0} us, guest {:.0} us{dom0}{server}{note}",
            self.job.to_string(),
            self.figure(),
            self.mean_us,
            self.p99_us,
            self.backend_us,
            self.guest_us
        )
    }
}

/// A contestant apart from its jobs.
#[derive(Clone, Debug, Serialize)]
pub struct Contender {
    /// The contestant.
    pub contestant: Contestant,
    /// Seconds from unpausing its domain until it said that it serves.
    pub boot: Option<f64>,
    /// Seconds until a disk was connected.
    pub attach: Option<f64>,
    /// Its domain's memory in MiB, the data included.
    pub memory: Option<u32>,
    /// Its domain's memory with a disk attached, after its jobs.
    pub steady_memory: Option<Memory>,
    /// The bytes of its kernel and of its initramfs, if it has one, compressed.
    pub kernel: Option<u64>,
    /// The part of a processor it used doing nothing with a disk attached.
    pub idle: Option<f64>,
    /// Its failures.
    pub failures: Vec<String>,
    /// True if the time was over before all its jobs were done.
    pub unfinished: bool,
}

impl Contender {
    /// Returns a contestant without any result yet.
    pub fn new(contestant: Contestant, kernel: Option<u64>) -> Self {
        Self {
            contestant,
            boot: None,
            attach: None,
            memory: None,
            steady_memory: None,
            kernel,
            idle: None,
            failures: Vec::new(),
            unfinished: false,
        }
    }
}

/// The results of a bench.
#[derive(Clone, Debug, Serialize)]
pub struct Results {
    /// The plan of the bench.
    pub plan: Plan,
    /// The contestants that took part.
    pub contenders: Vec<Contender>,
    /// All runs, disturbed ones too.
    pub runs: Vec<Run>,
}

/// One contestant's runs of one job.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cell {
    /// Operations, or MB, per second.
    pub figure: Spread,
    /// The median of the mean latencies, in microseconds.
    pub mean_us: f64,
    /// The median of the 99th percentiles.
    pub p99_us: f64,
    /// The median of the backend's processor time for an operation.
    pub backend_us: f64,
    /// The median of the guests' processor time for an operation.
    pub guest_us: f64,
    /// The median of dom0's, if it serves the backend's own disks.
    pub dom0_us: Option<f64>,
    /// The median of that of the server on the network, if it has a domain of its own.
    pub nbd_server_us: Option<f64>,
    /// The least share of a guest in any run.
    pub least_share: f64,
    /// The median of several guests' rates, as multiples of the rate of one guest alone.
    pub times_alone: f64,
    /// The counts of backend and guests for an operation, in the last run.
    pub cost: Option<PerOperation>,
    /// Instructions for an operation, in the run of all that has the median of their sum: nothing disturbs a count.
    pub instructions: Option<instructions::PerOperation>,
    /// The number of disturbed runs that were thrown away.
    pub thrown_away: usize,
    /// True if all runs were disturbed, so that all were kept.
    pub disturbed: bool,
}

impl Cell {
    /// Returns a mark for figures that are not to be trusted.
    pub fn mark(&self) -> &'static str {
        if self.disturbed {
            "!"
        } else if self.figure.is_wide() {
            "~"
        } else {
            ""
        }
    }
}

impl Results {
    /// Returns a contestant's result in a job. Disturbed runs count only where there are no others.
    pub fn cell(&self, contestant: Contestant, job: Job) -> Option<Cell> {
        let all: Vec<&Run> = self
            .runs
            .iter()
            .filter(|run| run.contestant == contestant && run.job == job)
            .collect();
        let clean: Vec<&Run> = all
            .iter()
            .copied()
            .filter(|run| run.disturbance.is_none())
            .collect();
        let disturbed = clean.is_empty();
        let kept = if disturbed { &all } else { &clean };
        let median_of = |value: fn(&Run) -> Option<f64>| {
            Spread::of(kept.iter().filter_map(|run| value(run))).map(|spread| spread.median)
        };
        let median = |value: fn(&Run) -> f64| {
            Spread::of(kept.iter().map(|run| value(run))).map_or(0.0, |spread| spread.median)
        };
        Some(Cell {
            figure: Spread::of(kept.iter().map(|run| run.figure()))?,
            mean_us: median(|run| run.mean_us),
            p99_us: median(|run| run.p99_us),
            backend_us: median(|run| run.backend_us),
            guest_us: median(|run| run.guest_us),
            dom0_us: median_of(|run| run.dom0_us),
            nbd_server_us: median_of(|run| run.nbd_server_us),
            least_share: kept.iter().map(|run| run.least_share).fold(1.0, f64::min),
            times_alone: median(|run| run.times_alone.unwrap_or(1.0)),
            cost: kept.last().and_then(|run| run.cost),
            instructions: median_sum(all.iter().filter_map(|run| run.instructions)),
            thrown_away: all.len() - kept.len(),
            disturbed,
        })
    }

    /// Returns the peer that does a job best, with its result.
    pub fn best_peer(&self, job: Job) -> Option<(Contestant, Cell)> {
        self.contenders
            .iter()
            .map(|contender| contender.contestant)
            .filter(|contestant| contestant.is_peer())
            .filter_map(|contestant| Some((contestant, self.cell(contestant, job)?)))
            .max_by(|(_, a), (_, b)| a.figure.median.total_cmp(&b.figure.median))
    }

    /// Returns the peer with which one of Bulkhead's contestants is compared in a job, with its result.
    pub fn peer(&self, contestant: Contestant, job: Job) -> Option<(Contestant, Cell)> {
        match self.plan.counterpart(contestant) {
            Some(peer) => Some((peer, self.cell(peer, job)?)),
            None => self.best_peer(job),
        }
    }

    /// Returns a contestant's figure as a multiple of its peer's.
    pub fn ratio(&self, contestant: Contestant, job: Job) -> Option<f64> {
        let (_, peer) = self.peer(contestant, job)?;
        Some(self.cell(contestant, job)?.figure.median / peer.figure.median)
    }

    /// Returns a contestant's processor time for an operation as a part of its peer's.
    pub fn cpu_ratio(&self, contestant: Contestant, job: Job) -> Option<f64> {
        let (_, peer) = self.peer(contestant, job)?;
        Some(self.cell(contestant, job)?.backend_us / peer.backend_us)
    }

    /// Returns the instructions of a contestant's server and its Xen for an operation as a part of its peer's.
    pub fn instruction_ratio(&self, contestant: Contestant, job: Job) -> Option<f64> {
        let (_, peer) = self.peer(contestant, job)?;
        let cost = |cell: Cell| cell.instructions.map(|cost| cost.server + cost.xen);
        Some(cost(self.cell(contestant, job)?)? / cost(peer)?)
    }
}

fn median_sum(
    all: impl Iterator<Item = instructions::PerOperation>,
) -> Option<instructions::PerOperation> {
    let mut all: Vec<_> = all.collect();
    all.sort_by(|a, b| a.sum.total_cmp(&b.sum));
    all.get(all.len() / 2).copied()
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::contestant::Family;
    use super::super::network::ServerDomain;
    use super::super::store::Store;
    use super::*;
    use crate::config::Kind;
    use std::time::Duration;

    pub const JOB: Job = Job::ALL[2];
    pub const BULKHEAD: Contestant = Contestant::Bulkhead(Family::Pvh);
    pub const LINUX: Contestant = Contestant::Linux(Family::Pvh);

    fn run(contestant: Contestant, iops: f64, disturbance: Option<&str>) -> Run {
        Run {
            round: 0,
            contestant,
            job: JOB,
            iops,
            bytes_per_second: iops * 4096.0,
            mean_us: 10.0,
            p99_us: 20.0,
            least_share: 1.0,
            times_alone: None,
            backend_us: 1e6 / iops,
            guest_us: 5.0,
            dom0_us: None,
            nbd_server_us: None,
            cost: None,
            instructions: None,
            disturbance: disturbance.map(str::to_owned),
        }
    }

    /// Returns the instructions of a server and its Xen for an operation.
    pub fn cost(server: f64, xen: f64) -> instructions::PerOperation {
        instructions::PerOperation {
            server,
            xen,
            entries: 1.0,
            guest: 1.0,
            guest_xen: 0.0,
            guest_entries: 0.0,
            dom0: None,
            sum: server + xen + 1.0,
        }
    }

    /// Returns results in which Bulkhead is three times as fast as the best of two peers.
    pub fn example() -> Results {
        let contestants = vec![BULKHEAD, LINUX, Contestant::Dom0Blkback];
        Results {
            contenders: contestants
                .iter()
                .map(|&contestant| Contender::new(contestant, Some(300 << 10)))
                .collect(),
            plan: Plan {
                contestants,
                jobs: vec![JOB],
                store: Store::Ram,
                server: ServerDomain::Dom0,
                rounds: 3,
                guests: 1,
                guest_kind: Kind::Pvh,
                persistent: true,
                queues: 1,
                runtime: Duration::from_secs(3),
                limit: Duration::from_secs(60),
                bulkhead_options: String::new(),
                counts: false,
            },
            runs: vec![
                run(BULKHEAD, 6000.0, None),
                run(LINUX, 2000.0, None),
                run(Contestant::Dom0Blkback, 1500.0, None),
                run(Contestant::Dom0Blkback, 9000.0, Some("noise")),
                run(BULKHEAD, 6200.0, None),
                run(LINUX, 2600.0, Some("noise")),
            ],
        }
    }

    #[test]
    fn disturbed_runs_are_thrown_away_where_others_are_left() {
        let results = example();
        let cell = results.cell(LINUX, JOB).unwrap();
        assert_eq!((cell.figure.median, cell.thrown_away), (2000.0, 1));
        assert_eq!(cell.mark(), "");
        let mut worse = results;
        worse.runs.retain(|run| run.disturbance.is_some());
        let cell = worse.cell(LINUX, JOB).unwrap();
        assert_eq!((cell.figure.median, cell.thrown_away), (2600.0, 0));
        assert_eq!(cell.mark(), "!");
        assert_eq!(worse.cell(BULKHEAD, JOB), None);
    }

    #[test]
    fn ratios_are_against_the_best_peer() {
        let results = example();
        assert_eq!(results.best_peer(JOB).unwrap().0, LINUX);
        assert!((results.ratio(BULKHEAD, JOB).unwrap() - 3.05).abs() < 1e-9);
        assert!(results.cpu_ratio(BULKHEAD, JOB).unwrap() < 0.34);
    }
}
