//! The messages of a ring, and the number of slots that a ring has for them.

use crate::memory::RingMemory;
use bulkhead_xen::PAGE_SIZE;

/// The most pages that a ring may have (`max-ring-page-order` 4, io/blkif.h).
pub const MAX_PAGES: usize = 16;

/// The bytes before the first slot: four indices and padding (`struct __name##_sring`, io/ring.h).
pub const RING_HEADER_SIZE: usize = 64;

/// The form that a kind of messages has in the slots of a ring.
///
/// A slot holds a request or a response, whichever is larger. Messages are coded from and to
/// private copies, never in the shared memory; decoding is total: any bytes give a message or a
/// [`Malformed`](Self::Malformed).
pub trait Format {
    /// The frontend's message.
    type Request;
    /// The backend's message.
    type Response;
    /// The reason why a request cannot be understood, with the details that its response needs.
    type Malformed;
    /// Room for one slot: bytes, at least as many as either size below.
    type Slot: AsRef<[u8]> + AsMut<[u8]>;
    /// Room for a response: bytes, at least as many as its size below.
    type ResponseSlot: AsRef<[u8]> + AsMut<[u8]> + Default;

    /// Returns a slot of zeros.
    fn empty_slot(&self) -> Self::Slot;

    /// Returns the bytes of a request; a multiple of 4.
    fn request_size(&self) -> usize;

    /// Returns the bytes of a response; a multiple of 4.
    fn response_size(&self) -> usize;

    /// Reads a request from the private copy of a slot.
    fn decode_request(&self, slot: &Self::Slot) -> Result<Self::Request, Self::Malformed>;

    /// Writes a request into a slot of zeros.
    fn encode_request(&self, request: &Self::Request, slot: &mut Self::Slot);

    /// Reads a response from the private copy of a slot.
    fn decode_response(&self, slot: &Self::ResponseSlot) -> Self::Response;

    /// Writes a response into bytes of its own.
    fn encode_response(&self, response: &Self::Response) -> Self::ResponseSlot;

    /// Copies a request out of the shared memory at `offset`. A format whose requests have few sizes
    /// overrides this, so that each size is a constant.
    #[inline]
    fn copy_request(&self, memory: &impl RingMemory, offset: usize, slot: &mut Self::Slot) {
        memory.read(offset, &mut slot.as_mut()[..self.request_size()]);
    }

    /// Copies a response into the shared memory at `offset`. A format with few sizes overrides this too.
    #[inline]
    fn copy_response(
        &self,
        memory: &impl RingMemory,
        offset: usize,
        response: &Self::ResponseSlot,
    ) {
        memory.write(offset, &response.as_ref()[..self.response_size()]);
    }

    /// Returns the bytes from one slot to the next.
    fn slot_size(&self) -> usize {
        self.request_size().max(self.response_size())
    }
}

/// Returns how many slots of `slot_size` bytes fit a ring of `bytes`: always a power of two
/// (`__RING_SIZE`, io/ring.h), or 0 if not even one fits.
///
/// ```
/// use bulkhead_ring::ring_slots;
///
/// assert_eq!(ring_slots(4096, 112), 32);
/// assert_eq!(ring_slots(16 * 4096, 112), 512);
/// assert_eq!(ring_slots(63, 112), 0);
/// ```
pub const fn ring_slots(bytes: usize, slot_size: usize) -> u32 {
    let bytes = if bytes > MAX_PAGES * PAGE_SIZE {
        MAX_PAGES * PAGE_SIZE
    } else {
        bytes
    };
    match bytes
        .saturating_sub(RING_HEADER_SIZE)
        .checked_div(slot_size)
    {
        None | Some(0) => 0,
        Some(fit) => 1 << fit.ilog2(),
    }
}
