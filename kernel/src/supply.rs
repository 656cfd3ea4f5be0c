//! Memory given back to Xen and asked for again ([`PageSupply`]).
//!
//! On PVH this is the frame behind a guest-physical address, which Xen takes away and replaces. On
//! PV the page's mapping is ours: it goes before the machine frame does, and comes back with
//! another machine frame, which is noted in our list (Xen keeps its own up to date, memory.h).

use crate::boot::pv;
use crate::door::Door;
use crate::memory::pages;
use crate::{hypercall, machine};
use bulkhead_xen::abi::memory::{DECREASE_RESERVATION, MemoryReservation, POPULATE_PHYSMAP};
use bulkhead_xen::{DomId, PAGE_SIZE, PageSupply};
use core::ops::Range;
use core::ptr::NonNull;

/// Pages for each hypercall.
const BATCH: usize = 128;

// SAFETY: allocated pages come from the frame allocator; populated ones are zeroed here. What Xen
// does not take is mapped as it was, with the same frame.
unsafe impl PageSupply for Door {
    fn allocate(&self, count: usize) -> Option<NonNull<u8>> {
        pages::allocate_pages(count)
    }

    unsafe fn release(&self, first: NonNull<u8>, count: usize) -> usize {
        in_batches(first, count, |frames| {
            // SAFETY: by the contract, nobody uses these pages.
            unsafe { release(frames) }
        })
    }

    unsafe fn populate(&self, first: NonNull<u8>, count: usize) -> usize {
        in_batches(first, count, |frames| {
            // SAFETY: by the contract, Xen has these pages back.
            unsafe { populate(frames) }
        })
    }
}

/// Does something with runs of page frames until one of them is not done as a whole.
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
/// Nobody uses these pages, of which there are at most a batch.
unsafe fn release(pfns: Range<u64>) -> usize {
    let mut frames = heapless::Vec::<u64, BATCH>::new();
    match &machine::facts().p2m {
        None => frames.extend(pfns.clone()),
        Some(p2m) => {
            frames.extend(pfns.clone().map_while(|pfn| p2m.machine_frame(pfn)));
            // SAFETY: by the contract.
            unsafe { pv::unmap(pfns.start..pfns.start + frames.len() as u64) };
        }
    }
    // SAFETY: nobody uses them, and on PV nothing maps them any more.
    let gone = unsafe { reservation(DECREASE_RESERVATION, &mut frames) };
    if let Some(p2m) = &machine::facts().p2m {
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
    // SAFETY: nothing is there, so nothing changes for anybody.
    let got = unsafe { reservation(POPULATE_PHYSMAP, &mut frames) };
    if let Some(p2m) = &machine::facts().p2m {
        for (pfn, mfn) in pfns.clone().zip(&frames).take(got) {
            p2m.set_machine_frame(pfn, Some(*mfn));
        }
        pv::populate(pfns.start..pfns.start + got as u64);
    }
    let address = pfns.start as usize * PAGE_SIZE;
    // What other domains had in there is none of our guests' business.
    // SAFETY: memory again, mapped at its own address, and nobody uses it yet.
    unsafe { (address as *mut u8).write_bytes(0, got * PAGE_SIZE) };
    got
}

/// Changes the domain's memory by frames of one page, and says how many of them it was.
///
/// # Safety
/// The frames are ours to give back, or to be filled.
unsafe fn reservation(command: u32, frames: &mut [u64]) -> usize {
    let mut request = MemoryReservation {
        extent_start: frames.as_mut_ptr(),
        nr_extents: frames.len() as u64,
        extent_order: 0,
        mem_flags: 0,
        domid: DomId::SELF,
    };
    // SAFETY: Xen reads the request, and reads and writes the list, which are borrowed for the
    // call; the rest is the caller's promise.
    let done = unsafe { hypercall::memory_op(command.into(), hypercall::pointer(&mut request)) };
    match done {
        Ok(done) => done as usize,
        Err(error) => {
            log::debug!("memory operation {command}: {error}");
            0
        }
    }
}
