//! The domain's free pages. Memory is mapped at its own (pseudo-)physical address, so a page is its
//! address.

use super::frames::Frames;
#[cfg(feature = "recover")]
use super::image;
use super::layout::Ranges;
use super::pv;
use bulkhead_xen::PAGE_SIZE;
use core::ops::Range;
use core::ptr::NonNull;
use spin::Mutex;

struct Pages {
    frames: Frames<'static>,
    /// Memory that is free, but not mapped yet (PV only).
    unmapped: Ranges,
    /// Page frames whose memory Xen has: those that are free in this map.
    ballooned: Frames<'static>,
    /// Page frames that a boot before this one had granted to other domains: those that are free in this map.
    #[cfg(feature = "recover")]
    granted: Frames<'static>,
    total: usize,
}

/// The number of maps of frames.
const MAPS: usize = if cfg!(feature = "recover") { 3 } else { 2 };

/// The number of bytes that no disk is given. They are for the control plane, and for small allocations whose failure
/// is not handled.
pub const RESERVE: usize = 1 << 20;

/// The number of pages that stay free, however much the toolstack wants back and however images grow: the reserve, and
/// as much again for disks that are attached later.
const LEFT_FREE: usize = 2 * RESERVE / PAGE_SIZE;

/// The number of page frames that are mapped at a time: 4 MiB.
const CHUNK: u64 = 1024;

static PAGES: Mutex<Option<Pages>> = Mutex::new(None);

/// Takes `count` pages in a row as [`allocate_pages`] does, if enough stay free.
pub fn allocate_and_leave_some(count: usize) -> Option<NonNull<u8>> {
    leaves_some(count).then(|| allocate_pages(count)).flatten()
}

/// Takes `count` pages in a row to grant them, if enough stay free.
pub fn allocate_to_grant(count: usize) -> Option<NonNull<u8>> {
    leaves_some(count).then(|| allocate_aside(count)).flatten()
}

/// Returns whether enough pages stay free without that many.
fn leaves_some(count: usize) -> bool {
    statistics().free / PAGE_SIZE >= LEFT_FREE.saturating_add(count)
}

/// The amounts of memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryStatistics {
    /// All memory that the domain has.
    pub total: usize,
    /// Memory that the domain could have in addition.
    pub ballooned: usize,
    /// Free memory; the heap's own reserve counts as used.
    pub free: usize,
}

/// Begins to use the free ranges: those that are mapped, those that are to be mapped when they are needed, and those
/// that Xen has. Frames of the first that are `granted` to other domains stay out of use until that has ended
/// (`free_granted`).
///
/// # Safety
/// Nothing else uses any of them. The first are mapped at their own addresses, writable.
pub unsafe fn init(
    free: &Ranges,
    unmapped: Ranges,
    ballooned: &Ranges,
    total_pages: usize,
    granted: impl Iterator<Item = u64> + Clone,
) {
    let all = free.iter().chain(&unmapped).chain(ballooned);
    let end = all.map(|range| range.end).max().unwrap_or(0) as usize;
    let words = Frames::words_for(end);
    let map_pages = (MAPS * words * size_of::<u64>()).div_ceil(PAGE_SIZE) as u64;
    let home = free
        .iter()
        .find_map(|range| without(range, map_pages, granted.clone()))
        .expect("no room for the map of free pages");
    let start = (home.start as usize * PAGE_SIZE) as *mut u64;
    // SAFETY: free memory by the contract, and it is not handed out below.
    let maps = unsafe {
        start.write_bytes(0, MAPS * words);
        core::slice::from_raw_parts_mut(start, MAPS * words)
    };
    let (map, others) = maps.split_at_mut(words);
    let (absent, _others) = others.split_at_mut(words);
    let mut frames = Frames::new(map);
    let mut missing = Frames::new(absent);
    for range in ballooned {
        missing.release(range.start as usize..range.end as usize);
    }
    for range in free {
        frames.release(range.start as usize..range.end as usize);
    }
    home.for_each(|frame| assert!(frames.take_frame(frame as usize)));
    #[cfg(feature = "recover")]
    let granted = {
        let mut kept = Frames::new(_others);
        for frame in granted.map(|frame| frame as usize) {
            if frames.take_frame(frame) {
                kept.release(frame..frame + 1);
            }
        }
        kept
    };
    *PAGES.lock() = Some(Pages {
        frames,
        unmapped,
        ballooned: missing,
        #[cfg(feature = "recover")]
        granted,
        total: total_pages,
    });
}

/// Returns the first `count` frames in a row of a range that has more, none of them granted.
fn without(
    range: &Range<u64>,
    count: u64,
    granted: impl Iterator<Item = u64> + Clone,
) -> Option<Range<u64>> {
    let mut run = range.start..range.start + count;
    while run.end < range.end {
        match granted.clone().filter(|frame| run.contains(frame)).max() {
            None => return Some(run),
            Some(last) => run = last + 1..last + 1 + count,
        }
    }
    None
}

/// Frees a frame that a boot before this one had granted, if it is one of those.
///
/// # Safety
/// No other domain can use it any more.
#[cfg(feature = "recover")]
pub unsafe fn free_granted(frame: u64) {
    if let Some(pages) = PAGES.lock().as_mut()
        && pages.granted.take_frame(frame as usize)
    {
        pages.frames.release(frame as usize..frame as usize + 1);
    }
}

/// Gives the caller a frame that a boot before this one had granted, if it is one of those. Returns its page's address.
#[cfg(feature = "recover")]
pub fn keep_granted(frame: u64) -> Option<NonNull<u8>> {
    let frame = usize::try_from(frame).ok()?;
    let taken = PAGES.lock().as_mut()?.granted.take_frame(frame);
    NonNull::new((frame * PAGE_SIZE) as *mut u8).filter(|_| taken)
}

/// Returns the number of pages that a boot before this one had granted and that were not [freed](free_granted) yet.
#[cfg(feature = "recover")]
pub fn still_granted() -> usize {
    let pages = PAGES.lock();
    pages
        .as_ref()
        .map_or(0, |pages| pages.granted.free_frames())
}

/// Takes `count` pages in a row; their contents are undefined.
pub fn allocate_pages(count: usize) -> Option<NonNull<u8>> {
    let mut pages = PAGES.lock();
    let pages = pages.as_mut()?;
    loop {
        if let Some(first) = pages.frames.allocate(count, 0) {
            return NonNull::new((first * PAGE_SIZE) as *mut u8);
        }
        pages.map_more(count as u64)?;
    }
}

/// Takes `count` pages in a row as [`allocate_pages`] does, for memory that may be granted: where no version of the
/// image goes, as long as there is other memory. No version can take over while another domain has a page where its
/// image goes.
pub fn allocate_aside(count: usize) -> Option<NonNull<u8>> {
    #[cfg(feature = "recover")]
    let aside = allocate_behind_room(count);
    #[cfg(not(feature = "recover"))]
    let aside = None;
    aside.or_else(|| allocate_pages(count))
}

/// Takes `count` pages in a row as [`allocate_pages`] does, behind the room for later versions of the image.
#[cfg(feature = "recover")]
pub fn allocate_behind_room(count: usize) -> Option<NonNull<u8>> {
    let mut pages = PAGES.lock();
    let pages = pages.as_mut()?;
    let from = image::room().end as usize / PAGE_SIZE;
    loop {
        if let Some(first) = pages.frames.allocate(count, from) {
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
        pv::populate(chunk.clone());
        self.frames
            .release(chunk.start as usize..chunk.end as usize);
        Some(())
    }

    /// Takes up to `count` free pages in a row, the last ones, and leaves some. The second part of the result says
    /// whether they are mapped.
    fn take_last(&mut self, count: usize) -> Option<(Range<usize>, bool)> {
        let count = count.min(self.free().saturating_sub(LEFT_FREE));
        if count == 0 {
            return None;
        }
        let unmapped = self.unmapped.iter_mut();
        if let Some(range) = unmapped.rev().find(|range| !range.is_empty()) {
            let start = range.start.max(range.end.saturating_sub(count as u64));
            let end = core::mem::replace(&mut range.end, start);
            return Some((start as usize..end as usize, false));
        }
        Some((self.frames.take_highest(count)?, true))
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
/// The pages came from [`allocate_pages`] (in any grouping), and nothing accesses them any more.
pub unsafe fn free_pages(first: NonNull<u8>, count: usize) {
    let first = first.as_ptr() as usize / PAGE_SIZE;
    if let Some(pages) = PAGES.lock().as_mut() {
        pages.frames.release(first..first + count);
    }
}

/// Takes up to `count` free pages in a row that may go back to Xen. Returns them, and whether they are mapped. The
/// caller gives them back by [`now_missing`] or [`now_there`].
pub fn take_spare(count: usize) -> Option<(Range<usize>, bool)> {
    PAGES.lock().as_mut()?.take_last(count)
}

/// Takes up to `count` pages in a row that Xen has. The caller gives them back by [`now_missing`] or [`now_there`].
pub fn take_missing(count: usize) -> Option<Range<usize>> {
    PAGES.lock().as_mut()?.ballooned.take_lowest(count)
}

/// Notes that Xen has pages that were taken.
pub fn now_missing(pages: Range<usize>) {
    if let Some(all) = PAGES.lock().as_mut() {
        all.ballooned.release(pages);
    }
}

/// Notes that pages that were taken are there, mapped, and free.
pub fn now_there(pages: Range<usize>) {
    if let Some(all) = PAGES.lock().as_mut() {
        all.frames.release(pages);
    }
}

/// Returns the amounts of memory.
pub fn statistics() -> MemoryStatistics {
    PAGES
        .lock()
        .as_ref()
        .map_or(MemoryStatistics::default(), |pages| {
            let missing = pages.ballooned.free_frames();
            MemoryStatistics {
                total: (pages.total - missing) * PAGE_SIZE,
                ballooned: missing * PAGE_SIZE,
                free: pages.free() * PAGE_SIZE,
            }
        })
}
