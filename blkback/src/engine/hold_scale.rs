//! Decides whether responses are held back for longer on a machine that takes long to wake a vCPU.
//!
//! A guest that goes as fast as it can is spared wake-ups by larger batches, and sends its requests faster. One with an
//! offered rate sends them no faster for that, and only waits for its responses. The two look alike as long as
//! each response is published by itself. So it is tried: requests are timed for a while with the longer limit and for a
//! while without it, and it stays only if they come faster with it. The more often the answer is the same, the more
//! seldom that is tried; after a pause, it may be another program that sends requests.

use super::poll_window::{Nanos, nanos};
use bulkhead_xen::Instant;
use core::time::Duration;

/// The number of requests before the timed ones: with the longer limit, a whole ring's, from which the size of a batch is
/// learned.
const LEARNING_WITH: u32 = 40;
const LEARNING_WITHOUT: u32 = 8;
/// The least number of requests that are timed.
const TIMED: u32 = 24;
/// Requests have to come this much faster. Those of an offered rate do so by chance, now and then.
const FASTER: (u64, u64) = (3, 2);
/// The least and the most requests between two trials, and the factor between one such time and the next.
const OFTEN: u32 = 1 << 10;
const SELDOM: u32 = 1 << 14;
const MORE_SELDOM: u32 = 4;
/// The time without a request after which there is a trial, and the least number of requests between two of these.
const LONG_PAUSE: Duration = Duration::from_secs(1);
const AFTER_PAUSES: u32 = 1 << 9;
/// The longest time for each request that counts: the guest has paused.
const PAUSE: Duration = Duration::from_millis(32);

/// The choice for one queue.
#[derive(Debug)]
pub struct HoldScale {
    /// How many times longer a wake-up takes on this machine than usual, which is known to be more than once.
    scale: u32,
    state: State,
    /// The requests that are yet to come before those that are timed, or before the next trial.
    left: u32,
    /// The number of those that were timed so far, and the time that they took.
    timed: u32,
    took: Nanos,
    last: Instant,
    /// The outcome of the last trial, and the requests until the next one.
    pays: bool,
    every: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A trial with the longer limit.
    With,
    /// The same without it, after the time that a request took with it.
    Without(Nanos),
    Decided,
}

impl HoldScale {
    /// Returns the choice for a new queue.
    pub fn new(now: Instant) -> Self {
        HoldScale {
            scale: 1,
            state: State::With,
            left: LEARNING_WITH,
            timed: 0,
            took: 0,
            last: now,
            pays: false,
            every: OFTEN,
        }
    }

    /// Notes how many times longer than usual a wake-up takes on this machine.
    pub fn set_scale(&mut self, scale: u32) {
        self.scale = scale.max(1);
    }

    /// Returns the number by which limits are multiplied.
    pub fn get(&self) -> u32 {
        match self.state {
            State::With => self.scale,
            State::Decided if self.pays => self.scale,
            State::Without(_) | State::Decided => 1,
        }
    }

    /// Returns whether there is a choice.
    #[inline]
    pub fn matters(&self) -> bool {
        self.scale > 1
    }

    /// Notes that `count` responses were published. Returns whether the number has changed.
    #[inline(never)]
    pub fn published(&mut self, now: Instant, count: u32) -> bool {
        let since = now.0.saturating_sub(self.last.0);
        self.last = now;
        let before = self.get();
        if self.left > 0 {
            self.left = self.left.saturating_sub(count);
            let paused = since >= nanos(LONG_PAUSE) && self.every - self.left >= AFTER_PAUSES;
            if self.state == State::Decided && (self.left == 0 || paused) {
                (self.state, self.left) = (State::With, LEARNING_WITH);
            }
            return self.get() != before;
        }
        // Responses that are published together waited for each other: each has a time of its own.
        self.took += since.min(nanos(PAUSE) * Nanos::from(count.max(1)));
        self.timed += count;
        if self.timed < TIMED {
            return false;
        }
        let each = core::mem::take(&mut self.took) / Nanos::from(core::mem::take(&mut self.timed));
        (self.state, self.left) = match self.state {
            State::With => (State::Without(each), LEARNING_WITHOUT),
            State::Without(with) => (State::Decided, self.decide(with, each)),
            State::Decided => (State::With, LEARNING_WITH),
        };
        self.get() != before
    }

    /// Decides by the time that a request took with and without it. Returns the number of requests until the next trial.
    fn decide(&mut self, with: Nanos, without: Nanos) -> u32 {
        let pays = with.saturating_mul(FASTER.0) <= without.saturating_mul(FASTER.1);
        self.every = match pays == self.pays {
            true => (self.every * MORE_SELDOM).min(SELDOM),
            false => OFTEN,
        };
        self.pays = pays;
        self.every
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Has requests come, each after the time that `gap` returns for the present number. Returns how many of them came
    /// while it was more than 1.
    fn run(scale: &mut HoldScale, requests: u32, gap: impl Fn(u32) -> Duration) -> u32 {
        let mut longer = 0;
        for _ in 0..requests {
            let now = scale.last + gap(scale.get());
            scale.published(now, 1);
            longer += u32::from(scale.get() > 1);
        }
        longer
    }

    fn slow() -> HoldScale {
        let mut scale = HoldScale::new(Instant(1));
        scale.set_scale(8);
        scale
    }

    #[test]
    fn it_stays_where_requests_come_faster_with_it() {
        let mut scale = slow();
        let gap = |times| match times {
            1 => Duration::from_micros(2500),
            _ => Duration::from_micros(600),
        };
        run(
            &mut scale,
            LEARNING_WITH + LEARNING_WITHOUT + 2 * TIMED,
            gap,
        );
        assert_eq!(scale.get(), 8);
        let longer = run(&mut scale, 20_000, gap);
        assert!(longer > 19_800, "{longer}");
    }

    #[test]
    fn an_offered_rate_is_hardly_ever_kept_waiting() {
        let mut scale = slow();
        for seconds in [0.02, 0.003, 0.001] {
            let longer = run(&mut scale, 20_000, |_| Duration::from_secs_f64(seconds));
            assert!(longer < 400, "{longer}");
        }
    }

    #[test]
    fn the_time_of_a_batch_counts_in_full() {
        for times in [8, 16] {
            let mut scale = HoldScale::new(Instant(1));
            scale.set_scale(times);
            // 125 requests a second, which are answered together with the longer limit.
            let mut longer = 0;
            for _ in 0..5_000 {
                let together = scale.get();
                let now = scale.last + Duration::from_millis(8) * together;
                scale.published(now, together);
                longer += u32::from(scale.get() > 1);
            }
            assert!(longer < 200, "{times}: {longer}");
        }
    }

    #[test]
    fn it_follows_a_guest_that_changes() {
        let mut scale = slow();
        let same = |_| Duration::from_millis(2);
        let faster = |times| Duration::from_millis(8 / u64::from(times));
        run(&mut scale, 200, faster);
        assert_eq!(scale.get(), 8);
        run(&mut scale, 6 * OFTEN, same);
        assert_eq!(scale.get(), 1);
        run(&mut scale, 6 * OFTEN, faster);
        assert_eq!(scale.get(), 8);
    }

    #[test]
    fn after_a_pause_it_is_tried_again_but_not_each_time() {
        let (mut scale, pause) = (slow(), Duration::from_millis(1001));
        run(&mut scale, 50_000, |_| Duration::from_millis(2));
        assert_eq!(scale.get(), 1);
        // Bursts of 32 requests.
        let mut longer = 0;
        for _ in 0..100 {
            longer += run(&mut scale, 1, |_| pause);
            longer += run(&mut scale, 31, |_| Duration::from_millis(2));
        }
        assert!((64..640).contains(&longer), "{longer}");
    }

    #[test]
    fn a_pause_is_not_the_limits_fault() {
        let mut scale = slow();
        let mut gap = Duration::from_micros(600);
        for number in 0..LEARNING_WITH + TIMED {
            // The guest sleeps while it is tried.
            let pause = Duration::from_secs(u64::from(number == LEARNING_WITH + 5));
            scale.published(scale.last + gap + pause, 1);
        }
        gap = Duration::from_micros(3000);
        (0..LEARNING_WITHOUT + TIMED).for_each(|_| {
            scale.published(scale.last + gap, 1);
        });
        assert_eq!(scale.get(), 8);
    }
}
