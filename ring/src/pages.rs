//! Shared pages behind a raw pointer: the crate's only unsafe code.

use crate::error::BadPages;
use crate::memory::{Index, RingMemory};
use crate::message::MAX_PAGES;
use bulkhead_xen::PAGE_SIZE;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering, fence};

/// One to sixteen contiguous pages shared with the other end of a ring.
///
/// It does not own the mapping: whoever made it keeps the mapping for longer.
#[derive(Debug)]
pub struct SharedPages {
    base: NonNull<u8>,
    size: usize,
}

// SAFETY: the pages may be used from any vCPU, as the contract of `new` says, and a `SharedPages`
// holds no state of its own.
unsafe impl Send for SharedPages {}

impl SharedPages {
    /// Takes `pages` contiguous pages from `base`.
    ///
    /// # Safety
    /// Until the value is dropped, the pages stay mapped at this address, readable and writable,
    /// on every vCPU that uses it, and nothing in this domain holds a reference into them.
    /// Other accesses, by the other domain above all, may happen at any time.
    pub unsafe fn new(base: NonNull<u8>, pages: usize) -> Result<SharedPages, BadPages> {
        if pages == 0 || pages > MAX_PAGES {
            return Err(BadPages::Count(pages));
        }
        if !base.addr().get().is_multiple_of(PAGE_SIZE) {
            return Err(BadPages::Unaligned(base.addr().get()));
        }
        Ok(SharedPages {
            base,
            size: pages * PAGE_SIZE,
        })
    }

    /// A pointer to `len` bytes from `offset`.
    #[inline]
    fn range(&self, offset: usize, len: usize) -> NonNull<u8> {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.size);
        assert!(
            inside && offset.is_multiple_of(4),
            "ring access out of bounds"
        );
        // SAFETY: within the pages, as just checked.
        unsafe { self.base.add(offset) }
    }

    #[inline]
    fn index(&self, index: Index) -> &AtomicU32 {
        const { assert!(Index::ResponseEvent as usize + size_of::<u32>() <= PAGE_SIZE) };
        // SAFETY: every index lies within the first page, and `new` has checked that there is one.
        let at = unsafe { self.base.add(index.offset()) }.cast::<u32>();
        // SAFETY: mapped and aligned (the pages are, and so is each offset); the other end writes
        // aligned 32-bit words, which on this architecture is what an atomic access is.
        unsafe { AtomicU32::from_ptr(at.as_ptr()) }
    }
}

impl RingMemory for SharedPages {
    fn size(&self) -> usize {
        self.size
    }

    #[inline]
    fn load(&self, index: Index) -> u32 {
        self.index(index).load(Ordering::Acquire)
    }

    #[inline]
    fn store(&self, index: Index, value: u32) {
        self.index(index).store(value, Ordering::Release);
    }

    #[inline]
    fn barrier(&self) {
        fence(Ordering::SeqCst);
    }

    // Words as wide as the offset's alignment allows: slots of the 64-bit layout are multiples of
    // 8 bytes, those of the 32-bit layout only of 4.
    #[inline(always)]
    fn read(&self, offset: usize, into: &mut [u8]) {
        let mut from = self.range(offset, into.len());
        let (wide, rest) = match offset.is_multiple_of(8) {
            true => into.as_chunks_mut::<8>(),
            false => (Default::default(), into),
        };
        for word in wide {
            // SAFETY: `range` checked the whole length, `from` is 8-aligned here.
            *word = unsafe { from.cast::<u64>().read_volatile() }.to_ne_bytes();
            // SAFETY: at most one past the checked range.
            from = unsafe { from.add(8) };
        }
        let (narrow, bytes) = rest.as_chunks_mut::<4>();
        for word in narrow {
            // SAFETY: as above, 4-aligned.
            *word = unsafe { from.cast::<u32>().read_volatile() }.to_ne_bytes();
            // SAFETY: at most one past the checked range.
            from = unsafe { from.add(4) };
        }
        for byte in bytes {
            // SAFETY: as above; bytes need no alignment.
            *byte = unsafe { from.read_volatile() };
            // SAFETY: at most one past the checked range.
            from = unsafe { from.add(1) };
        }
    }

    #[inline(always)]
    fn write(&self, offset: usize, from: &[u8]) {
        let mut to = self.range(offset, from.len());
        let (wide, rest) = match offset.is_multiple_of(8) {
            true => from.as_chunks::<8>(),
            false => (Default::default(), from),
        };
        for word in wide {
            // SAFETY: `range` checked the whole length, `to` is 8-aligned here.
            unsafe { to.cast::<u64>().write_volatile(u64::from_ne_bytes(*word)) };
            // SAFETY: at most one past the checked range.
            to = unsafe { to.add(8) };
        }
        let (narrow, bytes) = rest.as_chunks::<4>();
        for word in narrow {
            // SAFETY: as above, 4-aligned.
            unsafe { to.cast::<u32>().write_volatile(u32::from_ne_bytes(*word)) };
            // SAFETY: at most one past the checked range.
            to = unsafe { to.add(4) };
        }
        for byte in bytes {
            // SAFETY: as above; bytes need no alignment.
            unsafe { to.write_volatile(*byte) };
            // SAFETY: at most one past the checked range.
            to = unsafe { to.add(1) };
        }
    }
}
