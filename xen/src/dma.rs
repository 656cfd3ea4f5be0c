//! The domain's own memory as its devices see it.

use crate::DmaAddr;

/// The addresses at which devices that were given to this domain find its memory.
///
/// Only PV domains have devices on x86 (libxl refuses them to PVH domains), and there a page's bus address
/// is its machine address, which is unrelated to the address at which the domain sees it.
///
/// # Safety
/// An implementer promises that a device which reads or writes at an address that it returned, in the same
/// page, reaches that very page, for as long as the page is this domain's.
pub unsafe trait DmaMemory: Send + Sync {
    /// Returns the bus address of a byte of this domain's own memory. `None` if it is not own memory (a
    /// mapped foreign page, for instance), or if the domain can have no devices.
    ///
    /// Devices reach a page that is mapped writable, and no other (`_get_page_type`): no code, no constant. The
    /// owner of the page keeps it as long as a device may access it. Only free pages are given back to Xen by
    /// the [`Balloon`](crate::Balloon).
    fn dma_addr(&self, byte: *const u8) -> Option<DmaAddr>;
}
