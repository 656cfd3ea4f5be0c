//! Transfers of the domain's frames to other domains, and of theirs to this one.

use crate::{DomId, Errno, Gfn, GrantRef, GrantStatus, Pfn, Reservation};
use core::ptr::NonNull;

/// Frames given to other domains and taken from them (`GNTTABOP_transfer`, grant_table.h).
///
/// A page of this domain has an address and a page frame number, which stay, and a frame behind them, which may go. A
/// page whose frame was given away is like one that was released ([`Reservation::release`]): an address without memory
/// behind it, until it is populated or adopts a frame that another domain gives.
///
/// Only PV domains can give frames away: to others, Xen (4.17 to 4.20, `hvm_grant_table_op` in
/// arch/x86/hvm/hypercall.c) answers [`Errno::NOSYS`], and their pages stay. Every domain can accept frames; for a
/// domain that is not PV, Xen puts them in their place itself.
///
/// # Safety
/// An implementer promises that a page it reports as kept is what it was, and that what it has adopted is
/// memory at the page's address on every vCPU, with the content that the giving domain left in it.
pub unsafe trait FrameTransfer: Reservation {
    /// Gives the frames behind own pages to domains that accept them. Afterwards, a page is kept if its request says so
    /// ([`TransferRequest::kept`]), and all pages are if Xen refuses the hypercall as a whole; any other page has no
    /// memory behind it, whether the other domain got the frame or not.
    ///
    /// Xen does not clear the frames: the other domain sees what is in them.
    ///
    /// # Safety
    /// Each request names a different page of the caller's own memory, from a page boundary on. None of them is
    /// granted, and no device accesses them. They are not accessed any more, unless they are kept, or populated, or
    /// adopt another frame.
    unsafe fn give_frames(&self, batch: &mut [TransferRequest]) -> Result<(), Errno>;

    /// Returns the page frame number of an own page, by which a grant entry that accepts a frame names the page that is
    /// to get it. `None` if it is not own memory.
    fn page_frame(&self, page: NonNull<u8>) -> Option<Pfn>;

    /// Puts a frame that another domain has given behind the page for which it was accepted. Its content is
    /// what that domain left in it.
    ///
    /// # Safety
    /// Xen has transferred `frame` for that page, which had nothing behind it, and this is called once for each
    /// transfer.
    unsafe fn adopt_frame(&self, page: NonNull<u8>, frame: Gfn);
}

/// One frame to be given away, with room for its outcome.
#[derive(Clone, Copy, Debug)]
pub struct TransferRequest {
    /// In: the own page that has the frame.
    pub page: NonNull<u8>,
    /// In: the domain that is to have it.
    pub domain: DomId,
    /// In: that domain's entry that accepts it.
    pub gref: GrantRef,
    /// Out: the outcome.
    pub status: GrantStatus,
    /// Out: true if the page is still there. It may be gone although the other domain did not get the frame.
    pub kept: bool,
}

impl TransferRequest {
    /// Returns a request to give the frame behind `page` to `domain`, which accepts it with `gref`.
    pub fn new(page: NonNull<u8>, domain: DomId, gref: GrantRef) -> Self {
        TransferRequest {
            page,
            domain,
            gref,
            status: GrantStatus::GENERAL_ERROR,
            kept: true,
        }
    }
}
