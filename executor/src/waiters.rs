//! A list of tasks that wait for one event.

use alloc::vec::Vec;
use core::future::poll_fn;
use core::task::{Poll, Waker};
use spin::Mutex;

/// The wakers of the tasks that wait for an event, each under the number of its wait. The owner puts the list
/// behind the lock that fits the event.
#[derive(Debug, Default)]
pub struct Waiters {
    last: u64,
    waiting: Vec<(u64, Waker)>,
}

impl Waiters {
    /// Waits until `look` returns a value; calls it again after each event. A wait that is given up leaves nothing behind.
    pub async fn until<T>(waiting: &Mutex<Waiters>, mut look: impl FnMut() -> Option<T>) -> T {
        let wait = Wait {
            number: waiting.lock().number(),
            waiting,
        };
        poll_fn(|context| {
            // First: an event between the look and the wait would be missed.
            wait.waiting.lock().wait(wait.number, context.waker());
            match look() {
                Some(found) => Poll::Ready(found),
                None => Poll::Pending,
            }
        })
        .await
    }

    /// Returns a number for a wait, to be given up with [`forget`](Self::forget).
    pub fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// Keeps `waker` for the next event, in place of an earlier one of this number.
    pub fn wait(&mut self, number: u64, waker: &Waker) {
        match self.waiting.iter_mut().find(|(other, _)| *other == number) {
            Some((_, known)) => known.clone_from(waker),
            None => self.waiting.push((number, waker.clone())),
        }
    }

    /// Drops the waker of this number. A task that waits again and again, or has ended, leaves nothing behind.
    pub fn forget(&mut self, number: u64) {
        self.waiting.retain(|(other, _)| *other != number);
    }

    /// Takes all wakers off the list. The caller wakes them when it has let go of its lock.
    pub fn take(&mut self) -> impl Iterator<Item = Waker> + use<> {
        core::mem::take(&mut self.waiting)
            .into_iter()
            .map(|(_, waker)| waker)
    }

    /// Returns the number of tasks that wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Returns whether no task waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

/// The wait of one task.
struct Wait<'w> {
    waiting: &'w Mutex<Waiters>,
    number: u64,
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.waiting.lock().forget(self.number);
    }
}
