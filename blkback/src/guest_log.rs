//! Log lines about what a guest did. A guest can connect, fail and come back without end, so its lines are
//! bounded: a number of them at once, then a few a minute. The log counts the lines that are left out. What
//! the toolstack or an operator did is always logged.

use crate::bucket::{Bucket, Size};
use alloc::sync::Arc;
use bulkhead_xen::{DomId, Instant};
use core::cell::RefCell;
use core::fmt;
use core::time::Duration;
use litemap::LiteMap;
use log::Level;
use spin::Mutex;

/// The lines that a guest may have at once after it was quiet (as many as two dozen disks need to connect
/// and close), and how often it may have one more.
const LINES: Size = Size {
    most: 60,
    debt: 0,
    one_more: Duration::from_secs(10),
};

/// The lines of one guest, about any of its disks and queues, from any vCPU.
#[derive(Debug)]
pub struct GuestLog {
    guest: DomId,
    budget: Mutex<Budget>,
}

#[derive(Debug)]
struct Budget {
    lines: Bucket,
    left_out: u64,
    /// True if the log says already that lines are left out.
    told: bool,
}

impl GuestLog {
    fn new(guest: DomId, now: Instant) -> Self {
        GuestLog {
            guest,
            budget: Mutex::new(Budget {
                lines: Bucket::new(LINES, now),
                left_out: 0,
                told: false,
            }),
        }
    }

    /// Logs a line, or leaves it out.
    pub fn say(&self, now: Instant, level: Level, line: fmt::Arguments<'_>) {
        let guest = self.guest;
        let may = self.budget.lock().take(now);
        match may {
            May::Say { left_out: 0 } => log::log!(level, "{line}"),
            May::Say { left_out } => {
                log::log!(
                    level,
                    "{line} ({left_out} lines of guest {guest} were left out before)"
                );
            }
            May::SayNoMore => log::warn!(
                "guest {guest} has had {} lines: of further ones, one in {} s is told",
                LINES.most,
                LINES.one_more.as_secs()
            ),
            May::Not => {}
        }
    }

    /// Returns whether a new log would have the same budget.
    fn is_as_new(&self, now: Instant) -> bool {
        self.budget.lock().lines.is_full(now)
    }
}

impl Drop for GuestLog {
    fn drop(&mut self) {
        let Budget { left_out, .. } = *self.budget.get_mut();
        if left_out > 0 {
            log::warn!("guest {}: {left_out} lines were left out", self.guest);
        }
    }
}

/// The decision about a line.
enum May {
    /// Logs it, with the number of lines that were left out before.
    Say { left_out: u64 },
    /// Logs instead that lines are left out from here on.
    SayNoMore,
    /// Leaves it out.
    Not,
}

impl Budget {
    fn take(&mut self, now: Instant) -> May {
        if self.lines.is_full(now) {
            self.told = false;
        }
        if self.lines.try_to_take(now) {
            let left_out = core::mem::take(&mut self.left_out);
            return May::Say { left_out };
        }
        self.left_out = self.left_out.saturating_add(1);
        match core::mem::replace(&mut self.told, true) {
            false => May::SayNoMore,
            true => May::Not,
        }
    }
}

/// The logs of all guests that have disks here, or have had some a while ago.
#[derive(Default)]
pub struct GuestLogs(RefCell<LiteMap<DomId, Arc<GuestLog>>>);

impl GuestLogs {
    /// Returns the log of a guest.
    pub fn of(&self, guest: DomId, now: Instant) -> Arc<GuestLog> {
        let mut logs = self.0.borrow_mut();
        // A guest that has no disk any more gets a full budget again when it would have one anyway.
        logs.retain(|_, log| Arc::strong_count(log) > 1 || !log.is_as_new(now));
        let log = logs.entry(guest);
        log.or_insert_with(|| Arc::new(GuestLog::new(guest, now)))
            .clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: DomId = DomId(5);

    fn second(count: u64) -> Instant {
        Instant(count * 1_000_000_000)
    }

    /// Asks to log `asked` lines at that time, and returns the number of those that may be logged.
    fn told(log: &GuestLog, now: Instant, asked: u32) -> u32 {
        let may = (0..asked).map(|_| log.budget.lock().take(now));
        may.filter(|may| matches!(may, May::Say { .. })).count() as u32
    }

    #[test]
    fn what_was_left_out_is_counted() {
        let log = GuestLog::new(GUEST, second(0));
        assert_eq!(told(&log, second(0), 60), 60);
        assert!(matches!(log.budget.lock().take(second(0)), May::SayNoMore));
        for _ in 0..9 {
            assert!(matches!(log.budget.lock().take(second(0)), May::Not));
        }
        let next = log.budget.lock().take(second(10));
        assert!(matches!(next, May::Say { left_out: 10 }));
        assert!(matches!(log.budget.lock().take(second(10)), May::Not));
    }

    #[test]
    fn a_log_is_kept_as_long_as_it_differs_from_a_new_one() {
        let logs = GuestLogs::default();
        let first = logs.of(GUEST, second(0));
        told(&first, second(0), 1000);
        drop(first);
        assert_eq!(told(&logs.of(GUEST, second(0)), second(0), 1), 0);
        logs.of(DomId(6), second(1));
        assert_eq!(logs.0.borrow().len(), 2);
        logs.of(DomId(7), second(10_000));
        assert_eq!(logs.0.borrow().len(), 1);
    }
}
