//! The checks of the commands that a device has, at intervals while it has any.

use crate::Watch;
use bulkhead_xen::Instant;
use core::time::Duration;

/// The pause between two checks of the commands that a device has.
const TICK: Duration = Duration::from_secs(1);
/// The same if the device has no interrupt: completions are found by these checks then.
const POLL: Duration = Duration::from_millis(1);

/// The next check of the commands that a device has.
#[derive(Default)]
pub struct Ticks {
    /// Its time; `None` while there are no commands.
    next: Option<Instant>,
}

impl Ticks {
    /// Returns the time of the next check; `None` while there are no commands.
    pub fn next(&self) -> Option<Instant> {
        self.next
    }

    /// Returns whether the device was given a command while it had none.
    pub fn are_called_for(&self, watch: &Watch) -> bool {
        self.next.is_none() && watch.ticks()
    }

    /// Has the next check follow after a pause.
    pub(crate) fn set(&mut self, now: Instant, is_interrupted: bool) {
        let pause = match is_interrupted {
            true => TICK,
            false => POLL,
        };
        self.next = Some(now + pause);
    }

    /// Ends the checks.
    pub(crate) fn end(&mut self) {
        self.next = None;
    }
}

/// Returns a time in whole seconds, the unit in which the age of commands is measured.
pub fn seconds(time: Instant) -> u32 {
    (time.0 / 1_000_000_000) as u32
}
