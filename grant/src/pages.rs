//! Granted pages mapped next to each other for as long as their owner lives: a ring.

use crate::Access;
use crate::memory::{OutOfMemory, room_for};
use crate::region::Place;
use crate::window::Window;
use bulkhead_xen::{DomId, GrantRef, GrantStatus, Hypervisor};
use core::ptr::NonNull;

/// Contiguous foreign pages, readable and writable. Dropping this unmaps them.
#[derive(Debug)]
pub struct MappedPages<H: Hypervisor> {
    /// As large as there are pages, and never touched again: its drop unmaps them.
    window: Window<H>,
    base: NonNull<u8>,
    pages: usize,
}

impl<H: Hypervisor> MappedPages<H> {
    /// Maps all of them in one hypercall, or none and names the first that is refused.
    pub(crate) fn map(
        hypervisor: H,
        domain: DomId,
        place: Place,
        grefs: &[GrantRef],
    ) -> Result<Result<Self, (GrantRef, GrantStatus)>, OutOfMemory> {
        let base = place.page(0);
        let mut window = Window::new(hypervisor, domain, place, grefs.len())?;
        let mut slots = room_for(grefs.len())?;
        for &gref in grefs {
            let slot = window.queue_map(gref, Access::ReadWrite);
            slots.push(slot.expect("the window has a page for each grant"));
        }
        window.map_queued();
        for (index, (slot, &gref)) in slots.iter().zip(grefs).enumerate() {
            match window.address(slot) {
                Ok(page) => assert_eq!(
                    page,
                    window.page(index),
                    "a new window fills from its start"
                ),
                Err(status) => return Ok(Err((gref, status))),
            }
        }
        Ok(Ok(MappedPages {
            window,
            base,
            pages: grefs.len(),
        }))
    }

    /// The first page's address.
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// How many pages there are.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// The domain that grants them.
    pub fn domain(&self) -> DomId {
        self.window.domain()
    }
}
