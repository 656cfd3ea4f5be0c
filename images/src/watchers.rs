//! Who wants to know when an image has grown.

use alloc::vec::Vec;
use core::task::Waker;
use spin::Mutex;

/// Those who wait, by the number they got.
#[derive(Default)]
pub(crate) struct Watchers(Mutex<Numbered>);

#[derive(Default)]
struct Numbered {
    last: u64,
    waiting: Vec<(u64, Waker)>,
}

impl Watchers {
    /// A number for somebody who may want to wait; to be given up with [`forget`](Self::forget).
    pub(crate) fn number(&self) -> u64 {
        let mut watchers = self.0.lock();
        watchers.last += 1;
        watchers.last
    }

    /// Wakes `waker` at the next growth, once. It takes the place of an earlier one.
    pub(crate) fn watch(&self, number: u64, waker: &Waker) {
        let waiting = &mut self.0.lock().waiting;
        match waiting.iter_mut().find(|(other, _)| *other == number) {
            Some((_, other)) => other.clone_from(waker),
            None => waiting.push((number, waker.clone())),
        }
    }

    /// Nobody with that number is to be woken any more.
    pub(crate) fn forget(&self, number: u64) {
        let waiting = &mut self.0.lock().waiting;
        waiting.retain(|(other, _)| *other != number);
    }

    /// Wakes all who wait.
    pub(crate) fn wake(&self) {
        let waiting = core::mem::take(&mut self.0.lock().waiting);
        for (_, waker) in waiting {
            waker.wake();
        }
    }
}
