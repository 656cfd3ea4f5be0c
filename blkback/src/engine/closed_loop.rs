//! Tells a closed loop of several requests from an offered rate.
//!
//! An application that goes as fast as it can keeps its requests outstanding all the time: it sends the next one as soon
//! as it has a response. Every notification that its frontend has to send, and every wake-up that it waits for, takes
//! from its speed, so its queue is polled. An application with work of its own, or with a limited rate, pauses between
//! requests: its queue sleeps.
//!
//! The two are told apart by a budget of time. Each request adds [`REQUEST`] to it, and the time that passes takes from
//! it: it grows while requests come faster than that on average, whether they come one by one or together.

use super::poll_window::{Nanos, nanos};
use bulkhead_xen::Instant;
use core::time::Duration;

/// The time that each request adds: an offered rate of less than 2,000 requests a second leaves nothing in the budget.
const REQUEST: Duration = Duration::from_micros(500);
/// The budget from which the frontend is taken to be in a closed loop. Random moments at 800 requests a second come to
/// it with a probability of 10^-22.
const ENOUGH: Duration = Duration::from_millis(16);
/// The largest budget. What is above [`ENOUGH`] outlasts the moments in which the guest's vCPU does not run.
const MOST: Duration = Duration::from_millis(64);
/// The time without a request after which the queue is polled no longer.
pub const PAUSE: Duration = Duration::from_millis(2);

/// The recent requests of one queue.
#[derive(Debug)]
pub struct ClosedLoop {
    /// The time at which the last request was seen.
    last: Instant,
    budget: Nanos,
    /// True if the operator leaves the choice to the queue.
    allowed: bool,
}

impl ClosedLoop {
    /// Returns the state of a queue without requests. `chosen` is the operator's time of polling.
    pub fn new(chosen: Option<Duration>) -> Self {
        ClosedLoop {
            last: Instant(0),
            budget: 0,
            allowed: chosen.is_none(),
        }
    }

    /// Notes that `count` requests have come since the last time.
    #[inline(never)]
    pub fn arrived(&mut self, now: Instant, count: u32) {
        let added = self.budget + nanos(REQUEST) * Nanos::from(count);
        self.budget = added.saturating_sub(self.since(now)).min(nanos(MOST));
        self.last = now;
    }

    /// Returns whether the frontend is in a closed loop and has not paused since its last request.
    #[inline]
    pub fn goes_on(&self, now: Instant) -> bool {
        self.budget >= nanos(ENOUGH) && self.allowed && self.since(now) < nanos(PAUSE)
    }

    fn since(&self, now: Instant) -> Nanos {
        now.0.saturating_sub(self.last.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Instant = Instant(1_000_000_000);

    const fn micros(count: u64) -> Duration {
        Duration::from_micros(count)
    }

    /// Has `requests` requests come, `together` at a time and `gap` apart. Returns the number after which the loop goes on,
    /// and the time of the last one.
    fn run(
        closed_loop: &mut ClosedLoop,
        from: Instant,
        gap: Duration,
        together: u32,
        requests: u32,
    ) -> (Option<u32>, Instant) {
        let (mut now, mut after) = (from, None);
        for come in (together..=requests).step_by(together as usize) {
            now = now + gap * together;
            closed_loop.arrived(now, together);
            if after.is_none() && closed_loop.goes_on(now) {
                after = Some(come);
            }
        }
        (after, now)
    }

    #[test]
    fn a_closed_loop_is_recognised_within_64_requests() {
        for gap in [1, 20, 70, 150, 250] {
            for together in [1, 4, 16] {
                let mut closed_loop = ClosedLoop::new(None);
                let (after, now) = run(&mut closed_loop, START, micros(gap), together, 10_000);
                let after = after.expect("it is recognised");
                assert!((32..=64 + together).contains(&after), "{gap}: {after}");
                assert!(closed_loop.goes_on(now), "it goes on");
            }
        }
    }

    #[test]
    fn a_slow_frontend_is_in_none() {
        for gap in [501, 700, 1250, 20_000] {
            for together in [1, 4, 16] {
                let mut closed_loop = ClosedLoop::new(None);
                let (after, _) = run(&mut closed_loop, START, micros(gap), together, 10_000);
                assert_eq!(after, None, "{gap}, {together}");
            }
        }
    }

    #[test]
    fn a_pause_ends_polling_and_a_long_one_the_closed_loop() {
        let mut closed_loop = ClosedLoop::new(None);
        let (_, now) = run(&mut closed_loop, START, micros(100), 1, 1000);
        assert!(closed_loop.goes_on(now + PAUSE / 2));
        assert!(!closed_loop.goes_on(now + PAUSE), "the guest has paused");
        // Its vCPU did not run for a moment.
        let now = now + micros(20_000);
        closed_loop.arrived(now, 1);
        assert!(closed_loop.goes_on(now));
        for pauses in 1..4 {
            let mut closed_loop = ClosedLoop::new(None);
            let (_, mut now) = run(&mut closed_loop, START, micros(100), 1, 1000);
            for _ in 0..pauses {
                now = now + MOST / pauses;
                closed_loop.arrived(now, 1);
            }
            assert!(!closed_loop.goes_on(now), "{pauses}");
            let (after, _) = run(&mut closed_loop, now, micros(100), 1, 1000);
            assert!(after.is_some_and(|after| after > 30), "{pauses}: {after:?}");
        }
    }

    #[test]
    fn the_operator_may_choose() {
        for chosen in [0, 50, 2000] {
            let mut closed_loop = ClosedLoop::new(Some(micros(chosen)));
            let (after, _) = run(&mut closed_loop, START, micros(20), 1, 10_000);
            assert_eq!(after, None);
        }
    }
}
