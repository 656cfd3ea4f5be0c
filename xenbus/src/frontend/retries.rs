//! The pauses between attempts to connect to a backend, and the limits on what one can cause.

use bulkhead_executor::RateLimit;
use bulkhead_xen::Instant;
use core::time::Duration;

/// The time until the first retry with a backend that failed a connection; it doubles each time.
const RETRY: Duration = Duration::from_secs(1);
/// The longest such time.
pub const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// The limit on connections, and changes of the device, that a backend causes: 16 at once, and one more every 30
/// seconds. Each is a line or two in the log.
const CHANGES: RateLimit = RateLimit::new(16, Duration::from_secs(30));

/// The time of the next attempt with one backend.
pub struct Retries {
    next: Duration,
    /// The limit on connections, and on changes of the device that the frontend logs.
    pub changes: RateLimit,
}

impl Retries {
    /// Returns the times of a frontend. `was_left` says whether a boot before this one has crashed: then the first
    /// close is because of that, not of the backend, and no time is lost.
    pub fn new(was_left: bool) -> Self {
        let next = match was_left {
            true => Duration::ZERO,
            false => RETRY,
        };
        Retries {
            next,
            changes: CHANGES,
        }
    }

    /// Returns the time of the next attempt, after the backend's end was closed: at once if it was connected, unless
    /// that happens too often, else after a pause, which doubles each time.
    pub fn after_close(&mut self, was_connected: bool, now: Instant) -> Instant {
        if was_connected {
            return self.changes.reserve(now);
        }
        let pause = self.next;
        self.next = (pause * 2).clamp(RETRY, LONGEST_RETRY);
        now + pause
    }

    /// Begins anew, as the backend is connected.
    pub fn connected(&mut self) {
        self.next = RETRY;
    }
}

#[cfg(test)]
mod tests {
    use super::{LONGEST_RETRY, RETRY, Retries};
    use bulkhead_xen::Instant;
    use core::time::Duration;

    const NOW: Instant = Instant(1_000_000_000_000);

    #[test]
    fn pauses_double_up_to_the_longest() {
        let mut retries = Retries::new(false);
        assert_eq!(retries.after_close(false, NOW), NOW + RETRY);
        assert_eq!(retries.after_close(false, NOW), NOW + RETRY * 2);
        (0..10).for_each(|_| _ = retries.after_close(false, NOW));
        assert_eq!(retries.after_close(false, NOW), NOW + LONGEST_RETRY);
        retries.connected();
        assert_eq!(retries.after_close(false, NOW), NOW + RETRY);
    }

    #[test]
    fn no_time_is_lost_after_a_crash() {
        let mut retries = Retries::new(true);
        assert_eq!(retries.after_close(false, NOW), NOW);
        assert_eq!(retries.after_close(false, NOW), NOW + RETRY);
    }

    #[test]
    fn a_backend_that_was_connected_is_tried_at_once_for_a_while() {
        let mut retries = Retries::new(false);
        for _ in 0..16 {
            assert_eq!(retries.after_close(true, NOW), NOW);
        }
        assert_eq!(
            retries.after_close(true, NOW),
            NOW + Duration::from_secs(30)
        );
    }
}
