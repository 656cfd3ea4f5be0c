//! The counters of a queue: its own vCPU adds to them without atomic instructions, and any vCPU may read them.

use bulkhead_ring::blkif::Opcode;
use core::sync::atomic::{AtomicU64, Ordering};

macro_rules! stats {
    ($($(#[$doc:meta])* $field:ident,)*) => {
        /// A queue's counters. One task writes them, without a lock and without a locked instruction; every holder of
        /// the `Arc` may read them at any time.
        #[derive(Debug, Default)]
        pub struct QueueStats {
            $($(#[$doc])* pub $field: Counter,)*
        }

        /// The values of the counters, each read by itself.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct QueueCounts {
            $($(#[$doc])* pub $field: u64,)*
        }

        impl QueueStats {
            /// Reads all counters.
            pub fn counts(&self) -> QueueCounts {
                QueueCounts { $($field: self.$field.get(),)* }
            }
        }

        impl QueueCounts {
            /// Returns every counter with its name.
            pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($field), self.$field),)*].into_iter()
            }

            /// Returns the counters of two queues together.
            pub fn and(&self, other: &QueueCounts) -> QueueCounts {
                let mut sum = QueueCounts { $($field: self.$field + other.$field,)* };
                sum.deepest = self.deepest.max(other.deepest);
                sum
            }
        }
    };
}

stats! {
    /// READ requests answered.
    reads,
    /// WRITE requests answered.
    writes,
    /// WRITE_BARRIER requests answered.
    barriers,
    /// FLUSH_DISKCACHE requests answered.
    flushes,
    /// DISCARD requests answered.
    discards,
    /// Requests of these that came as indirect ones.
    indirect,
    /// Sectors of 512 bytes read.
    sectors_read,
    /// Sectors of 512 bytes written.
    sectors_written,
    /// Requests answered with an error, malformed ones included.
    errors,
    /// Persistently granted pages that were mapped already.
    persistent_hits,
    /// Persistently granted pages that had to be mapped.
    persistent_misses,
    /// Hypercalls that mapped pages.
    map_calls,
    /// Pages that they mapped.
    maps,
    /// Pages of these that were mapped for a device alone.
    device_maps,
    /// Hypercalls that unmapped pages.
    unmap_calls,
    /// Hypercalls that copied.
    copy_calls,
    /// Bytes that they copied.
    bytes_copied,
    /// Notifications sent to the frontend.
    notifications_sent,
    /// Notifications that came from the frontend.
    notifications_received,
    /// Sweeps that found requests.
    sweeps,
    /// Times that the task slept.
    sleeps,
    /// The most requests in service at a time.
    deepest,
}

impl QueueStats {
    /// Counts a request that was done, of `sectors` sectors.
    #[inline]
    pub(super) fn request(&self, operation: Opcode, sectors: u64) {
        match operation {
            Opcode::READ => {
                self.reads.add(1);
                self.sectors_read.add(sectors);
                return;
            }
            Opcode::WRITE => self.writes.add(1),
            Opcode::WRITE_BARRIER => self.barriers.add(1),
            Opcode::FLUSH_DISKCACHE => self.flushes.add(1),
            _ => self.discards.add(1),
        }
        self.sectors_written.add(sectors);
    }
}

/// A number that one task adds to, and that any task reads.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Returns the current value.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Adds to the number. Only the queue's own task calls this.
    #[inline]
    pub(super) fn add(&self, number: u64) {
        // There is one writer: no addition gets lost between the load and the store.
        self.0.store(self.get() + number, Ordering::Relaxed);
    }

    /// Raises the number to a value, if it is lower.
    #[inline]
    pub(super) fn raise_to(&self, value: u64) {
        if value > self.get() {
            self.0.store(value, Ordering::Relaxed);
        }
    }

    /// Sets the number to a value that is counted elsewhere.
    #[inline]
    pub(super) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_add_up() {
        let stats = QueueStats::default();
        stats.reads.add(3);
        stats.deepest.raise_to(7);
        stats.deepest.raise_to(2);
        let counts = stats.counts();
        assert_eq!((counts.reads, counts.deepest), (3, 7));
        let both = counts.and(&counts);
        assert_eq!((both.reads, both.deepest), (6, 7));
        assert!(both.named().any(|named| named == ("reads", 6)));
    }
}
