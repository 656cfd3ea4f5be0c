//! Writes that a store has acknowledged and that are not durable yet.
//!
//! A backend, or a server, may keep such writes in a cache until it is asked to flush. If its domain lives on, the cache
//! does too, whatever becomes of the connection: Linux's xen-blkback does not flush when it closes, and the next instance
//! of it finds the same device. If another domain takes its place, or a server is started anew, the writes may be lost.
//! The log says so.
//!
//! A flush does not fail for that. Linux's blkfront takes the failure of a flush to mean that the disk cannot be
//! flushed: it reports success, and never flushes again.

use core::sync::atomic::{AtomicU64, Ordering};

/// Counts the flushes of a disk, of all of its queues together.
#[derive(Debug, Default)]
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

    /// Notes that a flush has succeeded: writes that were acknowledged before it began are durable.
    pub fn end(&self, number: u64) {
        self.done.fetch_max(number, Ordering::AcqRel);
    }

    /// Returns the number of the last flush that has begun: a write that is acknowledged now is made durable by a
    /// later one.
    #[inline]
    pub fn begun(&self) -> u64 {
        self.begun.load(Ordering::Acquire)
    }

    /// Returns whether a write is durable that was acknowledged when the flush with that number was the last one.
    pub fn cover(&self, written: u64) -> bool {
        written < self.done.load(Ordering::Acquire)
    }
}
