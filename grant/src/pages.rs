//! Granted pages mapped next to each other for as long as their owner lives: a ring.

use crate::GrantAccess;
use crate::map_pool::MapPool;
use crate::memory::{OutOfMemory, room_for};
use crate::region::PageRange;
use bulkhead_xen::{DomId, GrantRef, GrantStatus, Hypervisor};
use core::ptr::NonNull;

/// Contiguous foreign pages, readable and writable. Dropping this unmaps them.
#[derive(Debug)]
pub struct MappedPages<H: Hypervisor> {
    /// As large as there are pages, and never touched again: its drop unmaps them.
    pool: MapPool<H>,
    base: NonNull<u8>,
    pages: usize,
}

impl<H: Hypervisor> MappedPages<H> {
    /// Maps all pages in one hypercall. If one is refused, maps none and returns the first refusal.
    pub(crate) fn map(
        hypervisor: H,
        domain: DomId,
        range: PageRange,
        grefs: &[GrantRef],
    ) -> Result<Result<Self, (GrantRef, GrantStatus)>, OutOfMemory> {
        let base = range.page(0);
        let mut pool = MapPool::new(hypervisor, domain, range, grefs.len())?;
        let mut mappings = room_for(grefs.len())?;
        for &gref in grefs {
            let mapping = pool.queue_map(gref, GrantAccess::ReadWrite);
            mappings.push(mapping.expect("the pool has a page for each grant"));
        }
        pool.map_queued();
        for (index, (mapping, &gref)) in mappings.iter().zip(grefs).enumerate() {
            match pool.address(mapping) {
                Ok(page) => assert_eq!(page, pool.page(index), "a new pool fills from its start"),
                Err(status) => return Ok(Err((gref, status))),
            }
        }
        Ok(Ok(MappedPages {
            pool,
            base,
            pages: grefs.len(),
        }))
    }

    /// Returns the first page's address.
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Returns the number of pages.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Returns the domain that grants them.
    pub fn domain(&self) -> DomId {
        self.pool.domain()
    }
}
