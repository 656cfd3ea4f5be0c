//! The domain's own memory, which can be given back to Xen and asked for again.

use crate::Gfn;
use core::ptr::NonNull;

/// Memory that Xen reserves for this domain, page by page: allocated from what is free, given back to Xen,
/// and populated again (`memory.h`).
///
/// A page that was released is an address without memory behind it: an access crashes the domain. The domain then has
/// less memory, as `xl list` shows, and another domain may have the frame. The page can be populated again as long as
/// the domain stays below its limit (`maxmem=`) and the host has memory left.
///
/// # Safety
/// An implementer promises that the pages it allocates have no other user, that what it
/// reports as populated is memory again, zeroed, at the same address on every vCPU, and that
/// pages it does not report as released stay what they were.
pub unsafe trait Reservation: Send + Sync {
    /// Allocates contiguous pages; `None` if there are not as many. They belong to the caller from then on, and still
    /// hold what their last user left in them: clearing many pages takes time, which the caller may divide.
    fn allocate(&self, pages: usize) -> Option<NonNull<u8>>;

    /// Allocates contiguous pages that are to be granted to other domains. If this domain starts again in place, these
    /// stay out of its free memory until the grants have ended ([`GrantedBefore`]).
    fn allocate_to_grant(&self, pages: usize) -> Option<NonNull<u8>> {
        self.allocate(pages)
    }

    /// Returns the number of pages that can be allocated, though perhaps not contiguously.
    fn free_pages(&self) -> usize;

    /// Gives pages back to Xen (`XENMEM_decrease_reservation`). Returns the number of pages, counted from the first,
    /// that are gone; the others are as they were.
    ///
    /// Xen does not clear what a living domain gives back. The page's next owner may read what
    /// was in it, so the caller clears it first.
    ///
    /// # Safety
    /// The pages are contiguous memory of the caller's, from a page boundary on, and none of them is granted. Nothing
    /// accesses them until they are populated again, no device either: Xen takes them out of the domain's IOMMU tables.
    unsafe fn release(&self, first: NonNull<u8>, pages: usize) -> usize;

    /// Puts zeroed memory behind pages that were released (`XENMEM_populate_physmap`). Returns the number of pages,
    /// counted from the first, that are memory again.
    ///
    /// # Safety
    /// Each of the pages was released, and has not been populated since.
    unsafe fn populate(&self, first: NonNull<u8>, pages: usize) -> usize;
}

/// Pages that a boot before this one of the same domain had granted to other domains when it crashed. They are not free
/// memory, as those domains may still use them.
pub trait GrantedBefore: Send + Sync {
    /// Adds a page to the free memory. Has no effect on a frame that is not such a page, or not any more.
    ///
    /// # Safety
    /// No entry of the grant table names the frame any more.
    unsafe fn free(&self, frame: Gfn);

    /// Gives such a page to the caller, who goes on sharing it with those domains. Returns its address; `None` if the
    /// frame is not such a page, or not any more.
    fn keep(&self, frame: Gfn) -> Option<NonNull<u8>>;
}
