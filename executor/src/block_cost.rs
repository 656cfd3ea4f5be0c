//! The cost in processor time of blocking the vCPU and being woken, which is the most that polling instead
//! can save.

use core::cell::Cell;
use core::time::Duration;

/// Number of measured sleeps, the last ones, from which the cost is derived.
const MEASURED: usize = 8;
/// Once that many sleeps are measured, one sleep in this number is: a measurement takes three more
/// hypercalls.
const SELDOM: u32 = 256;

/// The time that a wake-up takes at most where nothing slows the machine down. (Xen lets timers be late by 50 µs:
/// `timer_slop`.)
const USUAL: Duration = Duration::from_micros(64);
/// The most by which a slow machine counts as slower: whatever is measured, nobody waits without a limit.
const MOST_SLOWER: u128 = 16;

/// Returns how many times longer than usual a wake-up takes that took so long.
pub(crate) fn scale(took: Option<Duration>) -> u32 {
    let times = took.map_or(1, |took| took.as_nanos() / USUAL.as_nanos());
    times.clamp(1, MOST_SLOWER) as u32
}

#[derive(Debug, Default)]
pub(crate) struct BlockCost {
    sleeps: Cell<u32>,
    measured: Cell<usize>,
    last: Cell<[Duration; MEASURED]>,
    cost: Cell<Option<Duration>>,
}

/// A sleep that is measured.
pub(crate) struct Measurement {
    /// The vCPU's processor time before it.
    before: Duration,
    /// The cost of reading that time.
    reading: Duration,
}

impl BlockCost {
    /// Records that the vCPU is about to block. `run_time` reads the processor time that it has used.
    pub(crate) fn begin(&self, run_time: impl Fn() -> Option<Duration>) -> Option<Measurement> {
        let sleeps = self.sleeps.get();
        self.sleeps.set(sleeps.wrapping_add(1));
        if self.measured.get() >= MEASURED && !sleeps.is_multiple_of(SELDOM) {
            return None;
        }
        let (first, before) = (run_time()?, run_time()?);
        Some(Measurement {
            before,
            reading: before.saturating_sub(first),
        })
    }

    /// Records that the vCPU was blocked and is awake.
    pub(crate) fn end(&self, measurement: &Measurement, run_time: Option<Duration>) {
        let Some(used) = run_time else { return };
        let cost = used.saturating_sub(measurement.before + measurement.reading);
        let count = self.measured.get();
        let mut last = self.last.get();
        last[count % MEASURED] = cost;
        self.last.set(last);
        self.measured.set(count + 1);
        // Interrupts that Xen handles meanwhile make some of them dearer.
        let known = &mut last[..MEASURED.min(count + 1)];
        known.sort_unstable();
        self.cost.set(Some(known[(known.len() - 1) / 2]));
    }

    pub(crate) fn get(&self) -> Option<Duration> {
        self.cost.get()
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    /// Sleeps, each at the given cost in microseconds, where reading the time costs two. Returns the number
    /// of reads.
    fn sleep(costs: &BlockCost, micros: impl IntoIterator<Item = u64>) -> u32 {
        let (now, read) = (Cell::new(0), Cell::new(0));
        let run_time = || {
            read.set(read.get() + 1);
            now.set(now.get() + 2);
            Some(Duration::from_micros(now.get()))
        };
        for cost in micros {
            let measurement = costs.begin(run_time);
            now.set(now.get() + cost);
            if let Some(measurement) = measurement {
                costs.end(&measurement, run_time());
            }
        }
        read.get()
    }

    #[test]
    fn a_machine_is_slower_by_a_limited_factor() {
        let scale = |micros| scale(Some(Duration::from_micros(micros)));
        assert_eq!((scale(0), scale(127), scale(128)), (1, 1, 2));
        assert_eq!((scale(1023), scale(1024), scale(u64::MAX)), (15, 16, 16));
        assert_eq!(super::scale(None), 1);
    }

    #[test]
    fn it_is_the_median_without_what_measuring_costs() {
        let costs = BlockCost::default();
        assert_eq!(costs.get(), None);
        sleep(&costs, [7]);
        assert_eq!(costs.get(), Some(Duration::from_micros(7)));
        sleep(&costs, [7, 500, 9, 7, 8, 7, 900]);
        assert_eq!(costs.get(), Some(Duration::from_micros(7)));
    }

    #[test]
    fn it_is_measured_seldom_and_follows() {
        let costs = BlockCost::default();
        sleep(&costs, [5; MEASURED]);
        let sleeps = SELDOM as usize * MEASURED;
        let read = sleep(&costs, std::iter::repeat_n(50, sleeps));
        assert_eq!(read, 3 * MEASURED as u32);
        assert_eq!(costs.get(), Some(Duration::from_micros(50)));
    }

    #[test]
    fn where_xen_does_not_tell_nothing_is_known() {
        let costs = BlockCost::default();
        assert!(costs.begin(|| None).is_none());
        assert_eq!(costs.get(), None);
    }
}
