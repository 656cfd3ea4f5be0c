//! Memory for rings in tests: real pages, as both ends of a ring would map them.

#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod messages;

use bulkhead_ring::{Index, SharedPages};
use bulkhead_xen::PAGE_SIZE;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// Page-aligned memory that two ends of a ring share. Outlives them in every test.
pub struct Pages {
    base: NonNull<u8>,
    layout: Layout,
}

impl Pages {
    pub fn new(pages: usize) -> Pages {
        let layout = Layout::from_size_align(pages * PAGE_SIZE, PAGE_SIZE).expect("a layout");
        // SAFETY: the size is not zero.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) });
        let base = base.unwrap_or_else(|| handle_alloc_error(layout));
        Pages { base, layout }
    }

    /// One end's view.
    pub fn map(&self) -> SharedPages {
        let pages = self.layout.size() / PAGE_SIZE;
        // SAFETY: tests drop the ends of a ring before the pages, and use them through nothing
        // but `SharedPages` and `poke`.
        unsafe { SharedPages::new(self.base, pages) }.expect("aligned pages")
    }

    /// What a hostile other end would do: writes an index as it likes.
    pub fn poke(&self, index: Index, value: u32) {
        // SAFETY: within the first page and aligned; all other accesses are atomic too.
        let index = unsafe { AtomicU32::from_ptr(self.base.add(index.offset()).cast().as_ptr()) };
        index.store(value, Ordering::SeqCst);
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.base.as_ptr(), self.layout) }
    }
}
