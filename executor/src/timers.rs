//! Tasks that wait for a time.

use crate::Core;
use alloc::rc::Rc;
use alloc::vec::Vec;
use bulkhead_xen::{Hypervisor, Instant};
use core::cell::{Cell, RefCell};
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};
use core::time::Duration;

/// Number of sleeps, the last ones, from which the wake-up latency is derived.
const SLEEPS: usize = 16;

/// A deadline, and a number that distinguishes equal deadlines.
type Key = (Instant, u64);

/// Waiting tasks by deadline, the first one last. They are few, and queues set deadlines while they serve: so it is a
/// list, which takes no memory once it has had its length.
#[derive(Default)]
pub(crate) struct Timers {
    waiting: RefCell<Vec<(Key, Waker)>>,
    count: Cell<u64>,
    /// Number of sleeps that have ended, and the delays of the last of them.
    slept: Cell<usize>,
    late: Cell<[Duration; SLEEPS]>,
    wakeup_latency: Cell<Option<Duration>>,
    slower_latency: Cell<Option<Duration>>,
}

impl Timers {
    /// Wakes every task whose deadline has passed. Reads the clock only if a task waits.
    pub(crate) fn fire(&self, now: impl FnOnce() -> Instant) {
        let mut waiting = self.waiting.borrow_mut();
        if waiting.is_empty() {
            return;
        }
        let now = now();
        while let Some((_, waker)) = waiting.pop_if(|((deadline, _), _)| *deadline <= now) {
            waker.wake();
        }
    }

    /// Records the end of a sleep that was to end at `deadline`.
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
        self.wakeup_latency.set(Some(known[known.len() / 4]));
        self.slower_latency.set(Some(known[known.len() * 3 / 4]));
    }

    pub(crate) fn wakeup_latency(&self) -> Option<Duration> {
        self.wakeup_latency.get()
    }

    /// Returns the delay that a quarter of the last sleeps had at least, whatever kept the processor.
    pub(crate) fn slower_latency(&self) -> Option<Duration> {
        self.slower_latency.get()
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        let waiting = self.waiting.borrow();
        waiting.last().map(|((deadline, _), _)| *deadline)
    }

    fn insert(&self, key: Key, waker: &Waker) {
        let mut waiting = self.waiting.borrow_mut();
        match find(&waiting, key) {
            Ok(place) => waiting[place].1.clone_from(waker),
            Err(place) => waiting.insert(place, (key, waker.clone())),
        }
    }

    fn remove(&self, key: Key) {
        let mut waiting = self.waiting.borrow_mut();
        if let Ok(place) = find(&waiting, key) {
            waiting.remove(place);
        }
    }
}

/// Returns the index of the deadline, or the index at which it belongs.
fn find(waiting: &[(Key, Waker)], key: Key) -> Result<usize, usize> {
    waiting.binary_search_by(|(other, _)| key.cmp(other))
}

/// A wait for a time; made by [`Handle::sleep_until`](crate::Handle::sleep_until).
pub struct Sleep<H> {
    core: Rc<Core<H>>,
    deadline: Instant,
    key: Option<Key>,
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
        if self.core.hypervisor.now() >= self.deadline {
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
        self.core.timers.insert(key, context.waker());
        Poll::Pending
    }
}

impl<H> Drop for Sleep<H> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.core.timers.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    const DEADLINE: Instant = Instant(1_000_000);

    #[test]
    fn the_first_deadline_is_the_first_to_end() {
        let timers = Timers::default();
        let waker = Waker::noop();
        let at = |nanos| Instant(nanos);
        for (number, nanos) in [30, 10, 20, 10].into_iter().enumerate() {
            timers.insert((at(nanos), number as u64), waker);
        }
        timers.insert((at(30), 0), waker);
        assert_eq!(timers.waiting.borrow().len(), 4);
        timers.remove((at(10), 1));
        timers.remove((at(10), 1));
        assert_eq!(timers.next(), Some(at(10)));
        timers.fire(|| at(9));
        assert_eq!(timers.next(), Some(at(10)));
        timers.fire(|| at(20));
        assert_eq!(timers.next(), Some(at(30)));
        timers.fire(|| at(31));
        assert_eq!(timers.next(), None);
    }

    /// Returns the timers after sleeps that ended the given numbers of microseconds after their deadline.
    fn after_sleeps(late: &[i64]) -> Timers {
        let timers = Timers::default();
        for micros in late {
            let end = DEADLINE.0.checked_add_signed(micros * 1000).unwrap();
            timers.slept(DEADLINE, Instant(end));
        }
        timers
    }

    fn wakeup_latency(late: &[i64]) -> Option<Duration> {
        after_sleeps(late).wakeup_latency()
    }

    fn micros(count: u64) -> Option<Duration> {
        Some(Duration::from_micros(count))
    }

    #[test]
    fn neither_a_lucky_sleep_nor_unlucky_ones_count() {
        assert_eq!(wakeup_latency(&[]), None);
        assert_eq!(wakeup_latency(&[80]), micros(80));
        assert_eq!(wakeup_latency(&[9000, 300, 2, 400, 500]), micros(300));
        let late = [28_000, 6000, 145, 640, 2500, 9, 336, 450, 8600, 600];
        assert_eq!(wakeup_latency(&late), micros(336));
    }

    #[test]
    fn one_sleep_in_four_is_slower() {
        assert_eq!(after_sleeps(&[]).slower_latency(), None);
        assert_eq!(after_sleeps(&[80]).slower_latency(), micros(80));
        let late = [28_000, 300, 2, 400, 500, 600, 9, 700];
        assert_eq!(after_sleeps(&late).slower_latency(), micros(700));
    }

    #[test]
    fn what_a_sleep_took_long_ago_is_forgotten() {
        let late: Vec<i64> = [16; 100].into_iter().chain([160; 12]).collect();
        assert_eq!(wakeup_latency(&late), micros(160));
    }

    #[test]
    fn a_sleep_that_something_else_ended_tells_nothing() {
        assert_eq!(wakeup_latency(&[-50]), None);
        assert_eq!(wakeup_latency(&[32, -50]), micros(32));
    }
}
