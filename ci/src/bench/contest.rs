//! The order of events: every contestant in its turn, round after round.

use super::Plan;
use super::at_once::{self, Done};
use super::contestant::Contestant;
use super::field::Field;
use super::job::Job;
use super::memory::Memory;
use super::meter::Watch;
use super::results::{Contender, Results, Run};
use super::statistics;
use crate::host::Host;
use crate::testbed::progress::Progress;
use anyhow::{Context, Result};
use std::time::{Duration, Instant};

/// The time for which an idle contestant with an attached disk is watched.
const IDLE: Duration = Duration::from_secs(4);

/// dom0's number.
const DOM0: u32 = 0;

/// The number of failures after which a contestant takes no further part.
const MOST_FAILURES: usize = 2;

/// Runs the whole contest on a booted host. Calls `keep` with the results so far after every turn.
pub fn run(
    plan: &Plan,
    host: &Host,
    sizes: impl Fn(Contestant) -> Option<u64>,
    progress: &Progress,
    keep: impl Fn(&Results) -> Result<()>,
) -> Result<Results> {
    let deadline = Instant::now() + plan.limit;
    let say = |text: &str| progress.step("bench", text);
    let mut field = Field::new(host, plan, &say)?;
    let mut results = Results {
        plan: plan.clone(),
        contenders: plan
            .contestants
            .iter()
            .map(|&contestant| Contender::new(contestant, sizes(contestant)))
            .collect(),
        runs: Vec::new(),
    };
    for contender in &mut results.contenders {
        if let Err(error) = field.start_server(contender.contestant) {
            progress.line(&format!("FAILED {}: {error:#}", contender.contestant));
            contender.failures.push(format!("{error:#}"));
        }
    }
    field.start_guests()?;
    for round in 0..plan.rounds {
        for index in in_turn(results.contenders.len(), round) {
            let contestant = results.contenders[index].contestant;
            say(&format!(
                "round {} of {}: {contestant}",
                round + 1,
                plan.rounds
            ));
            let turn = Turn {
                plan,
                host,
                round,
                deadline,
                progress,
            };
            let Results {
                contenders, runs, ..
            } = &mut results;
            let over = turn.take_until_done(&mut field, &mut contenders[index], runs);
            if !results.runs.is_empty() {
                keep(&results)?;
            }
            if let Err(error) = over {
                // What was measured so far is worth showing.
                let text = format!("the contest ended here: {error:#}");
                progress.line(&format!("FAILED {contestant}: {text}"));
                results.contenders[index].failures.push(text);
                return Ok(results);
            }
        }
    }
    Ok(results)
}

/// Returns the order of a round: forwards in one and backwards in the next, so that a steady drift of the machine
/// cancels.
fn in_turn(count: usize, round: u32) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    if round % 2 == 1 {
        order.reverse();
    }
    order
}

/// One contestant's turn in one round.
struct Turn<'a> {
    plan: &'a Plan,
    host: &'a Host,
    round: u32,
    deadline: Instant,
    progress: &'a Progress,
}

impl Turn<'_> {
    /// Takes the turn. After a failure, tries once more with new domains, for the jobs that are left. An error means
    /// that no contestant can go on.
    fn take_until_done(
        &self,
        field: &mut Field,
        contender: &mut Contender,
        runs: &mut Vec<Run>,
    ) -> Result<()> {
        while contender.failures.len() < MOST_FAILURES {
            let Err(error) = self.take(field, contender, runs) else {
                return Ok(());
            };
            let contestant = contender.contestant;
            let end = field.console_end(contestant);
            let text = format!("FAILED {contestant}: {error:#}\n{end}");
            self.progress.line(text.trim_end());
            contender.failures.push(format!("{error:#}"));
            field
                .replace(contestant)
                .context("its domains could not be replaced")?;
        }
        Ok(())
    }

    fn take(
        &self,
        field: &mut Field,
        contender: &mut Contender,
        runs: &mut Vec<Run>,
    ) -> Result<()> {
        let contestant = contender.contestant;
        let done = |runs: &[Run], job| {
            runs.iter()
                .any(|run| (run.round, run.contestant, run.job) == (self.round, contestant, job))
        };
        let time_is_over = || Instant::now() > self.deadline;
        if time_is_over() {
            contender.unfinished = true;
            return Ok(());
        }
        field.start_server(contestant)?;
        if let Some(server) = field.server(contestant) {
            contender.boot.get_or_insert(server.boot.as_secs_f64());
            contender.memory = Some(server.memory);
        }
        let attached = field.attach(contestant).context("attaching")?;
        contender.attach.get_or_insert(attached.as_secs_f64());
        field.fill(contestant).context("filling the disks")?;
        for &job in &self.plan.jobs {
            if done(runs, job) {
                continue;
            }
            if time_is_over() {
                contender.unfinished = true;
                break;
            }
            let run = self
                .measure(field, contestant, job)
                .with_context(|| job.to_string())?;
            self.progress
                .line(&format!("{contestant:13} {}", run.line()));
            runs.push(run);
        }
        if contender.idle.is_none() {
            let watch = Watch::begin(self.host)?;
            std::thread::sleep(IDLE);
            let watched = watch.end()?;
            contender.idle = Some(watched.load.of(field.server_id(contestant)?));
        }
        if let Some(server) = field.server(contestant) {
            let memory = Memory::of(self.host, contestant, server).context("its memory")?;
            contender.steady_memory = Some(memory);
        }
        field.detach(contestant).context("detaching")
    }

    fn measure(&self, field: &Field, contestant: Contestant, job: Job) -> Result<Run> {
        let prepare = |guests| at_once::prepare(guests, contestant, job, self.plan.runtime);
        let guests = field.guests(contestant);
        let alone = match guests {
            guests @ [_, _, ..] => Some(prepare(&guests[..1])?.run(self.host)?.rate.iops),
            _ => None,
        };
        let ready = prepare(guests)?;
        let before = statistics::of(self.host, field, contestant)?;
        let Done {
            rate,
            least_share,
            counted,
            watched,
            executed,
        } = ready.run(self.host)?;
        let after = statistics::of(self.host, field, contestant)?;
        let server = field.server_id(contestant)?;
        let mut taking_part = field.guest_ids(contestant);
        taking_part.push(server);
        let beneath = self.plan.dom0_is_beneath(contestant).then_some(DOM0);
        taking_part.extend(beneath);
        let nbd_server = field.nbd_server_id();
        taking_part.extend(nbd_server);
        let for_each =
            |domain| watched.used(domain).as_secs_f64() * 1e6 / job.operations(counted.sectors);
        Ok(Run {
            round: self.round,
            contestant,
            job,
            iops: rate.iops,
            bytes_per_second: rate.bytes_per_second,
            mean_us: rate.mean_us,
            p99_us: rate.p99_us,
            least_share,
            times_alone: alone.map(|alone| rate.iops / alone),
            backend_us: for_each(server),
            guest_us: counted.busy * 1e6 / job.operations(counted.busy_sectors),
            dom0_us: beneath.map(for_each),
            nbd_server_us: nbd_server.map(for_each),
            cost: statistics::per_operation(job, &before, &after, counted),
            instructions: executed.map(|window| window.per_operation(contestant, rate.iops)),
            disturbance: watched.disturbance(&taking_part),
        })
    }
}
