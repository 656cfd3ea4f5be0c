//! The memory that survives: a place for each queue.

use super::record::{Record, Sealed};
use bulkhead_ring::blkif::SLOT_SIZE;
use core::sync::atomic::{AtomicU32, Ordering, compiler_fence};

/// The most queues that are kept. The frontends of others lose their disks when the domain crashes.
pub const QUEUES: usize = 32;

/// The slots of a ring that can be kept: one page.
pub const SLOTS: u32 = 32;

/// The memory that survives. All of it is zero when the domain is built.
#[derive(Debug)]
#[repr(C)]
pub struct Memory {
    pub(super) places: [Place; QUEUES],
}

/// What is kept of one queue.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Place {
    pub(super) sealed: Sealed,
    requests: [Kept; SLOTS as usize],
}

/// A request as it was taken off the ring.
#[derive(Debug)]
#[repr(C, align(8))]
pub struct Kept {
    /// Its bytes.
    pub slot: [u8; SLOT_SIZE],
    /// The request's index. It belongs to the place that the index names, so that any other number says that
    /// nothing was taken.
    index: AtomicU32,
    /// Makes the size a power of two.
    _rest: [u32; 3],
}

impl Kept {
    /// Returns none.
    pub const fn none() -> Kept {
        Kept {
            slot: [0; SLOT_SIZE],
            index: AtomicU32::new(0),
            _rest: [0; 3],
        }
    }

    /// Notes that this is the request with that index: from here on, it is served from here, even if the domain crashes.
    #[inline]
    pub fn keep(&mut self, index: u32) {
        // The request is there before its index, and both before anything is done about it.
        self.index.store(index, Ordering::Release);
        compiler_fence(Ordering::SeqCst);
    }
}

impl Place {
    /// Returns where requests are kept: each at its index modulo their number.
    #[inline]
    pub fn requests(&mut self) -> &mut [Kept; SLOTS as usize] {
        &mut self.requests
    }

    /// Notes who is served, from now on and with no request taken yet.
    pub fn seal(&mut self, record: &Record) {
        for (at, kept) in (0..).zip(&mut self.requests) {
            // The index of another place.
            *kept.index.get_mut() = at + 1;
        }
        // A crash finds the record or finds none, and never one with an earlier frontend's requests.
        compiler_fence(Ordering::SeqCst);
        self.sealed.seal(record);
        compiler_fence(Ordering::SeqCst);
    }

    /// Notes that nobody is served.
    pub fn clear(&mut self) {
        self.sealed.clear();
        compiler_fence(Ordering::SeqCst);
    }

    /// Returns how many requests were taken from that index on, which is at most the number of slots.
    pub fn taken_from(&self, index: u32) -> u32 {
        let taken = |after: &u32| {
            let wanted = index.wrapping_add(*after);
            let kept = &self.requests[(wanted % SLOTS) as usize];
            kept.index.load(Ordering::Relaxed) == wanted
        };
        (0..SLOTS).take_while(taken).count() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::VbdId;
    use alloc::boxed::Box;
    use bulkhead_ring::blkif::Abi;
    use bulkhead_xen::{DomId, GrantRef, Port};

    fn place() -> Box<Place> {
        let record = Record {
            disk: VbdId {
                frontend: DomId(1),
                device: 51712,
            },
            queue: 0,
            queues: 1,
            ring: GrantRef(8),
            event_channel: Port(3),
            abi: Abi::X86_64,
            persistent: false,
            sectors: 8,
            sector_size: 512,
            nodes: 0,
        };
        let mut place = Box::new(Place {
            sealed: Sealed::default(),
            requests: [const { Kept::none() }; SLOTS as usize],
        });
        place.seal(&record);
        place
    }

    fn take(place: &mut Place, index: u32) {
        place.requests()[(index % SLOTS) as usize].keep(index);
    }

    #[test]
    fn nothing_is_found_that_was_not_taken() {
        let place = place();
        for index in [0, 1, 31, 32, u32::MAX] {
            assert_eq!(place.taken_from(index), 0, "{index}");
        }
    }

    #[test]
    fn what_was_taken_is_found_from_any_index_on_across_the_wrap() {
        let start = u32::MAX - 20;
        let mut place = place();
        for after in 0..50 {
            take(&mut place, start.wrapping_add(after));
        }
        for after in 18..50 {
            assert_eq!(place.taken_from(start.wrapping_add(after)), 50 - after);
        }
        assert_eq!(place.taken_from(start), 0, "overwritten long ago");
        assert_eq!(place.taken_from(start.wrapping_add(50)), 0);
    }

    #[test]
    fn an_earlier_frontends_requests_are_forgotten() {
        let mut place = place();
        (0..32).for_each(|index| take(&mut place, index));
        let record = place.sealed.read().expect("sealed");
        place.seal(&record);
        for index in 0..32 {
            assert_eq!(place.taken_from(index), 0);
        }
    }
}
