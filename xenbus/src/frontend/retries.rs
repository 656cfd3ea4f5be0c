//! The pauses between attempts to connect to a backend.

use core::time::Duration;

/// The time until the first retry with a backend that failed a connection; it doubles each time.
const RETRY: Duration = Duration::from_secs(1);
/// The longest such time.
pub const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// The pause before the next attempt with one backend.
#[derive(Debug)]
pub struct Retries {
    next: Duration,
}

impl Retries {
    /// Returns the pauses of a frontend. `was_left` says whether a boot before this one has crashed: then the first
    /// close is because of that, not of the backend, and no time is lost.
    pub fn new(was_left: bool) -> Self {
        let next = match was_left {
            true => Duration::ZERO,
            false => RETRY,
        };
        Retries { next }
    }

    /// Returns the pause before the next attempt, and doubles it for the one after that.
    pub fn next_pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).clamp(RETRY, LONGEST_RETRY);
        pause
    }

    /// Begins anew, as the backend is connected.
    pub fn connected(&mut self) {
        self.next = RETRY;
    }
}

#[cfg(test)]
mod tests {
    use super::{LONGEST_RETRY, RETRY, Retries};
    use core::time::Duration;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let mut retries = Retries::new(false);
        assert_eq!(retries.next_pause(), RETRY);
        assert_eq!(retries.next_pause(), RETRY * 2);
        (0..10).for_each(|_| _ = retries.next_pause());
        assert_eq!(retries.next_pause(), LONGEST_RETRY);
        retries.connected();
        assert_eq!(retries.next_pause(), RETRY);
    }

    #[test]
    fn no_time_is_lost_after_a_crash() {
        let mut retries = Retries::new(true);
        assert_eq!(retries.next_pause(), Duration::ZERO);
        assert_eq!(retries.next_pause(), RETRY);
    }
}
