//! The domain's own memory as something that can be given back to Xen and asked for again.

use core::ptr::NonNull;

/// Memory that Xen reserves for this domain, page by page: taken from what nobody uses, given back to Xen, and asked
/// for again (`memory.h`).
///
/// A page that was released is an address without anything behind it: touching it ends the
/// domain. The domain then owns less, as `xl list` shows, and another domain may own what was
/// there. It can be populated again as long as the domain stays below its limit (`maxmem=`) and
/// the host has memory left.
///
/// # Safety
/// An implementer promises that the pages it allocates are used by nobody else, that what it
/// reports as populated is memory again, zeroed, at the same address on every vCPU, and that
/// pages it does not report as released stay what they were.
pub unsafe trait Reservation: Send + Sync {
    /// Takes pages in a row that nobody uses. They are the caller's from then on, and hold what their
    /// last user left in them: clearing many takes its time, which is the caller's to divide.
    fn allocate(&self, pages: usize) -> Option<NonNull<u8>>;

    /// Gives pages back to Xen (`XENMEM_decrease_reservation`). Answers how many of them, counted
    /// from the first, are gone; the others are as they were.
    ///
    /// Xen does not clear what a living domain gives back. Whoever gets such a page next may read
    /// what was in it, so the caller clears it before.
    ///
    /// # Safety
    /// They are pages in a row of the caller's memory, from a page boundary on, and none of them
    /// is granted to anybody. Nobody accesses them until they are populated again.
    unsafe fn release(&self, first: NonNull<u8>, pages: usize) -> usize;

    /// Puts memory, zeroed, behind pages that were released (`XENMEM_populate_physmap`). Answers
    /// how many of them, counted from the first, are memory again.
    ///
    /// # Safety
    /// Each of the pages was released, and has not been populated since.
    unsafe fn populate(&self, first: NonNull<u8>, pages: usize) -> usize;
}
