//! Granted pages mapped next to each other for as long as their owner lives: a ring.

use crate::region::Place;
use crate::{Access, EAGAIN_TRIES};
use alloc::vec::Vec;
use bulkhead_xen::abi::grant_table::{MapGrantRef, UnmapGrantRef};
use bulkhead_xen::{DomId, GrantHandle, GrantRef, GrantStatus, Hypervisor};
use core::ptr::NonNull;

/// Contiguous foreign pages, readable and writable. Dropping this unmaps them.
pub struct MappedPages<H: Hypervisor> {
    door: H,
    place: Place,
    handles: Vec<GrantHandle>,
}

impl<H: Hypervisor> MappedPages<H> {
    /// Maps all of them, or none and names the first that is refused.
    pub(crate) fn map(
        door: H,
        domain: DomId,
        place: Place,
        grefs: &[GrantRef],
    ) -> Result<Self, (GrantRef, GrantStatus)> {
        let mut pages = MappedPages {
            door,
            place,
            handles: Vec::with_capacity(grefs.len()),
        };
        for (number, &gref) in grefs.iter().enumerate() {
            let address = pages.address_of(number);
            let request = MapGrantRef::new(address, Access::ReadWrite.flags(), gref, domain);
            // What is mapped already is unmapped by the drop.
            pages
                .handles
                .push(map_one(&pages.door, request).map_err(|status| (gref, status))?);
        }
        Ok(pages)
    }

    /// The first page's address.
    pub fn base(&self) -> NonNull<u8> {
        self.place.page(0)
    }

    /// How many pages there are.
    pub fn pages(&self) -> usize {
        self.handles.len()
    }

    fn address_of(&self, number: usize) -> u64 {
        self.place.page(number).addr().get() as u64
    }
}

/// Connecting a disk maps a handful of pages once: batches would save nothing that shows.
fn map_one<H: Hypervisor>(door: &H, request: MapGrantRef) -> Result<GrantHandle, GrantStatus> {
    let mut status = GrantStatus::EAGAIN;
    for _ in 0..EAGAIN_TRIES {
        let mut batch = [request];
        // SAFETY: the address is a page of a place of ours where nothing is mapped yet.
        unsafe { door.map_grants(&mut batch) }.map_err(|_| GrantStatus::GENERAL_ERROR)?;
        status = batch[0].status;
        if status.is_okay() {
            return Ok(batch[0].handle);
        }
        if status != GrantStatus::EAGAIN {
            break;
        }
    }
    Err(status)
}

impl<H: Hypervisor> Drop for MappedPages<H> {
    fn drop(&mut self) {
        let mut batch: Vec<_> = self
            .handles
            .iter()
            .enumerate()
            .map(|(number, &handle)| UnmapGrantRef::new(self.address_of(number), handle))
            .collect();
        if batch.is_empty() {
            return;
        }
        // SAFETY: the owner is being dropped, so nobody uses the pages any more.
        let outcome = unsafe { self.door.unmap_grants(&mut batch) };
        for unmap in batch {
            if outcome.is_err() || !unmap.status.is_okay() {
                log::error!(
                    "unmapping a ring's page: {}; its address stays out of use",
                    unmap.status
                );
                self.place.abandon();
            }
        }
    }
}
