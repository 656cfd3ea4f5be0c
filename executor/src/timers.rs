//! Which task waits for which time.

use crate::Core;
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use bulkhead_xen::{Hypervisor, Instant};
use core::cell::{Cell, RefCell};
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};
use core::time::Duration;

/// So many of the last sleeps tell what a sleep costs.
const SLEEPS: usize = 16;

/// Waiting tasks by deadline; the number tells apart those with the same one.
#[derive(Default)]
pub(crate) struct Timers {
    waiting: RefCell<BTreeMap<(Instant, u64), Waker>>,
    count: Cell<u64>,
    /// How many sleeps have ended, and how late the last of them did.
    slept: Cell<usize>,
    late: Cell<[Duration; SLEEPS]>,
    lateness: Cell<Option<Duration>>,
}

impl Timers {
    /// Wakes everyone whose time has come. Reads the clock only if somebody waits.
    pub(crate) fn fire(&self, now: impl FnOnce() -> Instant) {
        let mut waiting = self.waiting.borrow_mut();
        if waiting.is_empty() {
            return;
        }
        let now = now();
        while let Some(first) = waiting.first_entry() {
            if first.key().0 > now {
                break;
            }
            first.remove().wake();
        }
    }

    /// A sleep that was to end at `deadline` is over.
    pub(crate) fn slept(&self, deadline: Instant, now: Instant) {
        if now < deadline {
            // Something else ended it.
            return;
        }
        let count = self.slept.get();
        self.slept.set(count + 1);
        let mut late = self.late.get();
        late[count % SLEEPS] = now.since(deadline);
        self.late.set(late);
        // Whatever else the processor had to do makes some of them later, by many times at worst; a few
        // end on time by chance. So it is neither the mean nor the least that tells what a sleep takes.
        let known = &mut late[..SLEEPS.min(count + 1)];
        known.sort_unstable();
        self.lateness.set(Some(known[known.len() / 4]));
    }

    pub(crate) fn lateness(&self) -> Option<Duration> {
        self.lateness.get()
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.waiting
            .borrow()
            .first_key_value()
            .map(|(&(deadline, _), _)| deadline)
    }
}

/// A wait for a time; made by [`Handle::sleep_until`](crate::Handle::sleep_until).
pub struct Sleep<H> {
    core: Rc<Core<H>>,
    deadline: Instant,
    key: Option<(Instant, u64)>,
}

impl<H> Sleep<H> {
    pub(crate) fn new(core: Rc<Core<H>>, deadline: Instant) -> Self {
        Sleep {
            core,
            deadline,
            key: None,
        }
    }
}

impl<H: Hypervisor> Future for Sleep<H> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.core.door.now() >= self.deadline {
            return Poll::Ready(());
        }
        let key = match self.key {
            Some(key) => key,
            None => {
                let number = self.core.timers.count.get();
                self.core.timers.count.set(number + 1);
                let key = (self.deadline, number);
                self.key = Some(key);
                key
            }
        };
        self.core
            .timers
            .waiting
            .borrow_mut()
            .insert(key, context.waker().clone());
        Poll::Pending
    }
}

impl<H> Drop for Sleep<H> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.core.timers.waiting.borrow_mut().remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    const DEADLINE: Instant = Instant(1_000_000);

    /// Sleeps that ended so many microseconds after their deadline.
    fn lateness(late: &[i64]) -> Option<Duration> {
        let timers = Timers::default();
        for micros in late {
            let end = DEADLINE.0.checked_add_signed(micros * 1000).unwrap();
            timers.slept(DEADLINE, Instant(end));
        }
        timers.lateness()
    }

    fn micros(count: u64) -> Option<Duration> {
        Some(Duration::from_micros(count))
    }

    #[test]
    fn neither_a_lucky_sleep_nor_unlucky_ones_count() {
        assert_eq!(lateness(&[]), None);
        assert_eq!(lateness(&[80]), micros(80));
        assert_eq!(lateness(&[9000, 300, 2, 400, 500]), micros(300));
        let late = [28_000, 6000, 145, 640, 2500, 9, 336, 450, 8600, 600];
        assert_eq!(lateness(&late), micros(336));
    }

    #[test]
    fn what_a_sleep_took_long_ago_is_forgotten() {
        let late: Vec<i64> = [16; 100].into_iter().chain([160; 12]).collect();
        assert_eq!(lateness(&late), micros(160));
    }

    #[test]
    fn a_sleep_that_something_else_ended_tells_nothing() {
        assert_eq!(lateness(&[-50]), None);
        assert_eq!(lateness(&[32, -50]), micros(32));
    }
}
