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

/// Waiting tasks by deadline; the number tells apart those with the same one.
#[derive(Default)]
pub(crate) struct Timers {
    waiting: RefCell<BTreeMap<(Instant, u64), Waker>>,
    count: Cell<u64>,
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
        let late = now.since(deadline);
        // The least is what it takes, the rest is chance; but what it takes changes.
        let known = self.lateness.get().map(|known| known + known / 16);
        self.lateness
            .set(Some(known.map_or(late, |known| late.min(known))));
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

    #[test]
    fn the_least_lateness_counts_and_is_forgotten_slowly() {
        assert_eq!(lateness(&[]), None);
        assert_eq!(lateness(&[80]), Some(Duration::from_micros(80)));
        assert_eq!(lateness(&[80, 16, 900]), Some(Duration::from_micros(17)));
        assert_eq!(lateness(&[16, 5]), Some(Duration::from_micros(5)));
        // What a sleep takes has become more: after a while that is what counts.
        let late: Vec<i64> = core::iter::once(16).chain([160; 40]).collect();
        assert_eq!(lateness(&late), Some(Duration::from_micros(160)));
    }

    #[test]
    fn a_sleep_that_something_else_ended_tells_nothing() {
        assert_eq!(lateness(&[-50]), None);
        assert_eq!(lateness(&[32, -50]), Some(Duration::from_micros(32)));
    }
}
