//! The heap: talc, which takes blocks of frames as it needs them and gives them back.

use super::pages;
use bulkhead_xen::PAGE_SIZE;
use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{self, NonNull};
use talc::TalcLock;
use talc::source::GlobalAllocSource;

/// Blocks that the heap grows by: small enough for `memory=16`, large enough to be rare.
const BLOCK: usize = 256 * 1024;

#[derive(Debug)]
struct PageSource;

// SAFETY: whole pages of the frame allocator: aligned, unique, and ours until given back.
unsafe impl GlobalAlloc for PageSource {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        pages::allocate_pages(layout.size().div_ceil(PAGE_SIZE))
            .map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if let Some(block) = NonNull::new(block) {
            // SAFETY: `block` came from `alloc` with the same layout.
            unsafe { pages::free_pages(block, layout.size().div_ceil(PAGE_SIZE)) }
        }
    }
}

#[global_allocator]
static HEAP: TalcLock<spin::Mutex<()>, GlobalAllocSource<PageSource>> =
    TalcLock::new(GlobalAllocSource::with_block_size(PageSource, BLOCK));
