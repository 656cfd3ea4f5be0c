//! The bus addresses of the domain's own memory.

use crate::DmaAddr;

/// The bus addresses by which devices that were given to this domain reach its memory.
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
    /// Devices reach only pages that are mapped writable (`_get_page_type`, Xen's arch/x86/mm.c), so neither code nor
    /// constants. The owner of a page does not free it as long as a device may access it, and the
    /// [`Balloon`](crate::Balloon) gives only free pages back to Xen.
    fn dma_addr(&self, byte: *const u8) -> Option<DmaAddr>;
}
