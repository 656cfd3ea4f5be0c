//! Memory given back to Xen and asked for again ([`Reservation`]).
//!
//! On PVH, Xen takes away and replaces the frame behind a guest-physical address. On PV, the mapping is ours: the page
//! is unmapped before its machine frame goes, and mapped again with another one, which is noted in our list (Xen keeps
//! its own up to date, memory.h).

#[cfg(feature = "recover")]
use crate::grants;
use crate::hypercall;
use crate::hypervisor::Hypercalls;
use crate::memory::layout::Ranges;
use crate::memory::{map, pages, pv};
#[cfg(feature = "recover")]
use crate::recovery::obstacles::{self, Obstacle};
#[cfg(feature = "recover")]
use crate::recovery::trial;
use bulkhead_xen::abi::memory::{
    CURRENT_RESERVATION, DECREASE_RESERVATION, MemoryReservation, POPULATE_PHYSMAP,
};
use bulkhead_xen::{Balloon, DomId, Mfn, PAGE_SIZE, Reservation};
#[cfg(feature = "recover")]
use bulkhead_xen::{Gfn, GrantedBefore};
use core::ops::Range;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

/// The most pages of one hypercall.
const BATCH: usize = 128;

/// The most pages that are given back or taken again at a time, so that other tasks get their turn.
const AT_ONCE: usize = 1024;

/// The order of the extents that boot gives back where it can, 2 MiB: the largest that Xen lets a guest name.
const LARGE_ORDER: u32 = 9;

/// Pages in use whose frames went back to Xen, or to another domain, and did not come again.
static RELEASED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: allocated pages come from the frame allocator; populated ones are zeroed here. What Xen
// does not take is mapped as it was, with the same frame.
unsafe impl Reservation for Hypercalls {
    fn allocate(&self, count: usize) -> Option<NonNull<u8>> {
        #[cfg(feature = "recover")]
        {
            // If this version goes back to the one before, that one does not know of the memory by which an image has
            // grown.
            if trial::is_trying() {
                log::warn!(
                    "no image grows before this version has shown that it serves: try again"
                );
                return None;
            }
            obstacles::add(Obstacle::Growth);
        }
        pages::allocate_and_leave_some(count)
    }

    fn allocate_to_grant(&self, count: usize) -> Option<NonNull<u8>> {
        pages::allocate_to_grant(count)
    }

    fn free_pages(&self) -> usize {
        pages::statistics().free / PAGE_SIZE
    }

    unsafe fn release(&self, first: NonNull<u8>, count: usize) -> usize {
        if !may_go() {
            return 0;
        }
        let gone = in_batches(first, count, |frames| {
            // SAFETY: by the contract, nothing uses these pages.
            unsafe { release(frames) }
        });
        note_gone(gone);
        gone
    }

    unsafe fn populate(&self, first: NonNull<u8>, count: usize) -> usize {
        let got = in_batches(first, count, |frames| {
            // SAFETY: by the contract, Xen has these pages back.
            unsafe { populate(frames) }
        });
        note_back(got);
        got
    }
}

#[cfg(feature = "recover")]
impl GrantedBefore for Hypercalls {
    unsafe fn free(&self, frame: Gfn) {
        // SAFETY: by the contract.
        unsafe { pages::free_granted(grants::page_frame(frame.0)) };
    }

    fn keep(&self, frame: Gfn) -> Option<NonNull<u8>> {
        pages::keep_granted(grants::page_frame(frame.0))
    }
}

impl Balloon for Hypercalls {
    fn owned(&self) -> usize {
        pages::statistics().total / PAGE_SIZE - self.released()
    }

    fn missing(&self) -> usize {
        pages::statistics().ballooned / PAGE_SIZE
    }

    fn released(&self) -> usize {
        RELEASED.load(Ordering::Relaxed)
    }

    fn give_back(&self, pages: usize) -> usize {
        if !may_go() {
            return 0;
        }
        let Some((run, mapped)) = pages::take_spare(pages.min(AT_ONCE)) else {
            return 0;
        };
        let first = address(run.start);
        if mapped {
            // Xen does not clear a page for its next owner, and its last user here did not either. What was
            // never mapped was never used.
            // SAFETY: taken out of the free pages, so nothing uses them.
            unsafe { first.write_bytes(0, run.len() * PAGE_SIZE) };
        }
        // SAFETY: as above.
        let gone = in_batches(first, run.len(), |frames| unsafe { release(frames) });
        let left = run.start + gone..run.end;
        pages::now_missing(run.start..left.start);
        if !mapped && map::get().p2m.is_some() && !left.is_empty() {
            pv::populate(left.start as u64..left.end as u64);
        }
        pages::now_there(left);
        gone
    }

    fn take_back(&self, pages: usize) -> usize {
        let Some(run) = pages::take_missing(pages.min(AT_ONCE)) else {
            return 0;
        };
        // SAFETY: Xen has them.
        let got = in_batches(address(run.start), run.len(), |frames| unsafe {
            populate(frames)
        });
        pages::now_there(run.start..run.start + got);
        pages::now_missing(run.start + got..run.end);
        got
    }
}

/// A page's address.
fn address(page: usize) -> NonNull<u8> {
    NonNull::new((page * PAGE_SIZE) as *mut u8).expect("page 0 is never free")
}

/// Notes that frames are about to go, before the first one does, since the vCPU may be stopped at any time after that.
/// Returns false if none may go, because this version is on trial: the version before would use memory that is gone.
pub(crate) fn may_go() -> bool {
    #[cfg(feature = "recover")]
    {
        if trial::is_trying() {
            return false;
        }
        obstacles::add(Obstacle::Memory);
    }
    true
}

/// Notes that pages in use have no frame any more. [`may_go`] comes before.
pub(crate) fn note_gone(pages: usize) {
    RELEASED.fetch_add(pages, Ordering::Relaxed);
}

/// Notes that pages in use have a frame again.
pub(crate) fn note_back(pages: usize) {
    RELEASED.fetch_sub(pages, Ordering::Relaxed);
}

/// Returns the number of pages that the domain has, according to Xen.
pub(crate) fn current_reservation() -> Option<u64> {
    let mut domain = DomId::SELF;
    let request = hypercall::pointer(&mut domain);
    // SAFETY: Xen reads the domain's number and changes nothing.
    let pages = unsafe { hypercall::memory_op(CURRENT_RESERVATION.into(), request) };
    pages.ok()
}

/// Tells Xen at boot that page frames will not be used until they are populated: nothing is behind them
/// yet, whatever the memory map says. Only for PVH.
///
/// # Safety
/// Nothing uses them.
pub(crate) unsafe fn decline(frames: &Ranges) {
    #[cfg(feature = "recover")]
    if !frames.is_empty() {
        obstacles::add(Obstacle::Memory);
    }
    let large = 1 << LARGE_ORDER;
    for range in frames {
        let middle = range.start.next_multiple_of(large).min(range.end);
        let end = (range.end / large * large).max(middle);
        for (part, order) in [
            (range.start..middle, 0),
            (middle..end, LARGE_ORDER),
            (end..range.end, 0),
        ] {
            let mut firsts = part.step_by(1 << order);
            loop {
                let mut batch: heapless::Vec<u64, BATCH> = firsts.by_ref().take(BATCH).collect();
                if batch.is_empty() {
                    break;
                }
                // SAFETY: by the contract. Frames that Xen does not take stay unused all the same.
                let taken = unsafe { reservation(DECREASE_RESERVATION, order, &mut batch) };
                if taken < batch.len() {
                    break;
                }
            }
        }
    }
}

/// Calls a function for runs of page frames, until it does less than a whole run. Returns the number of page frames
/// done.
fn in_batches(first: NonNull<u8>, count: usize, mut act: impl FnMut(Range<u64>) -> usize) -> usize {
    let start = first.as_ptr().addr() / PAGE_SIZE;
    let mut done = 0;
    while done < count {
        let from = start + done;
        let wanted = BATCH.min(count - done);
        let got = act(from as u64..(from + wanted) as u64);
        done += got;
        if got < wanted {
            break;
        }
    }
    done
}

/// # Safety
/// Nothing uses these pages, of which there are at most a batch.
unsafe fn release(pfns: Range<u64>) -> usize {
    let mut frames = heapless::Vec::<u64, BATCH>::new();
    match &map::get().p2m {
        None => frames.extend(pfns.clone()),
        Some(p2m) => {
            frames.extend(
                pfns.clone()
                    .map_while(|pfn| p2m.machine_frame(pfn))
                    .map(|mfn| mfn.0),
            );
            // SAFETY: by the contract.
            unsafe { pv::unmap(pfns.start..pfns.start + frames.len() as u64) };
        }
    }
    // SAFETY: nothing uses them, and on PV nothing maps them any more.
    let gone = unsafe { reservation(DECREASE_RESERVATION, 0, &mut frames) };
    if let Some(p2m) = &map::get().p2m {
        for pfn in pfns.clone().take(gone) {
            p2m.set_machine_frame(pfn, None);
        }
        pv::populate(pfns.start + gone as u64..pfns.start + frames.len() as u64);
    }
    gone
}

/// # Safety
/// Xen has these pages back, of which there are at most a batch.
unsafe fn populate(pfns: Range<u64>) -> usize {
    let mut frames: heapless::Vec<u64, BATCH> = pfns.clone().collect();
    // SAFETY: nothing is mapped there, so no code sees a change.
    let got = unsafe { reservation(POPULATE_PHYSMAP, 0, &mut frames) };
    if let Some(p2m) = &map::get().p2m {
        for (pfn, mfn) in pfns.clone().zip(&frames).take(got) {
            p2m.set_machine_frame(pfn, Some(Mfn(*mfn)));
        }
        pv::populate(pfns.start..pfns.start + got as u64);
    }
    let address = pfns.start as usize * PAGE_SIZE;
    // Guests must not see what other domains left in the frames.
    // SAFETY: memory again, mapped at its own address, and nothing uses it yet.
    unsafe { (address as *mut u8).write_bytes(0, got * PAGE_SIZE) };
    got
}

/// Changes the domain's memory by extents of `1 << order` pages, and returns the number of extents that were
/// changed.
///
/// # Safety
/// The frames are ours to give back, or to be filled.
unsafe fn reservation(command: u32, order: u32, frames: &mut [u64]) -> usize {
    let mut request = MemoryReservation {
        extent_start: frames.as_mut_ptr(),
        nr_extents: frames.len() as u64,
        extent_order: order,
        mem_flags: 0,
        domid: DomId::SELF,
    };
    // SAFETY: Xen reads the request, and reads and writes the list, which are borrowed for the
    // call; the rest is the caller's promise.
    let done = unsafe { hypercall::memory_op(command.into(), hypercall::pointer(&mut request)) };
    match done {
        Ok(done) => done as usize,
        Err(error) => {
            log::debug!("memory operation {command} failed: {error}");
            0
        }
    }
}
