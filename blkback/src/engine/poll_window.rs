//! The time for which an idle queue is polled before its task blocks.
//!
//! A request that polling finds saves the backend a block and a wake-up, and the frontend a notification. So a queue is
//! polled for no longer than the measured cost of blocking in processor time, and only while most of the last requests
//! came that soon: over time, polling takes no more than it saves.
//!
//! There is one exception. If a frontend has one request outstanding, and sends the next one as soon as it has the
//! response, waking the backend may take as long as everything else. If such a frontend does so again and again
//! without a pause (a closed loop), the queue is polled for as long as the frontend usually takes. A frontend that
//! pauses, as one with a limited request rate does, is not polled for that long.

use core::time::Duration;

/// The longest window, unless the operator sets another: the measured cost of blocking may be anything.
pub const MOST: Duration = Duration::from_micros(100);
/// The window if Xen does not report the cost of blocking.
const UNKNOWN: Duration = Duration::from_micros(10);
/// The number of the last 16 requests that must have come within the window.
const WORTHWHILE: u32 = 12;
/// The longest window in a closed loop.
pub const CLOSED_LOOP: Nanos = 1_000_000;
/// The number of the last 32 requests that must have come within that.
const WITHOUT_PAUSE: u32 = 27;

/// Nanoseconds, which cost less than [`Duration`]'s arithmetic at each look at a queue.
pub type Nanos = u64;

/// A span in nanoseconds.
pub fn nanos(span: Duration) -> Nanos {
    u64::try_from(span.as_nanos()).unwrap_or(Nanos::MAX)
}

/// The window of one queue.
#[derive(Debug)]
pub struct PollWindow {
    chosen: Option<Nanos>,
    /// The cost of blocking, if Xen reports it.
    block_cost: Nanos,
    /// The delay with which the vCPU wakes, if it is known.
    wakeup_latency: Nanos,
    /// The longest time of polling that has to pay.
    limit: Nanos,
    /// The last idle times that ended within that time, and those that ended without a pause.
    soon: Recent<16>,
    without_pause: Recent<32>,
    /// The longest usual time until a request is found without a pause.
    usual: Nanos,
}

/// The measured cost of blocking the vCPU.
#[derive(Clone, Copy, Debug, Default)]
pub struct BlockCosts {
    /// The processor time.
    pub run_time: Option<Duration>,
    /// The time by which timers wake it late.
    pub wakeup_latency: Option<Duration>,
    /// How many times longer than usual a wake-up takes on this machine. 0 is the same as 1.
    pub scale: u32,
}

/// A yes or no for each of the last `LAST` cases, 32 at most.
#[derive(Clone, Copy, Debug, Default)]
struct Recent<const LAST: u32> {
    /// A bit for each case, set if the answer was yes. The last case is the lowest bit.
    cases: u32,
    /// The number of bits that are set. Counting them anew takes longer without an instruction for it.
    count: u32,
}

impl<const LAST: u32> Recent<LAST> {
    #[inline]
    fn note(&mut self, is_so: bool) {
        self.count += u32::from(is_so);
        self.count -= self.cases >> (LAST - 1) & 1;
        self.cases = self.cases << 1 | u32::from(is_so);
    }
}

impl PollWindow {
    /// Returns the window of a new queue. `chosen` is the operator's limit.
    pub fn new(chosen: Option<Duration>, costs: BlockCosts) -> Self {
        let mut window = PollWindow {
            chosen: chosen.map(nanos),
            block_cost: 0,
            wakeup_latency: 0,
            limit: 0,
            soon: Recent::default(),
            without_pause: Recent::default(),
            usual: 0,
        };
        window.set_costs(costs);
        window
    }

    /// Notes the cost of blocking, which may have been measured again.
    pub fn set_costs(&mut self, costs: BlockCosts) {
        let pays = costs.run_time.unwrap_or(UNKNOWN).min(MOST);
        self.limit = self.chosen.unwrap_or(nanos(pays));
        self.block_cost = costs.run_time.map_or(0, nanos);
        self.wakeup_latency = costs.wakeup_latency.map_or(0, nanos).min(CLOSED_LOOP);
    }

    /// Returns the longest time of polling that has to pay.
    #[inline]
    pub fn limit(&self) -> Nanos {
        self.limit
    }

    /// Returns the time for which an idle queue is polled whose frontend has a single request outstanding, or several.
    #[inline]
    pub fn get(&self, single: bool) -> Nanos {
        if single && self.chosen.is_none() && self.without_pause.count >= WITHOUT_PAUSE {
            return (self.usual * 2).clamp(self.limit, CLOSED_LOOP);
        }
        match self.soon.count >= WORTHWHILE {
            true => self.limit,
            false => 0,
        }
    }

    /// Notes that the queue was idle for that time until polling found a request.
    pub fn found(&mut self, idle: Nanos) {
        self.note(idle, idle);
    }

    /// Notes that the queue was idle for that time until its task was woken for a request.
    #[inline]
    pub fn woken(&mut self, idle: Nanos) {
        // Polling would have found the request sooner.
        self.note(
            idle.saturating_sub(self.block_cost),
            idle.saturating_sub(self.block_cost.max(self.wakeup_latency)),
        );
    }

    #[inline]
    fn note(&mut self, most: Nanos, least: Nanos) {
        self.soon.note(most <= self.limit);
        let without_pause = least <= CLOSED_LOOP;
        self.without_pause.note(without_pause);
        if without_pause {
            self.usual = least.max(self.usual - self.usual / 8);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    const MICROS: Nanos = 1000;

    fn window(chosen: Option<u64>, cost: u64) -> PollWindow {
        let chosen = chosen.map(Duration::from_micros);
        let costs = BlockCosts {
            run_time: Some(Duration::from_micros(cost)),
            wakeup_latency: Some(Duration::from_micros(150)),
            scale: 2,
        };
        PollWindow::new(chosen, costs)
    }

    #[test]
    fn polling_lasts_as_long_as_blocking_costs_at_most() {
        for (cost, limit) in [(3, 3), (40, 40), (100, 100), (101, 100), (50_000, 100)] {
            let mut window = window(None, cost);
            assert_eq!(window.get(true), 0, "nothing is known yet");
            for _ in 0..16 {
                window.found(limit * MICROS);
            }
            assert_eq!(window.get(true), limit * MICROS);
        }
        let unknown = PollWindow::new(None, BlockCosts::default());
        assert_eq!(unknown.limit(), nanos(UNKNOWN));
    }

    #[test]
    fn requests_that_come_later_end_polling_and_earlier_ones_begin_it_again() {
        let mut window = window(None, 20);
        for _ in 0..16 {
            window.woken(39 * MICROS);
        }
        assert_eq!(window.get(true), 20 * MICROS);
        for _ in 0..4 {
            window.woken(2000 * MICROS);
            assert_eq!(window.get(true), 20 * MICROS);
        }
        window.woken(2000 * MICROS);
        assert_eq!(window.get(true), 0);
        window.found(MICROS);
        assert_eq!(window.get(true), 0, "one says little");
    }

    #[test]
    fn the_last_cases_are_counted() {
        let (mut recent, mut cases) = (Recent::<16>::default(), Vec::new());
        for number in 0u32..1000 {
            let is_so = number.wrapping_mul(0x9e37_79b9) >> 30 != 0 && number % 100 < 60;
            recent.note(is_so);
            cases.push(is_so);
            let last = cases.iter().rev().take(16);
            assert_eq!(recent.count as usize, last.filter(|is_so| **is_so).count());
        }
    }

    /// Runs through requests that come soon and late in every order. Returns the time of polling, and the part of it
    /// that finds a request.
    fn in_every_order(length: u32, soon: u64, check: impl Fn(u32, u64, u64)) {
        for pattern in 0u32..1 << 16 {
            let mut window = window(None, 20);
            let (mut polled, mut useful) = (0, 0);
            for turn in 0..length {
                let is_soon = pattern >> (turn % 16) & 1 == 1;
                let most = window.get(true) / MICROS;
                let found = is_soon && most >= soon;
                polled += if found { soon } else { most };
                useful += u64::from(found) * soon;
                match found {
                    true => window.found(soon * MICROS),
                    false => window.woken(if is_soon { soon + 150 } else { 3000 } * MICROS),
                }
            }
            check(pattern, polled, useful);
        }
    }

    #[test]
    fn polling_takes_hardly_more_than_it_saves() {
        in_every_order(64, 20, |pattern, polled, useful| {
            assert!(
                polled <= useful * 2 + 200,
                "{pattern:b}: {polled} for {useful}"
            );
        });
    }

    #[test]
    fn a_closed_loop_is_polled_for_as_long_as_it_takes_and_no_other() {
        in_every_order(128, 400, |pattern, polled, useful| {
            let pauses = 16 - pattern.count_ones();
            match pauses {
                0 | 1 => assert!(useful >= 70 * 400, "{pattern:b}: {useful}"),
                2 => {}
                _ => assert_eq!(polled, 0, "{pattern:b}"),
            }
        });
    }

    #[test]
    fn a_closed_loop_that_takes_longer_than_the_cap_is_not_polled() {
        let mut window = window(None, 20);
        for _ in 0..100 {
            window.woken(1400 * MICROS);
            assert_eq!(window.get(true), 0);
        }
        for _ in 0..100 {
            window.woken(700 * MICROS);
        }
        assert_eq!(window.get(true), CLOSED_LOOP);
        assert_eq!(window.get(false), 0, "others ask while they wait");
    }

    #[test]
    fn the_operator_may_have_it_last_longer_or_not_at_all() {
        let mut longer = window(Some(2000), 3);
        for _ in 0..16 {
            longer.found(1900 * MICROS);
        }
        assert_eq!(longer.get(true), 2000 * MICROS);
        let mut never = window(Some(0), 3);
        for _ in 0..16 {
            never.woken(MICROS);
        }
        assert_eq!(never.get(true), 0);
    }
}
