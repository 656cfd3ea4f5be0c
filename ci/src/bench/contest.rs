//! The order of events: every contestant in its turn, round after round.

use super::Plan;
use super::contestant::Contestant;
use super::field::{DEVICE, Field};
use super::fio;
use super::job::{Job, RAMP};
use super::meter::Watched;
use super::results::{Contender, Results, Run};
use super::statistics::{self, Counters};
use crate::host::Host;
use anyhow::{Context, Result};
use std::time::Duration;

/// How long a contestant with an attached disk is watched doing nothing.
const IDLE: Duration = Duration::from_secs(4);

/// A contestant that fails more often takes no further part.
const MOST_FAILURES: usize = 2;

/// From the command until fio has opened the disk and does its first I/O, about.
const FIO_START: Duration = Duration::from_millis(500);

/// Runs the whole contest on a booted host.
pub fn run(
    plan: &Plan,
    host: &Host,
    sizes: impl Fn(Contestant) -> Option<u64>,
    say: &dyn Fn(&str),
) -> Result<Results> {
    let mut field = Field::new(host, plan, say)?;
    let mut contenders: Vec<Contender> = plan
        .contestants
        .iter()
        .map(|&contestant| Contender::new(contestant, sizes(contestant)))
        .collect();
    let mut runs = Vec::new();
    for contender in &mut contenders {
        if let Err(error) = field.start_server(contender.contestant) {
            contender.failures.push(format!("{error:#}"));
        }
    }
    field.start_guests()?;
    'rounds: for round in 0..plan.rounds {
        for contender in in_turn(&mut contenders, round) {
            if contender.failures.len() >= MOST_FAILURES {
                continue;
            }
            let contestant = contender.contestant;
            say(&format!(
                "round {} of {}: {contestant}",
                round + 1,
                plan.rounds
            ));
            let turn = Turn {
                plan,
                host,
                round,
                say,
            };
            if let Err(error) = turn.take(&mut field, contender, &mut runs) {
                let end = field.console_end(contestant);
                say(&format!("FAILED {contestant}: {error:#}\n{end}"));
                contender.failures.push(format!("{error:#}"));
                if let Err(error) = field.replace(contestant) {
                    // What was measured so far is worth showing.
                    let text = format!("and its domains could not be replaced: {error:#}");
                    say(&text);
                    contender.failures.push(text);
                    break 'rounds;
                }
            }
        }
    }
    Ok(Results {
        plan: plan.clone(),
        contenders,
        runs,
    })
}

/// Forwards in one round and backwards in the next: a steady drift of the machine cancels.
fn in_turn(contenders: &mut [Contender], round: u32) -> Vec<&mut Contender> {
    let mut order: Vec<&mut Contender> = contenders.iter_mut().collect();
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
    say: &'a dyn Fn(&str),
}

impl Turn<'_> {
    fn take(
        &self,
        field: &mut Field,
        contender: &mut Contender,
        runs: &mut Vec<Run>,
    ) -> Result<()> {
        let contestant = contender.contestant;
        field.start_server(contestant)?;
        if let Some(server) = field.server(contestant) {
            contender.boot.get_or_insert(server.boot.as_secs_f64());
            contender.memory = Some(server.memory);
        }
        let attached = field.attach(contestant).context("attaching")?;
        contender.attach.get_or_insert(attached.as_secs_f64());
        if self.round == 0 {
            field.fill().context("filling the disks")?;
        }
        for &job in &self.plan.jobs {
            let run = self
                .measure(field, contestant, job)
                .with_context(|| job.to_string())?;
            (self.say)(&format!("{contestant:13} {}", run.line()));
            runs.push(run);
        }
        if contender.idle.is_none() {
            let watched = Watched::watch(self.host, Duration::from_millis(500), IDLE)?;
            contender.idle = Some(watched.load.of(field.server_id(contestant)?));
        }
        field.detach(contestant).context("detaching")
    }

    fn counters(&self, field: &Field, contestant: Contestant) -> Result<Option<Counters>> {
        if !contestant.is_bulkhead() {
            return Ok(None);
        }
        let backend = field.server_id(contestant)?;
        let mut sum: Option<Counters> = None;
        for guest in field.guest_ids() {
            if let Some(counters) = statistics::read(self.host, backend, guest, DEVICE)? {
                sum.get_or_insert_default().add(&counters);
            }
        }
        Ok(sum)
    }

    fn measure(&self, field: &Field, contestant: Contestant, job: Job) -> Result<Run> {
        let runtime = self.plan.runtime;
        let command = job.command("/dev/xvda", runtime);
        let before = self.counters(field, contestant)?;
        let mut started = Vec::new();
        for guest in field.guests() {
            started.push(guest.start(&command)?);
        }
        // The window lies within the time that fio measures.
        let window = runtime.saturating_sub(Duration::from_secs(1));
        let watched = Watched::watch(self.host, RAMP + FIO_START, window)?;
        let mut rates = Vec::new();
        for (guest, started) in field.guests().iter().zip(started) {
            let output = guest.finish(started, RAMP + runtime + Duration::from_secs(30))?;
            rates.push(fio::parse(&output.out).with_context(|| output.out.clone())?);
        }
        let after = self.counters(field, contestant)?;
        let (rate, least_share) = fio::together(&rates).context("there is no guest")?;
        let server = field.server_id(contestant)?;
        let guests = field.guest_ids();
        let guest_load: f64 = guests.iter().map(|&id| watched.load.of(id)).sum();
        let mut taking_part = guests;
        taking_part.push(server);
        Ok(Run {
            round: self.round,
            contestant,
            job,
            iops: rate.iops,
            bytes_per_second: rate.bytes_per_second,
            mean_us: rate.mean_us,
            p99_us: rate.p99_us,
            least_share,
            backend_us: watched.load.of(server) * 1e6 / rate.iops,
            guest_us: guest_load * 1e6 / rate.iops,
            cost: before
                .zip(after)
                .and_then(|(before, after)| statistics::per_request(&before, &after)),
            disturbance: watched.disturbance(&taking_part),
        })
    }
}
