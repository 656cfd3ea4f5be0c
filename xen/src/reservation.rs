//! The domain's own memory as something that can be given back to Xen and asked for again.

use crate::Gfn;
use core::ptr::NonNull;

/// Memory that Xen reserves for this domain, page by page: allocated from what is free, given back to Xen,
/// and populated again (`memory.h`).
///
/// A page that was released is an address without anything behind it: touching it ends the
/// domain. The domain then owns less, as `xl list` shows, and another domain may own what was
/// there. It can be populated again as long as the domain stays below its limit (`maxmem=`) and
/// the host has memory left.
///
/// # Safety
/// An implementer promises that the pages it allocates have no other user, that what it
/// reports as populated is memory again, zeroed, at the same address on every vCPU, and that
/// pages it does not report as released stay what they were.
pub unsafe trait Reservation: Send + Sync {
    /// Allocates contiguous pages. They belong to the caller from then on, and still hold what their last
    /// user left in them: clearing many pages takes time, which the caller may divide.
    fn allocate(&self, pages: usize) -> Option<NonNull<u8>>;

    /// Allocates pages that are to be granted to other domains. If this domain starts again in place, these stay out of its
    /// free memory until the grants have ended ([`GrantedBefore`]).
    fn allocate_to_grant(&self, pages: usize) -> Option<NonNull<u8>> {
        self.allocate(pages)
    }

    /// Returns the number of pages that can be allocated, though perhaps not in a row.
    fn free_pages(&self) -> usize;

    /// Gives pages back to Xen (`XENMEM_decrease_reservation`). Returns how many of them, counted
    /// from the first, are gone; the others are as they were.
    ///
    /// Xen does not clear what a living domain gives back. The page's next owner may read what
    /// was in it, so the caller clears it first.
    ///
    /// # Safety
    /// They are pages in a row of the caller's memory, from a page boundary on, and none of them
    /// is granted. They are not accessed until they are populated again, by no device either: Xen takes
    /// them out of the tables of the domain's IOMMU.
    unsafe fn release(&self, first: NonNull<u8>, pages: usize) -> usize;

    /// Puts memory, zeroed, behind pages that were released (`XENMEM_populate_physmap`). Returns
    /// how many of them, counted from the first, are memory again.
    ///
    /// # Safety
    /// Each of the pages was released, and has not been populated since.
    unsafe fn populate(&self, first: NonNull<u8>, pages: usize) -> usize;
}

/// Pages that a boot before this one of the same domain had granted to other domains when it crashed. They are not free
/// memory, as those domains may still use them.
pub trait GrantedBefore: Send + Sync {
    /// Puts a page among the free ones. Has no effect on a frame that is not such a page, or not any more.
    ///
    /// # Safety
    /// No entry of the grant table names the frame any more.
    unsafe fn free(&self, frame: Gfn);

    /// Gives such a page to the caller, who goes on sharing it with those domains. Returns where it is; `None` if the frame is
    /// not such a page, or not any more.
    fn keep(&self, frame: Gfn) -> Option<NonNull<u8>>;
}
