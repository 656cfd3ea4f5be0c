//! The domain's free pages. Memory is mapped at its own (pseudo-)physical address, so a page is its
//! address.

use super::frames::Frames;
use super::layout::Ranges;
use bulkhead_xen::PAGE_SIZE;
use core::ptr::NonNull;
use spin::Mutex;

struct Pages {
    frames: Frames<'static>,
    /// Free, but not mapped yet (PV only).
    unmapped: Ranges,
    total: usize,
}

/// Page frames that are mapped at a time: 4 MiB.
const CHUNK: u64 = 1024;

static PAGES: Mutex<Option<Pages>> = Mutex::new(None);

/// How much memory there is, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryStatistics {
    /// All of the domain's memory.
    pub total: usize,
    /// What nobody uses; the heap's own reserve counts as used.
    pub free: usize,
}

/// Puts the free ranges to use: those that are mapped, and those that are to be mapped when they
/// are needed.
///
/// # Safety
/// Nothing else uses either of them. The first are mapped at their own addresses, writable.
pub unsafe fn init(free: &Ranges, unmapped: Ranges, total_pages: usize) {
    let all = free.iter().chain(&unmapped);
    let end = all.map(|range| range.end).max().unwrap_or(0) as usize;
    let words = Frames::words_for(end);
    let bitmap_pages = (words * size_of::<u64>()).div_ceil(PAGE_SIZE) as u64;
    let home = free
        .iter()
        .find(|range| range.end - range.start > bitmap_pages)
        .expect("no room for the map of free pages");
    let start = (home.start as usize * PAGE_SIZE) as *mut u64;
    // SAFETY: free memory by the contract, and it is not handed out below.
    let bitmap = unsafe {
        start.write_bytes(0, words);
        core::slice::from_raw_parts_mut(start, words)
    };
    let mut frames = Frames::new(bitmap);
    for range in free {
        let taken = if range == home { bitmap_pages } else { 0 };
        frames.release((range.start + taken) as usize..range.end as usize);
    }
    *PAGES.lock() = Some(Pages {
        frames,
        unmapped,
        total: total_pages,
    });
}

/// Takes `count` pages in a row; their contents are undefined.
pub fn allocate_pages(count: usize) -> Option<NonNull<u8>> {
    let mut pages = PAGES.lock();
    let pages = pages.as_mut()?;
    loop {
        if let Some(first) = pages.frames.allocate(count, 1) {
            return NonNull::new((first * PAGE_SIZE) as *mut u8);
        }
        pages.map_more(count as u64)?;
    }
}

impl Pages {
    /// Maps some more memory, at least `count` pages if the next range has as many.
    fn map_more(&mut self, count: u64) -> Option<()> {
        let range = self.unmapped.iter_mut().find(|range| !range.is_empty())?;
        let end = range.end.min(range.start + count.max(CHUNK));
        let chunk = core::mem::replace(&mut range.start, end)..end;
        crate::boot::pv::populate(chunk.clone());
        self.frames
            .release(chunk.start as usize..chunk.end as usize);
        Some(())
    }

    fn free(&self) -> usize {
        let unmapped: u64 = self
            .unmapped
            .iter()
            .map(|range| range.end - range.start)
            .sum();
        self.frames.free_frames() + unmapped as usize
    }
}

/// Gives pages back.
///
/// # Safety
/// They came from [`allocate_pages`] (in any grouping), and nothing accesses them any more.
pub unsafe fn free_pages(first: NonNull<u8>, count: usize) {
    let first = first.as_ptr() as usize / PAGE_SIZE;
    if let Some(pages) = PAGES.lock().as_mut() {
        pages.frames.release(first..first + count);
    }
}

/// How much memory there is.
pub fn statistics() -> MemoryStatistics {
    PAGES
        .lock()
        .as_ref()
        .map_or(MemoryStatistics { total: 0, free: 0 }, |pages| {
            MemoryStatistics {
                total: pages.total * PAGE_SIZE,
                free: pages.free() * PAGE_SIZE,
            }
        })
}
