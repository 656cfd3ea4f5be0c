//! Segments: runs of bytes in guests' memory that a request moves.

use crate::guest_memory;
use bulkhead_xen::Frame;
use core::ptr::NonNull;

/// A run of bytes within one page of a guest's memory, named by address for stores that copy
/// and by frame for those that hand pages to a device. The guest may change the bytes at any time.
///
/// It is only lent to a store, so that moving bytes is safe while the store has it; one whose requests
/// are pending [keeps](Self::keep) it.
#[derive(Debug)]
pub struct IoSegment {
    address: NonNull<u8>,
    len: usize,
    frame: Frame,
}

// SAFETY: it is an address; the promise made in `new` holds on every vCPU.
unsafe impl Send for IoSegment {}

impl IoSegment {
    /// A segment of `len` bytes at `address`, in the page whose frame is `frame`.
    ///
    /// # Safety
    /// As long as the segment, or one that was [kept](Self::keep), exists, the bytes are mapped on every
    /// vCPU, readable, and for reads writable. A submitted segment is as good as kept from its submission
    /// until its request's completion has been told, or
    /// [`poll_close`](crate::IoQueue::poll_close) of its queue was ready. Nothing in this domain holds a
    /// Rust reference to the bytes, and they lie within one page.
    pub const unsafe fn new(address: NonNull<u8>, len: usize, frame: Frame) -> IoSegment {
        IoSegment {
            address,
            len,
            frame,
        }
    }

    /// Where the bytes are mapped. The offset within the frame is that within the page.
    pub const fn address(&self) -> NonNull<u8> {
        self.address
    }

    /// How many bytes.
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
            frame: self.frame,
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
            frame: self.frame,
        }
    }

    /// Fills it with zeros.
    pub(crate) fn fill_with_zeros(&self) {
        // SAFETY: mapped and, as the request is a read, writable (contract of `new`).
        unsafe { guest_memory::zero(self.address.as_ptr(), self.len) }
    }

    /// The page's frame.
    pub const fn frame(&self) -> Frame {
        self.frame
    }
}
