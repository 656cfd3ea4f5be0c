//! The rules that both ends share: when to notify, and where a slot lies.

use crate::error::TooSmall;
use crate::memory::{Index, RingMemory};
use crate::message::{Format, RING_HEADER_SIZE, ring_slots};

/// The memory of a ring with the format of its messages.
pub(crate) struct Slots<M, F> {
    pub(crate) memory: M,
    pub(crate) format: F,
    /// A power of two, so that free-running indices wrap without a seam.
    pub(crate) count: u32,
    slot_size: usize,
}

impl<M: RingMemory, F: Format> Slots<M, F> {
    pub(crate) fn new(memory: M, format: F) -> Result<Self, TooSmall> {
        let (size, slot_size) = (memory.size(), format.slot_size());
        match ring_slots(size, slot_size) {
            0 => Err(TooSmall { size, slot_size }),
            count => Ok(Slots {
                memory,
                format,
                count,
                slot_size,
            }),
        }
    }

    /// The address of a slot.
    #[inline]
    pub(crate) fn offset(&self, index: u32) -> usize {
        RING_HEADER_SIZE + (index & (self.count - 1)) as usize * self.slot_size
    }

    /// `RING_PUSH_*_AND_CHECK_NOTIFY` (io/ring.h): publishes `new`, then says whether the other
    /// end asked to be notified of anything between `old` and `new`.
    #[inline]
    pub(crate) fn publish(&self, producer: Index, event: Index, old: u32, new: u32) -> bool {
        self.memory.store(producer, new);
        // The other end sees the new index before we look at what it waits for.
        self.memory.barrier();
        let event = self.memory.load(event);
        new.wrapping_sub(event) < new.wrapping_sub(old)
    }
}
