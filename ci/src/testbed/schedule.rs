//! Running scenarios on several hosts at the same time.

use super::report::{Outcome, Summary};
use super::runner::Runner;
use super::{Part, Scenario};
use crate::host::pci::PciDevice;
use std::sync::{Condvar, Mutex, mpsc};
use std::{fs, thread};

/// The memory that one host takes on the machine that emulates it, in MiB: its own, QEMU's translated code, and the
/// files that are read for it.
const HOST_MEMORY: u64 = 6144;

/// Returns the number of hosts that this machine can emulate at the same time, two at most. Each keeps one processor
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

/// Returns the memory that programs can still have, from the text of `/proc/meminfo`.
fn available_mib(meminfo: &str) -> u64 {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    kib.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) >> 10
}

/// A scenario, and the host that it needs.
#[derive(Clone, Copy)]
pub struct Job {
    /// The scenario.
    pub scenario: Scenario,
    /// The devices that its host has for domains.
    pub devices: &'static [PciDevice],
}

/// The processor of the last host, on which other work may run at first.
#[derive(Debug, Default)]
pub struct LastHost {
    free: Mutex<bool>,
    changed: Condvar,
}

impl LastHost {
    /// Returns a host whose processor is free.
    pub fn free() -> Self {
        let host = Self::default();
        host.release();
        host
    }

    /// Notes that its processor is free from now on.
    pub fn release(&self) {
        *self.free.lock().expect("no thread panicked") = true;
        self.changed.notify_all();
    }

    fn wait(&self) {
        let mut free = self.free.lock().expect("no thread panicked");
        while !*free {
            free = self.changed.wait(free).expect("no thread panicked");
        }
    }
}

/// Runs all scenarios, which the hosts share; the last host begins when its processor is free. Those that measure (the
/// demo's) run last, when no other host does anything.
pub fn run(runners: &mut [Runner], jobs: &[Job], last: &LastHost) -> Summary {
    let Some(last_number) = runners.len().checked_sub(1) else {
        return Summary::default();
    };
    let title = |job: &Job| runners[0].title(&job.scenario);
    let order: Vec<String> = jobs.iter().map(title).collect();
    let (measuring, others): (Vec<Job>, _) =
        jobs.iter().partition(|job| job.scenario.part == Part::Demo);
    let (others, measuring) = (Waiting(Mutex::new(others)), Waiting(Mutex::new(measuring)));
    let mut summary = Summary::default();
    let summaries = first_alone_at_last(
        runners,
        |number, runner| {
            if number == last_number {
                last.wait();
            }
            let summary = runner.run(|devices| others.next(devices));
            if number > 0 {
                runner.stop();
            }
            summary
        },
        |runner| {
            let summary = runner.run(|devices| measuring.next(devices));
            runner.stop();
            summary
        },
    );
    summaries.into_iter().for_each(|part| summary.extend(part));
    let place = |outcome: &Outcome| order.iter().position(|title| *title == outcome.name);
    summary.outcomes.sort_by_key(place);
    summary
}

/// Has each host do `shared`, side by side, and then the first host `alone`, once the others have ended. Returns their
/// results.
///
/// A host has one thread for all of its work: its QEMU ends with the thread that started it (`setpriv --pdeathsig`).
fn first_alone_at_last<H: Send, T: Send>(
    hosts: &mut [H],
    shared: impl Fn(usize, &mut H) -> T + Sync,
    alone: impl FnOnce(&mut H) -> T + Send,
) -> Vec<T> {
    let Some((first, others)) = hosts.split_first_mut() else {
        return Vec::new();
    };
    let shared = &shared;
    let (ended, others_ended) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let first = scope.spawn(move || {
            let result = shared(0, first);
            // Nothing is sent: the other end goes when the others have ended.
            let _ = others_ended.recv();
            [result, alone(first)]
        });
        let others: Vec<_> = (1..)
            .zip(others)
            .map(|(number, host)| scope.spawn(move || shared(number, host)))
            .collect();
        let join = |result: thread::Result<T>| result.expect("a scenario does not panic");
        let others: Vec<T> = others.into_iter().map(|host| join(host.join())).collect();
        drop(ended);
        let first = first.join().expect("a scenario does not panic");
        first.into_iter().chain(others).collect()
    })
}

/// A list of work that several hosts share: each takes the next job that it can do when it is free.
struct Waiting(Mutex<Vec<Job>>);

impl Waiting {
    /// Returns the next job for a host with these devices; where none is left for it, the next for another host.
    fn next(&self, devices: Option<&[PciDevice]>) -> Option<Job> {
        let mut jobs = self.0.lock().expect("no thread panicked");
        let fits = |job: &Job| devices == Some(job.devices);
        let place = jobs.iter().position(fits).unwrap_or(0);
        (place < jobs.len()).then(|| jobs.remove(place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::pci;
    use crate::testbed::side_by_side;
    use std::time::Duration;

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

    fn jobs(count: usize, devices: &'static [PciDevice]) -> Vec<Job> {
        let scenario = Scenario {
            name: "one",
            about: "nothing",
            part: Part::Suite,
            run: |_| Ok(()),
        };
        vec![Job { scenario, devices }; count]
    }

    #[test]
    fn the_first_host_is_alone_at_last_and_has_one_thread() {
        for count in 0..4 {
            let running = Mutex::new(0);
            let mut hosts = vec![None; count];
            let done = first_alone_at_last(
                &mut hosts,
                |number, host| {
                    *running.lock().unwrap() += 1;
                    *host = Some(thread::current().id());
                    thread::sleep(Duration::from_millis(20 * number as u64));
                    *running.lock().unwrap() -= 1;
                    number
                },
                |host| {
                    assert_eq!(*running.lock().unwrap(), 0, "another host does something");
                    assert_eq!(*host, Some(thread::current().id()));
                    100
                },
            );
            let mut expected: Vec<usize> = (0..count).collect();
            if count > 0 {
                expected.insert(1, 100);
            }
            assert_eq!(done, expected);
        }
    }

    #[test]
    fn what_waits_is_taken_once() {
        let waiting = Waiting(Mutex::new(jobs(1000, &[])));
        let taken = side_by_side::run(2, |_| {
            Ok(std::iter::from_fn(|| waiting.next(Some(&[]))).count())
        });
        assert_eq!(taken.unwrap().iter().sum::<usize>(), 1000);
    }

    #[test]
    fn a_host_is_made_anew_only_where_nothing_is_left_for_it() {
        let all = [jobs(2, &[]), jobs(3, pci::LAB), jobs(2, &[])].concat();
        let taken = |first: Option<&'static [PciDevice]>| {
            let waiting = Waiting(Mutex::new(all.clone()));
            let mut devices = first;
            let next = || {
                let job = waiting.next(devices)?;
                devices = Some(job.devices);
                Some(job.devices.len())
            };
            std::iter::from_fn(next).collect::<Vec<_>>()
        };
        let lab = pci::LAB.len();
        assert_eq!(taken(None), [0, 0, 0, 0, lab, lab, lab]);
        assert_eq!(taken(Some(pci::LAB)), [lab, lab, lab, 0, 0, 0, 0]);
    }

    #[test]
    fn the_last_host_waits_for_its_processor() {
        let last = LastHost::default();
        let (told, waited) = std::sync::mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(|| {
                last.wait();
                told.send(()).unwrap();
            });
            assert!(waited.try_recv().is_err(), "it did not wait");
            last.release();
            waited.recv().unwrap();
        });
        LastHost::free().wait();
    }
}
