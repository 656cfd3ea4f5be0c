//! The heap: talc, which takes blocks of frames as it needs them and gives them back.

use super::pages;
use bulkhead_xen::PAGE_SIZE;
use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicUsize, Ordering};
use talc::TalcLock;
use talc::source::GlobalAllocSource;

/// The bytes by which the heap grows: small enough for `memory=16`, large enough to be rare.
const BLOCK: usize = 256 * 1024;

/// The most bytes that an allocation costs beside its own.
const OVERHEAD: usize = 24;

/// The bytes of the blocks that the heap has, and those that are allocated in them.
static BLOCKS: AtomicUsize = AtomicUsize::new(0);
static USED: AtomicUsize = AtomicUsize::new(0);

/// Returns the bytes of the heap's blocks that are not allocated.
pub fn free() -> usize {
    let used = USED.load(Ordering::Relaxed);
    BLOCKS.load(Ordering::Relaxed).saturating_sub(used)
}

#[derive(Debug)]
struct PageSource;

// SAFETY: whole pages of the frame allocator: aligned, unique, and ours until given back.
unsafe impl GlobalAlloc for PageSource {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let count = layout.size().div_ceil(PAGE_SIZE);
        // Pages of the heap may be granted to other domains, and then must not lie where another version's image goes.
        let Some(block) = pages::allocate_aside(count) else {
            return ptr::null_mut();
        };
        BLOCKS.fetch_add(layout.size(), Ordering::Relaxed);
        block.as_ptr()
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if let Some(block) = NonNull::new(block) {
            BLOCKS.fetch_sub(layout.size(), Ordering::Relaxed);
            // SAFETY: `block` came from `alloc` with the same layout.
            unsafe { pages::free_pages(block, layout.size().div_ceil(PAGE_SIZE)) }
        }
    }
}

/// The heap, which counts the allocated bytes.
struct Heap(TalcLock<spin::Mutex<()>, GlobalAllocSource<PageSource>>);

// SAFETY: talc does the work, with the same arguments. Nothing is inlined where it is called: there are
// hundreds of such places, and none where requests are served.
unsafe impl GlobalAlloc for Heap {
    #[inline(never)]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is passed on.
        let memory = unsafe { self.0.alloc(layout) };
        if !memory.is_null() {
            USED.fetch_add(layout.size() + OVERHEAD, Ordering::Relaxed);
        }
        memory
    }

    #[inline(never)]
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        USED.fetch_sub(layout.size() + OVERHEAD, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { self.0.dealloc(memory, layout) }
    }

    #[inline(never)]
    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise is passed on.
        let memory = unsafe { self.0.realloc(memory, layout, size) };
        if !memory.is_null() {
            USED.fetch_add(size, Ordering::Relaxed);
            USED.fetch_sub(layout.size(), Ordering::Relaxed);
        }
        memory
    }
}

#[global_allocator]
static HEAP: Heap = Heap(TalcLock::new(GlobalAllocSource::with_block_size(
    PageSource, BLOCK,
)));
