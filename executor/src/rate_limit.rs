//! Limits on what another machine can cause again and again.

use crate::Handle;
use bulkhead_xen::{Hypervisor, Instant};
use core::time::Duration;

/// A limit: so many times at once, and once more after each pause.
pub struct RateLimit {
    most: u32,
    pause: Duration,
    left: u32,
    /// Since when a pause lasts.
    since: Instant,
}

impl RateLimit {
    /// Returns a limit that nothing has used yet.
    pub const fn new(most: u32, pause: Duration) -> RateLimit {
        RateLimit {
            most,
            pause,
            left: most,
            since: Instant(0),
        }
    }

    /// Returns whether it may happen now, and counts it.
    pub fn take(&mut self, now: Instant) -> bool {
        if self.left == self.most {
            self.since = now;
        }
        let pauses = now.since(self.since).as_nanos() / self.pause.as_nanos().max(1);
        if pauses > 0 {
            let pauses = u32::try_from(pauses).unwrap_or(u32::MAX);
            self.since = now;
            self.left = self.left.saturating_add(pauses).min(self.most);
        }
        let left = self.left.checked_sub(1);
        self.left = left.unwrap_or(0);
        left.is_some()
    }

    /// Counts it, and returns the time from which on it may happen.
    pub fn reserve(&mut self, now: Instant) -> Instant {
        if self.take(now) {
            return now;
        }
        self.since = self.since + self.pause;
        self.since
    }

    /// Waits until it may happen, and counts it.
    pub async fn taken<H: Hypervisor>(&mut self, handle: &Handle<H>) {
        while !self.take(handle.now()) {
            handle.sleep(self.pause).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_used_up_and_comes_back() {
        let mut limit = RateLimit::new(3, Duration::from_secs(10));
        let mut at = |seconds: u64| limit.take(Instant(seconds * 1_000_000_000));
        assert_eq!(
            [at(5), at(5), at(5), at(5), at(14)],
            [true, true, true, false, false]
        );
        assert_eq!([at(15), at(16), at(24), at(25)], [true, false, false, true]);
        assert_eq!(
            [at(1000), at(1000), at(1000), at(1000)],
            [true, true, true, false]
        );
    }

    #[test]
    fn what_is_reserved_is_used_up_before_it_may_happen() {
        let mut limit = RateLimit::new(2, Duration::from_secs(10));
        let at = |seconds: u64| Instant(seconds * 1_000_000_000);
        let mut reserved = |seconds| limit.reserve(at(seconds));
        assert_eq!([reserved(5), reserved(6)], [at(5), at(6)]);
        assert_eq!(
            [reserved(7), reserved(7), reserved(20)],
            [at(15), at(25), at(35)]
        );
        assert_eq!([reserved(44), reserved(60)], [at(45), at(60)]);
        assert!(!limit.take(at(64)));
    }
}
