//! Running scenarios on several hosts at the same time.

use super::Scenario;
use super::report::{Outcome, Summary};
use super::runner::Runner;
use std::sync::Mutex;
use std::{fs, thread, vec};

/// The memory that one host takes on the machine that emulates it, in MiB: its own, QEMU's translated code, and
/// the files that are read for it.
const HOST_MEMORY: u64 = 6144;

/// The number of hosts that this machine can emulate at the same time, two at most. Each keeps one processor
/// busy.
pub fn hosts_that_fit() -> usize {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    hosts_within(processors, available_mib(&memory))
}

fn hosts_within(processors: usize, memory: u64) -> usize {
    let by_memory = usize::try_from(memory / HOST_MEMORY).unwrap_or(usize::MAX);
    processors.min(by_memory).clamp(1, 2)
}

/// The memory that programs can still have, out of the text of `/proc/meminfo`.
fn available_mib(meminfo: &str) -> u64 {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    kib.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) >> 10
}

/// Runs all scenarios. Those that measure (the demo's) run first, while no other host does anything; the hosts
/// share the others.
pub fn run(runners: &mut [Runner], scenarios: &[Scenario]) -> Summary {
    let (measuring, others): (Vec<Scenario>, _) =
        scenarios.iter().partition(|scenario| scenario.demo);
    let mut summary = Summary::default();
    let mut order = Vec::new();
    if let Some(first) = runners.first_mut() {
        order.extend(scenarios.iter().map(|scenario| first.title(scenario)));
        summary.extend(first.run(measuring));
    }
    let waiting = Waiting::new(others);
    thread::scope(|scope| {
        let run = |runner: &mut Runner| {
            let summary = runner.run(&waiting);
            runner.stop();
            summary
        };
        let hosts: Vec<_> = runners
            .iter_mut()
            .map(|runner| scope.spawn(move || run(runner)))
            .collect();
        for host in hosts {
            summary.extend(host.join().expect("a scenario does not panic"));
        }
    });
    let place = |outcome: &Outcome| order.iter().position(|title| *title == outcome.name);
    summary.outcomes.sort_by_key(place);
    summary
}

/// A list of work that several threads share: each takes the next item when it is free.
struct Waiting<T>(Mutex<vec::IntoIter<T>>);

impl<T> Waiting<T> {
    fn new(all: Vec<T>) -> Self {
        Self(Mutex::new(all.into_iter()))
    }
}

impl<T> Iterator for &Waiting<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        self.0.lock().expect("no thread panicked").next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testbed::side_by_side;

    #[test]
    fn as_many_hosts_run_as_have_a_processor_and_memory() {
        let meminfo =
            "MemTotal:       24684232 kB\nMemFree:        100 kB\nMemAvailable:   18604032 kB\n";
        assert_eq!(available_mib(meminfo), 18_168);
        assert_eq!(hosts_within(2, available_mib(meminfo)), 2);
        assert_eq!(hosts_within(64, 1 << 20), 2);
        assert_eq!(hosts_within(1, 1 << 20), 1);
        assert_eq!(hosts_within(8, 2 * HOST_MEMORY - 1), 1);
        assert_eq!(hosts_within(8, available_mib("nonsense")), 1);
    }

    #[test]
    fn what_waits_is_taken_once() {
        let waiting = Waiting::new((0..1000).collect());
        let taken = side_by_side::run(2, |_| Ok(waiting.collect::<Vec<u32>>())).unwrap();
        let mut all = taken.concat();
        all.sort_unstable();
        assert_eq!(all, (0..1000).collect::<Vec<_>>());
    }
}
