//! Segments: runs of bytes in guests' memory that a request moves.

use crate::guest_memory;
use bulkhead_xen::Frame;
use core::ptr::NonNull;

/// A run of bytes within one page of a guest's memory, named by address for stores that copy
/// and by frame for those that hand pages to a device. The guest may change the bytes at any time.
#[derive(Clone, Copy, Debug)]
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
    /// From the segment's submission until its request's completion has been told, or its queue
    /// has been dropped, the bytes are mapped on every vCPU, readable, and for reads writable.
    /// Nothing in this domain holds a Rust reference to them, and they lie within one page.
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
