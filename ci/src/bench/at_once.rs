//! A job in some guests, begun in all of them at once.

use super::contestant::Contestant;
use super::fio::{self, Rate};
use super::guest_counts::{self, GuestCounts};
use super::instructions::Window;
use super::job::{Job, RAMP};
use super::meter::{Watch, Watched};
use crate::host::Host;
use crate::host::guest::{Guest, Started};
use anyhow::{Context, Result};
use std::time::Duration;

/// Time limit for each guest's fio to start, and again to end: guests share a processor.
const FIO_START: Duration = Duration::from_secs(30);

/// Guests whose fio is ready for its first I/O.
pub struct Ready<'g, 'h> {
    guests: &'g [Guest<'h>],
    /// The length of each console before the commands.
    consoles: Vec<usize>,
    started: Vec<Started>,
    runtime: Duration,
    most: Duration,
}

/// The guests' results.
pub struct Done {
    /// All guests together.
    pub rate: Rate,
    /// The share of the one that got least, 1 being its fair share.
    pub least_share: f64,
    /// The guests' counts together.
    pub counted: GuestCounts,
    /// The measurements taken meanwhile.
    pub watched: Watched,
    /// The instructions executed, if they are counted.
    pub executed: Option<Window>,
}

/// Starts a job in these guests, up to its first I/O.
pub fn prepare<'g, 'h>(
    guests: &'g [Guest<'h>],
    contestant: Contestant,
    job: Job,
    runtime: Duration,
) -> Result<Ready<'g, 'h>> {
    let device = contestant.device();
    let command = guest_counts::around(device, &job.command(device, runtime));
    let consoles = guests.iter().map(|guest| guest.console_length()).collect();
    let timeout = FIO_START * guests.len() as u32;
    let ready = Ready {
        guests,
        consoles,
        started: Guest::start_in_each(guests, &command)?,
        runtime,
        most: RAMP + runtime + timeout,
    };
    ready.each_shows(guest_counts::WAITS, timeout)?;
    Ok(ready)
}

impl Ready<'_, '_> {
    fn each_shows(&self, text: &str, limit: Duration) -> Result<()> {
        let mut guests = self.guests.iter().zip(&self.consoles);
        guests.try_for_each(|(guest, console)| {
            guest.wait_console_from(*console, text, limit).map(drop)
        })
    }

    /// Lets all of them begin, and waits for the end.
    pub fn run(self, host: &Host) -> Result<Done> {
        let watch = Watch::begin(host)?;
        let opened = Guest::start_in_each(self.guests, guest_counts::OPEN)?;
        let counts = host.instructions();
        let executed = counts.map(|counts| Window::watch(&counts, self.runtime));
        let executed = executed.transpose()?;
        self.each_shows(guest_counts::OVER, self.most)?;
        let watched = watch.end()?;
        let mut rates = Vec::new();
        let mut counted = GuestCounts::default();
        for ((guest, started), opened) in self.guests.iter().zip(self.started).zip(opened) {
            guest.finish(opened, FIO_START)?;
            let output = guest.finish(started, FIO_START)?;
            rates.push(fio::parse(&output.out).with_context(|| output.out.clone())?);
            counted = counted.and(guest_counts::parse(&output.out)?);
        }
        let (rate, least_share) = fio::together(&rates).context("there is no guest")?;
        Ok(Done {
            rate,
            least_share,
            counted,
            watched,
            executed,
        })
    }
}
