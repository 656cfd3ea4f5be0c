//! The domain's memory and its addresses: written once at boot.

use super::image;
use super::layout::{AddressSpace, Ranges};
use super::p2m::P2m;
use crate::vcpu;
use bulkhead_xen::{DmaAddr, Gfn, PAGE_SIZE};
use core::ops::Range;
use spin::Once;

/// The layout of the domain's memory, which does not change after boot.
pub struct MemoryMap {
    /// The domain's memory.
    pub ram: Ranges,
    /// The addresses above it.
    pub space: AddressSpace,
    /// PV: the list of machine frames by page frame number.
    pub p2m: Option<P2m>,
}

static MAP: Once<MemoryMap> = Once::new();

/// Makes this the domain's map. Only the first call has an effect.
pub fn set(map: MemoryMap) {
    MAP.call_once(|| map);
}

/// Returns the domain's map.
///
/// # Panics
/// Before boot has set it.
pub fn get() -> &'static MemoryMap {
    MAP.get().expect("memory is not set up yet")
}

/// Returns whether `len` bytes from `address` are memory that can be read.
pub fn is_memory(address: u64, len: u64) -> bool {
    let page = PAGE_SIZE as u64;
    let Some(end) = address.checked_add(len) else {
        return false;
    };
    // Before the memory map is known, the first stack is all there is.
    let stack = image::boot_stack();
    if address >= stack.start && end <= stack.end {
        return true;
    }
    let is_guard = |guard: Range<u64>| address < guard.end && end > guard.start;
    MAP.get().is_some_and(|map| {
        address >= page
            && !vcpu::all().any(|vcpu| is_guard(vcpu.guard()))
            && map
                .ram
                .iter()
                .any(|range| address >= range.start * page && end <= range.end * page)
    })
}

/// Returns the page frame that holds a byte of the domain's memory.
pub fn page_frame(byte: *const u8) -> Option<u64> {
    let pfn = byte as u64 / PAGE_SIZE as u64;
    let ours = get().ram.iter().any(|range| range.contains(&pfn));
    ours.then_some(pfn)
}

/// Returns the frame behind a page of the domain's memory.
pub fn frame_of(page: *const u8) -> Option<Gfn> {
    let pfn = page_frame(page)?;
    match &get().p2m {
        None => Some(Gfn(pfn)),
        Some(p2m) => p2m.machine_frame(pfn).map(Gfn::from),
    }
}

/// Returns the bus address of a byte of the domain's memory. `None` in a PVH domain, which does not know any.
pub fn dma_addr(byte: *const u8) -> Option<DmaAddr> {
    let frame = get().p2m.as_ref()?.machine_frame(page_frame(byte)?)?;
    Some(frame.dma_addr()?.offset(byte as usize % PAGE_SIZE))
}
