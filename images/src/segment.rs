//! Segments: runs of bytes in guests' memory that a request moves.

use crate::guest_memory;
use bulkhead_xen::DmaAddr;
use core::ptr::NonNull;

/// A run of bytes within one page of a guest's memory, named by address for stores that copy
/// and by bus address for those that let a device read and write them. The guest may change the bytes at any
/// time.
///
/// It is only lent to a store, so that moving bytes is safe while the store has it; one whose requests
/// are pending [keeps](Self::keep) it.
#[derive(Debug)]
pub struct IoSegment {
    address: NonNull<u8>,
    len: usize,
    dma: Option<DmaAddr>,
}

const _: () = assert!(size_of::<IoSegment>() == 24);

// SAFETY: it is an address; the promise made in `new` holds on every vCPU.
unsafe impl Send for IoSegment {}

impl IoSegment {
    /// A segment of `len` bytes at `address`, which devices find at `dma`, if they can.
    ///
    /// # Safety
    /// As long as the segment, or one that was [kept](Self::keep), exists, the bytes are mapped on every
    /// vCPU, readable, and for reads writable; and so they are for devices, if there is a bus address. A
    /// submitted segment counts as kept from its submission until its request's completion was reported, or
    /// [`poll_close`](crate::IoQueue::poll_close) of its queue was ready. Nothing in this domain holds a
    /// Rust reference to the bytes, and they lie within one page.
    pub const unsafe fn new(address: NonNull<u8>, len: usize, dma: Option<DmaAddr>) -> IoSegment {
        IoSegment { address, len, dma }
    }

    /// Returns the address at which the bytes are mapped.
    pub const fn address(&self) -> NonNull<u8> {
        self.address
    }

    /// Returns the number of bytes.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// True if there are none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The same bytes, for a store to use after the call in which they were lent to it.
    ///
    /// # Safety
    /// The store drops it, and does not touch the bytes any more, before it tells the request's completion
    /// and before its queue is closed.
    pub const unsafe fn keep(&self) -> IoSegment {
        IoSegment {
            address: self.address,
            len: self.len,
            dma: self.dma,
        }
    }

    /// Copies the bytes from `start` on into `to`: what the guest writes to the device.
    ///
    /// # Panics
    /// If it does not have that many.
    pub fn copy_to(&self, start: usize, to: &mut [u8]) {
        let from = self.part(start, to.len());
        // SAFETY: mapped and readable (contract of `new`), and of the slice's length; a guest's page is no
        // memory of Rust's.
        unsafe { guest_memory::copy(from.address.as_ptr(), to.as_mut_ptr(), to.len()) }
    }

    /// Copies `from` over the bytes from `start` on: what the guest reads. For reads alone: the
    /// segments of a write need not be writable.
    ///
    /// # Panics
    /// If it does not have that many.
    pub fn copy_from(&self, start: usize, from: &[u8]) {
        let to = self.part(start, from.len());
        // SAFETY: as above, and writable where the request is a read.
        unsafe { guest_memory::copy(from.as_ptr(), to.address.as_ptr(), from.len()) }
    }

    /// A part of it, for callers that split requests.
    ///
    /// # Safety
    /// As for [`keep`](Self::keep).
    ///
    /// # Panics
    /// If it does not have that part.
    pub unsafe fn keep_part(&self, start: usize, len: usize) -> IoSegment {
        self.part(start, len)
    }

    /// A part of it.
    ///
    /// # Panics
    /// If it does not have that part.
    pub(crate) fn part(&self, start: usize, len: usize) -> IoSegment {
        let inside = start.checked_add(len).is_some_and(|end| end <= self.len);
        assert!(inside, "not a part of the segment");
        IoSegment {
            // SAFETY: within the segment, as just checked.
            address: unsafe { self.address.add(start) },
            len,
            dma: self.dma.map(|first| first.offset(start)),
        }
    }

    /// Fills it with zeros.
    pub(crate) fn fill_with_zeros(&self) {
        // SAFETY: mapped and, as the request is a read, writable (contract of `new`).
        unsafe { guest_memory::zero(self.address.as_ptr(), self.len) }
    }

    /// Returns where devices find the first byte; the others follow. It is there for queues with
    /// [`DataAccess::Dma`](crate::DataAccess::Dma).
    pub const fn dma_addr(&self) -> Option<DmaAddr> {
        self.dma
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_has_the_bus_address_of_its_own_first_byte() {
        let bytes = [0_u8; 64];
        let dma = DmaAddr::new(0x5000);
        // SAFETY: nothing is submitted.
        let segment = unsafe { IoSegment::new(NonNull::from(&bytes).cast(), 64, dma) };
        let part = segment.part(16, 32).part(8, 8);
        assert_eq!(part.dma_addr(), DmaAddr::new(0x5018));
        let address = segment.address().addr().saturating_add(24);
        assert_eq!(part.address().addr(), address);
    }
}
