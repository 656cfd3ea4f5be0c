//! The attempts of a line to be connected: their pauses, and how long its requests wait.

use super::End;
use bulkhead_xen::Instant;
use core::time::Duration;

/// The pause before a second attempt to connect, and the longest one; each is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A connection on which there were answers and that has lasted for that long was a good one: the pauses begin anew after
/// it. After shorter ones they are no longer than that. A server that hangs up again and again is not to fill the log, nor
/// to keep the domain busy.
const LASTS: Duration = Duration::from_secs(5);

/// The ticks without any byte after which the line connects again. A server that is just slow has twice the time after
/// each such attempt.
const SILENT_TICKS: u32 = 6;
const MOST_SILENT_TICKS: u32 = 96;

/// How often a line was connected without success.
pub struct Attempts {
    pause: Duration,
    /// The ticks that a server may be silent.
    pub silent: u32,
    /// When the line's requests fail, unless the server answers before.
    pub expire_at: Option<Instant>,
}

impl Default for Attempts {
    fn default() -> Attempts {
        Attempts {
            pause: Duration::ZERO,
            silent: SILENT_TICKS,
            expire_at: None,
        }
    }
}

impl Attempts {
    /// Notes that there is a connection, for which requests have waited or not. While none has, it is not over time.
    pub fn connected(&mut self, now: Instant, waited: bool) {
        let in_time = |at: &Instant| *at <= now || waited;
        self.expire_at = self.expire_at.filter(in_time);
    }

    /// Notes that a connection is over, which has lasted for that long: whether something was asked on it, and whether
    /// something was answered.
    pub fn served(&mut self, (asked, answered): (bool, bool), lasted: Duration, end: &End) {
        if answered {
            self.pause = match lasted < LASTS {
                true => self.pause.min(LASTS),
                false => Duration::ZERO,
            };
            self.silent = SILENT_TICKS;
        } else if matches!(end, End::Silent(_)) {
            self.silent = (self.silent * 2).min(MOST_SILENT_TICKS);
        }
        if answered || !asked {
            self.expire_at = None;
        }
    }

    /// Returns the pause before the next attempt.
    pub fn pause(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        pause
    }
}
