//! How long to poll an idle queue before its task blocks.
//!
//! A request that is found by polling saves us to block and be woken, and saves the frontend its notification. So a
//! queue is polled for no longer than blocking was measured to cost in processor time, and only while most of the last
//! requests came that soon: polling never takes more than it saves for long.

use core::time::Duration;

/// The longest window, unless the operator says otherwise: what blocking costs is measured, and may be anything.
pub const MOST: Duration = Duration::from_micros(100);
/// The window where Xen does not tell what blocking costs.
const UNKNOWN: Duration = Duration::from_micros(10);
/// Of the last 16 requests, so many must have come within the window.
const WORTHWHILE: u32 = 12;

/// Nanoseconds: the two who decide on each look at a queue do without the arithmetic of [`Duration`].
pub type Nanos = u64;

/// A span in nanoseconds.
pub fn nanos(span: Duration) -> Nanos {
    u64::try_from(span.as_nanos()).unwrap_or(Nanos::MAX)
}

/// The window of one queue.
#[derive(Debug)]
pub struct PollWindow {
    chosen: Option<Nanos>,
    /// What blocking costs, if Xen tells.
    block_cost: Nanos,
    /// The longest that polling may last.
    limit: Nanos,
    /// Which of the last 16 idle times ended within the window; the last one is the lowest bit.
    recent: u16,
}

impl PollWindow {
    /// That of a queue that has seen nothing yet. `chosen` is the operator's limit.
    pub fn new(chosen: Option<Duration>, block_cost: Option<Duration>) -> Self {
        let mut window = PollWindow {
            chosen: chosen.map(nanos),
            block_cost: 0,
            limit: 0,
            recent: 0,
        };
        window.set_block_cost(block_cost);
        window
    }

    /// What blocking costs was measured anew.
    pub fn set_block_cost(&mut self, cost: Option<Duration>) {
        let pays = cost.unwrap_or(UNKNOWN).min(MOST);
        self.limit = self.chosen.unwrap_or(nanos(pays));
        self.block_cost = cost.map_or(0, nanos);
    }

    /// The longest that polling may last.
    pub fn limit(&self) -> Nanos {
        self.limit
    }

    /// How long an idle queue is to be polled.
    pub fn get(&self) -> Nanos {
        match self.recent.count_ones() >= WORTHWHILE {
            true => self.limit,
            false => 0,
        }
    }

    /// The queue was idle for so long until a request was found by polling.
    pub fn found(&mut self, idle: Nanos) {
        self.note(idle <= self.limit);
    }

    /// The queue was idle for so long until its task had been woken for a request.
    pub fn woken(&mut self, idle: Nanos) {
        // Polling would have found it sooner.
        self.note(idle.saturating_sub(self.block_cost) <= self.limit);
    }

    fn note(&mut self, within: bool) {
        self.recent = self.recent << 1 | u16::from(within);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MICROS: Nanos = 1000;

    fn window(chosen: Option<u64>, cost: u64) -> PollWindow {
        let chosen = chosen.map(Duration::from_micros);
        PollWindow::new(chosen, Some(Duration::from_micros(cost)))
    }

    #[test]
    fn polling_lasts_as_long_as_blocking_costs_at_most() {
        for (cost, limit) in [(3, 3), (40, 40), (100, 100), (101, 100), (50_000, 100)] {
            let mut window = window(None, cost);
            assert_eq!(window.get(), 0, "nothing is known yet");
            for _ in 0..16 {
                window.found(limit * MICROS);
            }
            assert_eq!(window.get(), limit * MICROS);
        }
        assert_eq!(PollWindow::new(None, None).limit(), nanos(UNKNOWN));
    }

    #[test]
    fn requests_that_come_later_end_polling_and_earlier_ones_begin_it_again() {
        let mut window = window(None, 20);
        for _ in 0..16 {
            window.woken(39 * MICROS);
        }
        assert_eq!(window.get(), 20 * MICROS);
        for _ in 0..4 {
            window.woken(41 * MICROS);
            assert_eq!(window.get(), 20 * MICROS);
        }
        window.woken(41 * MICROS);
        assert_eq!(window.get(), 0);
        window.found(MICROS);
        assert_eq!(window.get(), 0, "one says little");
    }

    #[test]
    fn polling_takes_hardly_more_than_it_saves() {
        // Whatever the order in which requests come soon and late.
        for pattern in 0u32..1 << 16 {
            let mut window = window(None, 20);
            let (mut polled, mut saved) = (0, 0);
            for turn in 0..64 {
                let soon = pattern >> (turn % 16) & 1 == 1;
                let polling = window.get() > 0;
                polled += u32::from(polling) * 20;
                saved += u32::from(polling && soon) * 20;
                match soon && polling {
                    true => window.found(20 * MICROS),
                    false => window.woken(if soon { 40 } else { 1000 } * MICROS),
                }
            }
            assert!(
                polled <= saved * 2 + 100,
                "{pattern:b}: {polled} for {saved}"
            );
        }
    }

    #[test]
    fn the_operator_may_have_it_last_longer_or_not_at_all() {
        let mut longer = window(Some(2000), 3);
        for _ in 0..16 {
            longer.found(1900 * MICROS);
        }
        assert_eq!(longer.get(), 2000 * MICROS);
        let mut never = window(Some(0), 3);
        for _ in 0..16 {
            never.woken(MICROS);
        }
        assert_eq!(never.get(), 0);
    }
}
