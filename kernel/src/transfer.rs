//! Frames given to other domains and taken from them ([`FrameTransfer`]).
//!
//! Xen takes a frame from a PV domain only if nothing refers to it, so it is unmapped before. When a frame is
//! transferred to this domain, Xen enters the page frame number of the accepting entry into its own list (the M2P);
//! this domain's list gets the frame when it is adopted.

use crate::hypercall;
use crate::hypervisor::Hypercalls;
use crate::memory::p2m::P2m;
use crate::memory::{map, pv};
use crate::reservation;
use bulkhead_xen::abi::grant_table::GrantTransfer;
use bulkhead_xen::abi::memory::GNTTABOP_TRANSFER;
use bulkhead_xen::{
    Errno, FrameTransfer, Gfn, GrantStatus, Hypervisor, Mfn, PAGE_SIZE, Pfn, TransferRequest,
};
use core::ptr::NonNull;

/// The most frames of one hypercall.
const BATCH: usize = 64;

// SAFETY: a page that is kept has its frame still, and is mapped as it was; an adopted frame is mapped where it
// was accepted for, by the caller's promise, and on PVH Xen has put it there.
unsafe impl FrameTransfer for Hypercalls {
    unsafe fn give_frames(&self, batch: &mut [TransferRequest]) -> Result<(), Errno> {
        if !reservation::may_go() {
            return Err(Errno::AGAIN);
        }
        batch.chunks_mut(BATCH).try_for_each(|some| {
            // SAFETY: the caller's promise.
            unsafe { give(some) }
        })
    }

    fn page_frame(&self, page: NonNull<u8>) -> Option<Pfn> {
        map::page_frame(page.as_ptr()).map(Pfn)
    }

    unsafe fn adopt_frame(&self, page: NonNull<u8>, frame: Gfn) {
        let pfn = number(page);
        if let Some(p2m) = &map::get().p2m {
            assert_eq!(
                pv::pseudo_physical(frame.0),
                pfn,
                "Xen has the frame for another page"
            );
            p2m.set_machine_frame(pfn, Some(Mfn(frame.0)));
            pv::populate(pfn..pfn + 1);
        }
        reservation::note_back(1);
    }
}

/// Returns a page's frame number.
fn number(page: NonNull<u8>) -> u64 {
    page.as_ptr().addr() as u64 / PAGE_SIZE as u64
}

/// # Safety
/// As for `give_frames`; there are at most a batch.
unsafe fn give(batch: &mut [TransferRequest]) -> Result<(), Errno> {
    let p2m = map::get().p2m.as_ref();
    let mut operations = heapless::Vec::<GrantTransfer, BATCH>::new();
    for request in batch.iter_mut() {
        request.kept = true;
        request.status = GrantStatus::BAD_PAGE;
        // For a page without a frame, Xen refuses the impossible number.
        let frame = Hypercalls.frame_of(request.page.as_ptr());
        let operation = GrantTransfer {
            frame: frame.unwrap_or(Gfn(u64::MAX)),
            domain: request.domain,
            gref: request.gref,
            status: GrantStatus::BAD_PAGE,
        };
        operations.push(operation).map_err(|_| Errno::INVAL)?;
        if p2m.is_some() && frame.is_some() {
            let pfn = number(request.page);
            // SAFETY: by the contract, nothing uses the page.
            unsafe { pv::unmap(pfn..pfn + 1) };
        }
    }
    // SAFETY: Xen reads and writes the batch, which is borrowed for the call; the frames are the caller's to
    // give, and nothing maps them.
    let done = unsafe {
        hypercall::grant_table_op(
            GNTTABOP_TRANSFER.into(),
            operations.as_mut_ptr() as u64,
            operations.len() as u64,
        )
    };
    for (request, operation) in batch.iter_mut().zip(&operations) {
        // With any other status, Xen has taken the frame, even if the other domain did not get it (grant_table.h).
        let gone = done.is_ok() && operation.status != GrantStatus::BAD_PAGE;
        request.status = operation.status;
        request.kept = !gone;
        let had_frame = operation.frame != Gfn(u64::MAX);
        if had_frame {
            settle(p2m, number(request.page), gone);
        }
    }
    done.map(|_| ())
}

/// Notes that a page's frame is gone, or maps the page again.
fn settle(p2m: Option<&P2m>, pfn: u64, gone: bool) {
    if gone {
        reservation::note_gone(1);
    }
    if let Some(p2m) = p2m {
        match gone {
            true => p2m.set_machine_frame(pfn, None),
            false => pv::populate(pfn..pfn + 1),
        }
    }
}
