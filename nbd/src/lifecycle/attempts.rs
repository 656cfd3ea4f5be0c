//! The attempts of a line to connect: the pauses between them, and the time for which its requests wait.

use super::End;
use bulkhead_xen::Instant;
use core::time::Duration;

/// The pause before a second attempt to connect, and the longest one; each is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The time after which a connection on which there were answers counts as a good one: the pauses begin anew after it.
/// After shorter connections, pauses are no longer than this. A server that hangs up again and again must neither fill
/// the log nor keep the domain busy.
const LASTS: Duration = Duration::from_secs(5);

/// The ticks without any byte after which the line connects again. The number doubles after each such attempt, for a
/// server that is only slow.
const SILENT_TICKS: u32 = 6;
const MOST_SILENT_TICKS: u32 = 96;

/// The state of a line's attempts to connect.
pub struct Attempts {
    pause: Duration,
    /// The ticks for which a server may be silent.
    pub silent: u32,
    /// The time at which the line's requests fail, unless the server answers before.
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
    /// Notes that there is a connection. `waited` says whether requests have waited for it: if none has, the time of
    /// their failure is dropped, unless it has passed already.
    pub fn connected(&mut self, now: Instant, waited: bool) {
        let in_time = |at: &Instant| *at <= now || waited;
        self.expire_at = self.expire_at.filter(in_time);
    }

    /// Notes that a connection is over after the time `lasted`: whether a request was sent on it, and whether one was
    /// answered.
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
