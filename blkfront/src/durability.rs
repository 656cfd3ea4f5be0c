//! Writes that a backend has acknowledged and that are not durable yet: who made them, and what becomes of them if
//! another domain serves the disk from then on.
//!
//! A backend may keep such writes in a cache until it is asked to flush. If its domain lives on, the cache does too,
//! whatever becomes of the connection: Linux's xen-blkback does not flush when it closes, and the next instance of it
//! finds the same device. If another domain takes its place, the writes may be lost, and a flush of the new one says
//! nothing of them: the next flush of every guest that made some fails instead.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use spin::Mutex;

/// Counts the flushes of a disk, of all of its queues together.
#[derive(Default)]
pub struct Flushes {
    begun: AtomicU64,
    /// The latest flush that has succeeded.
    done: AtomicU64,
}

impl Flushes {
    /// Notes that a flush begins, and returns its number.
    pub fn begin(&self) -> u64 {
        self.begun.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// Notes that a flush has succeeded: what was acknowledged before it began is durable.
    pub fn end(&self, number: u64) {
        self.done.fetch_max(number, Ordering::AcqRel);
    }

    /// Returns the number of the last flush that has begun: a write that is acknowledged now is made durable by a
    /// later one.
    #[inline]
    pub fn begun(&self) -> u64 {
        self.begun.load(Ordering::Acquire)
    }

    /// Returns whether a write is durable that was acknowledged when that flush was the last.
    pub fn cover(&self, written: u64) -> bool {
        written < self.done.load(Ordering::Acquire)
    }
}

/// A guest's disk that has queues here.
#[derive(Default)]
pub struct User {
    number: Option<u64>,
    /// Writes of it may be lost, and it was not told yet.
    lost: AtomicBool,
}

impl User {
    /// Notes that writes of it may be lost.
    pub fn lose(&self) {
        self.lost.store(true, Ordering::Release);
    }

    /// Returns whether it is to be told of a loss: by the failure of a flush.
    pub fn has_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// Returns whether it is to be told of a loss, which it is then.
    #[inline]
    pub fn take_loss(&self) -> bool {
        self.has_lost() && self.lost.swap(false, Ordering::AcqRel)
    }
}

/// All guests' disks that have queues.
#[derive(Default)]
pub struct Users(Mutex<Vec<Weak<User>>>);

impl Users {
    /// Returns the guest's disk with that number; one without a number is of its own.
    pub fn find(&self, number: Option<u64>) -> Arc<User> {
        let mut all = self.0.lock();
        all.retain(|user| user.strong_count() > 0);
        let known = all.iter().filter_map(Weak::upgrade);
        let mut same = known.filter(|user| number.is_some() && user.number == number);
        if let Some(user) = same.next() {
            return user;
        }
        let user = Arc::new(User {
            number,
            ..User::default()
        });
        all.push(Arc::downgrade(&user));
        user
    }
}
