//! The memory that images lie in.

use crate::guest_memory;
use crate::segment::IoSegment;
use bulkhead_xen::{PAGE_SIZE, Reservation};
use core::ptr::NonNull;

/// Memory of this domain that holds images: the ramdisk, or a part of it.
///
/// Once the images in it are found, only the copies of [`guest_memory`] touch it. These may race with each other, so
/// serving an image takes no lock. Code that releases a part of it makes sure that no queue touches that part.
#[derive(Debug)]
pub struct ImageMemory {
    base: NonNull<u8>,
    len: usize,
}

/// A file of the ramdisk that is not an image: the driver domain's own. It is wiped when it is dropped, unless a later
/// boot is to find it again.
#[derive(Debug)]
pub struct File {
    memory: ImageMemory,
    stays: bool,
}

impl File {
    /// Takes over the memory of an image that was never opened.
    pub(crate) fn new(memory: ImageMemory, stays: bool) -> File {
        File { memory, stays }
    }
}

impl AsRef<[u8]> for File {
    fn as_ref(&self) -> &[u8] {
        ImageMemory::of_file(self)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        if !self.stays {
            self.memory.zero(0, self.memory.len());
        }
    }
}

// SAFETY: the memory is reachable from every vCPU (contract of `new`).
unsafe impl Send for ImageMemory {}
// SAFETY: all access through a shared reference is by copies that may race.
unsafe impl Sync for ImageMemory {}

impl ImageMemory {
    /// Takes over `len` bytes from `base`.
    ///
    /// # Safety
    /// Until the value, and every catalog, device and queue made from it, is dropped, the memory
    /// is mapped at this address on every vCPU, readable and writable, and no other code uses it.
    pub unsafe fn new(base: NonNull<u8>, len: usize) -> ImageMemory {
        ImageMemory { base, len }
    }

    /// Returns the size in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the bytes, to look for images in them. No other access is possible meanwhile, as parts come from
    /// [`split_off`](Self::split_off) alone, which takes them out of `self`.
    pub(crate) fn bytes(&mut self) -> &[u8] {
        // SAFETY: `new` promises the memory; it is borrowed from the only value that covers it.
        unsafe { core::slice::from_raw_parts(self.base.as_ptr(), self.len) }
    }

    /// Returns the bytes of a file.
    pub(crate) fn of_file(file: &File) -> &[u8] {
        let ImageMemory { base, len } = &file.memory;
        // SAFETY: `new` promises the memory, and nothing can write to that of a file.
        unsafe { core::slice::from_raw_parts(base.as_ptr(), *len) }
    }

    /// Keeps the first `at` bytes (all, if there are no more) and returns the others.
    pub(crate) fn split_off(&mut self, at: usize) -> ImageMemory {
        let at = at.min(self.len);
        let rest = ImageMemory {
            // SAFETY: no further than the end of the memory.
            base: unsafe { self.base.add(at) },
            len: self.len - at,
        };
        self.len = at;
        rest
    }

    /// Copies from `offset` into a guest's segment, filling it.
    ///
    /// # Panics
    /// If that is past the end.
    #[inline]
    pub(crate) fn copy_out(&self, offset: usize, to: &IoSegment) {
        let from = self.at(offset, to.len());
        // SAFETY: `at` checked our side; the segment is mapped and writable (`IoSegment::new`),
        // and a guest's page is none of ours.
        unsafe { guest_memory::copy(from.as_ptr(), to.mapped().as_ptr(), to.len()) }
    }

    /// Copies a guest's segment to `offset`.
    ///
    /// # Panics
    /// If that is past the end.
    #[inline]
    pub(crate) fn copy_in(&self, offset: usize, from: &IoSegment) {
        let to = self.at(offset, from.len());
        // SAFETY: as in `copy_out`.
        unsafe { guest_memory::copy(from.mapped().as_ptr(), to.as_ptr(), from.len()) }
    }

    /// Makes `len` bytes from `offset` on zeros.
    ///
    /// # Panics
    /// If that is past the end.
    pub(crate) fn zero(&self, offset: usize, len: usize) {
        let to = self.at(offset, len);
        // SAFETY: `at` checked it.
        unsafe { guest_memory::zero(to.as_ptr(), len) }
    }

    /// Allocates whole free pages with room for `bytes` bytes. The caller has to clear them.
    pub(crate) fn take(reservation: &dyn Reservation, bytes: usize) -> Option<ImageMemory> {
        let pages = bytes.div_ceil(PAGE_SIZE);
        let first = reservation.allocate(pages)?;
        // SAFETY: just allocated, so ours from here on, for ever.
        Some(unsafe { ImageMemory::new(first, pages * PAGE_SIZE) })
    }

    /// Gives pages back to Xen, the first of which begins at `offset`. Returns the number of pages, counted from the
    /// first, that are gone.
    ///
    /// # Safety
    /// The pages lie in this memory, from a page boundary on, and none of them is granted. Nothing accesses those that
    /// are gone until they are populated again.
    pub(crate) unsafe fn release(
        &self,
        reservation: &dyn Reservation,
        offset: usize,
        pages: usize,
    ) -> usize {
        // SAFETY: by the contract.
        unsafe { reservation.release(self.at(offset, pages * PAGE_SIZE), pages) }
    }

    /// Gets released pages back, as zeros. Returns their number, counted from the first.
    ///
    /// # Safety
    /// The pages were released, and have not been populated since.
    pub(crate) unsafe fn populate(
        &self,
        reservation: &dyn Reservation,
        offset: usize,
        pages: usize,
    ) -> usize {
        // SAFETY: by the contract.
        unsafe { reservation.populate(self.at(offset, pages * PAGE_SIZE), pages) }
    }

    /// Returns the address, from which the caller finds the page boundaries.
    pub(crate) fn address(&self) -> usize {
        self.base.as_ptr().addr()
    }

    /// Returns the address of the `len` bytes from `offset`.
    ///
    /// # Panics
    /// If that is past the end.
    pub(crate) fn at(&self, offset: usize, len: usize) -> NonNull<u8> {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.len);
        assert!(inside, "image access out of bounds");
        // SAFETY: within the memory, as just checked.
        unsafe { self.base.add(offset) }
    }
}
