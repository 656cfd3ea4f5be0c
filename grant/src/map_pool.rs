//! A queue's data pages: mapped and unmapped in batches, one hypercall each.

use crate::memory::{OutOfMemory, filled, room_for};
use crate::page_states::{PageState, PageStates};
use crate::region::PageRange;
use crate::{EAGAIN_TRIES, GrantAccess};
use alloc::vec::Vec;
use bulkhead_xen::abi::grant_table::{MapGrantRef, UnmapGrantRef};
use bulkhead_xen::{
    DmaAddr, DomId, Errno, GrantHandle, GrantRef, GrantStatus, Hypervisor, PAGE_SHIFT,
};
use core::fmt;
use core::num::NonZeroU32;
use core::ptr::NonNull;

/// A fixed number of pages of one frontend. All memory it needs is taken when it is made.
pub struct MapPool<H: Hypervisor> {
    hypervisor: H,
    domain: DomId,
    range: PageRange,
    /// The address of its first page.
    start: u64,
    states: PageStates,
    /// Bus addresses of the mapped pages. Empty if no device uses them.
    dma: Vec<Option<DmaAddr>>,
    /// The entries of the next hypercalls. The page of an entry follows from its address.
    maps: Vec<MapGrantRef>,
    unmaps: Vec<UnmapGrantRef>,
    /// The most entries of one hypercall.
    batch: usize,
    /// The number of pages that were not mapped for want of map slots, since
    /// [`take_slotless`](Self::take_slotless) was last called.
    slotless: usize,
    calls: Calls,
}

/// Counts of the hypercalls made so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// Hypercalls that map.
    pub maps: u64,
    /// Pages in those hypercalls.
    pub pages: u64,
    /// Hypercalls that unmap.
    pub unmaps: u64,
}

/// A page of a pool that is in use, from [`MapPool::queue_map`] to [`MapPool::queue_unmap`]. It is
/// neither copied nor made elsewhere, so a page cannot be unmapped twice or used afterwards.
///
/// A mapping that is dropped instead keeps its page until the pool is dropped, which unmaps it.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "its page is in use until it is given to `queue_unmap`"]
pub struct Mapping(
    /// The page, counted from 1 at the start of the region, so that no other pool takes it for its own.
    NonZeroU32,
);

/// The pool has no page left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapPoolFull;

impl fmt::Display for MapPoolFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("all pages of the pool are in use")
    }
}

impl core::error::Error for MapPoolFull {}

impl<H: Hypervisor> MapPool<H> {
    /// Makes a pool of these pages, which maps or unmaps up to `batch` of them in one hypercall.
    pub(crate) fn new(
        hypervisor: H,
        domain: DomId,
        range: PageRange,
        batch: usize,
    ) -> Result<Self, OutOfMemory> {
        let pages = range.pages();
        let start = if pages > 0 { range.address(0) } else { 0 };
        Ok(MapPool {
            hypervisor,
            domain,
            range,
            start,
            states: PageStates::new(pages)?,
            dma: Vec::new(),
            maps: room_for(batch)?,
            unmaps: room_for(batch)?,
            batch,
            slotless: 0,
            calls: Calls::default(),
        })
    }

    /// Keeps the pages' bus addresses from now on ([`dma_addr`](Self::dma_addr)), which takes memory.
    pub fn keep_dma_addrs(&mut self) -> Result<(), OutOfMemory> {
        self.dma = filled(self.states.len(), |_| None)?;
        Ok(())
    }

    /// The domain whose grants it maps.
    pub fn domain(&self) -> DomId {
        self.domain
    }

    /// The address of one of the pool's pages, whatever is there.
    pub(crate) fn page(&self, index: usize) -> NonNull<u8> {
        self.range.page(index)
    }

    /// Returns the number of pages that can still be queued.
    pub fn free_pages(&self) -> usize {
        self.states.free_pages()
    }

    /// Returns counts of the hypercalls made so far.
    pub fn calls(&self) -> Calls {
        self.calls
    }

    /// Returns whether no page is mapped or queued.
    pub fn is_unused(&self) -> bool {
        self.states.are_all_free()
    }

    /// The pool's page that a mapping stands for.
    ///
    /// # Panics
    /// If the mapping is another pool's.
    #[inline]
    fn index(&self, mapping: &Mapping) -> usize {
        let index = self.range.index(mapping.0.get() as usize - 1);
        index.expect("a mapping is used with the pool that gave it out")
    }

    /// The pool's page at an address that was named to Xen.
    #[inline]
    fn page_at(&self, address: u64) -> usize {
        ((address - self.start) >> PAGE_SHIFT) as usize
    }

    /// Queues a page to be mapped by the next [`map_queued`](Self::map_queued), or by this call if there
    /// are as many already as one hypercall takes.
    #[inline]
    pub fn queue_map(
        &mut self,
        gref: GrantRef,
        access: GrantAccess,
    ) -> Result<Mapping, MapPoolFull> {
        let page = self.states.take_free().ok_or(MapPoolFull)?;
        if self.maps.len() == self.batch {
            self.map_queued();
        }
        self.maps.push(MapGrantRef::new(
            self.range.address(page),
            access.flags(),
            gref,
            self.domain,
        ));
        self.states
            .set(page, PageState::unmapped(GrantStatus::GENERAL_ERROR));
        let number = NonZeroU32::MIN.saturating_add(self.range.number(page) as u32);
        Ok(Mapping(number))
    }

    /// Maps all queued pages, in one hypercall. [`address`](Self::address) returns the outcome for each.
    pub fn map_queued(&mut self) {
        for _ in 0..EAGAIN_TRIES {
            if self.maps.is_empty() {
                return;
            }
            self.calls.maps += 1;
            self.calls.pages += self.maps.len() as u64;
            // SAFETY: each address is that of a page of ours which was free, where nothing is
            // mapped.
            if let Err(error) = unsafe { self.hypervisor.map_grants(&mut self.maps) } {
                self.refuse_batch(error);
                break;
            }
            let mut again = 0;
            for entry in 0..self.maps.len() {
                let map = self.maps[entry];
                let page = self.page_at(map.host_addr);
                let state = match map.status {
                    GrantStatus::OKAY => PageState::mapped(map.handle),
                    refused => PageState::unmapped(refused),
                };
                self.states.set(page, state);
                if let Some(kept) = self.dma.get_mut(page) {
                    *kept = map.dma_addr();
                }
                if map.status == GrantStatus::EAGAIN {
                    self.maps[again] = map;
                    again += 1;
                } else if map.status == GrantStatus::NO_SPACE {
                    self.slotless += 1;
                }
            }
            self.maps.truncate(again);
        }
        self.maps.clear();
    }

    /// Returns the number of pages for which Xen had no map slot since the last call. They can be copied.
    pub fn take_slotless(&mut self) -> usize {
        core::mem::take(&mut self.slotless)
    }

    /// Records that the hypercall as a whole was refused: no entry was processed, and all pages stay
    /// unmapped.
    #[cold]
    fn refuse_batch(&mut self, error: Errno) {
        log::error!(
            "cannot map {} grants of domain {}: {error}",
            self.maps.len(),
            self.domain
        );
    }

    /// Returns the address of a mapped page, or the reason why it is not mapped.
    #[inline(always)]
    pub fn address(&self, mapping: &Mapping) -> Result<NonNull<u8>, GrantStatus> {
        let page = self.index(mapping);
        match self.states.get(page) {
            PageState::Mapped(_) => Ok(self.range.page(page)),
            PageState::Unmapped(status) => Err(GrantStatus(i16::from_ne_bytes(status))),
            PageState::Free(_) | PageState::Leaving | PageState::Stuck => {
                Err(GrantStatus::BAD_HANDLE)
            }
        }
    }

    /// Returns the address of a page of the pool that is known to be mapped.
    ///
    /// # Panics
    /// If the mapping is another pool's.
    #[inline]
    pub(crate) fn place(&self, mapping: &Mapping) -> NonNull<u8> {
        self.range.page(self.index(mapping))
    }

    /// Returns the bus address of a mapped page. `None` if the page is not mapped, or if bus addresses are
    /// not kept ([`keep_dma_addrs`](Self::keep_dma_addrs)).
    #[inline]
    pub fn dma_addr(&self, mapping: &Mapping) -> Option<DmaAddr> {
        // What was mapped there before has left its address.
        self.find(mapping)?.1
    }

    /// Returns where a page is mapped, and where devices find it if that is kept; `None` if it is not mapped.
    #[inline(always)]
    pub(crate) fn find(&self, mapping: &Mapping) -> Option<(NonNull<u8>, Option<DmaAddr>)> {
        let page = self.index(mapping);
        let mapped = matches!(self.states.get(page), PageState::Mapped(_));
        mapped.then(|| (self.range.page(page), self.dma.get(page).copied().flatten()))
    }

    /// Queues a page to be unmapped by the next [`unmap_queued`](Self::unmap_queued), or by this call if
    /// there are as many already as one hypercall takes; a page that was refused becomes free at once.
    /// The page's address is not used any more.
    #[inline]
    pub fn queue_unmap(&mut self, mapping: Mapping) {
        self.release(self.index(&mapping));
    }

    #[inline]
    fn release(&mut self, page: usize) {
        match self.states.get(page) {
            PageState::Mapped(handle) => {
                if self.unmaps.len() == self.batch {
                    self.unmap_queued();
                    if self.unmaps.len() == self.batch {
                        // Xen refuses to unmap anything: the page stays mapped until the pool is dropped.
                        return;
                    }
                }
                let address = self.range.address(page);
                let handle = GrantHandle(u32::from_ne_bytes(handle));
                self.unmaps.push(UnmapGrantRef::new(address, handle));
                self.states.set(page, PageState::Leaving);
            }
            PageState::Unmapped(_) => {
                // It may still be queued for mapping.
                let address = self.range.address(page);
                if let Some(entry) = self.maps.iter().position(|map| map.host_addr == address) {
                    self.maps.swap_remove(entry);
                }
                self.states.set_free(page);
            }
            PageState::Free(_) | PageState::Leaving | PageState::Stuck => {}
        }
    }

    /// Unmaps all queued pages, in one hypercall. If Xen refuses it as a whole, the pages stay queued for
    /// the next call.
    pub fn unmap_queued(&mut self) {
        if self.unmaps.is_empty() {
            return;
        }
        self.calls.unmaps += 1;
        // SAFETY: the pages were given up by `queue_unmap`, whose callers had finished with them.
        if let Err(error) = unsafe { self.hypervisor.unmap_grants(&mut self.unmaps) } {
            let (pages, domain) = (self.unmaps.len(), self.domain);
            log::error!("cannot unmap {pages} grants of domain {domain}: {error}");
            return;
        }
        for entry in 0..self.unmaps.len() {
            let unmap = self.unmaps[entry];
            let page = self.page_at(unmap.host_addr);
            if unmap.status.is_okay() {
                self.states.set_free(page);
            } else {
                let (status, domain) = (unmap.status, self.domain);
                log::error!(
                    "cannot unmap a grant of domain {domain}: {status}; its page of address space is lost"
                );
                self.states.set(page, PageState::Stuck);
            }
        }
        self.unmaps.clear();
    }
}

impl<H: Hypervisor> MapPool<H> {
    /// Leaves every page that is mapped as it is, whatever becomes of the pool: a device may still access it.
    /// Returns how many these are.
    pub fn leave_mapped(&mut self) -> usize {
        self.states.leave_mapped()
    }
}

impl<H: Hypervisor> Drop for MapPool<H> {
    /// Unmaps whatever is still mapped: mappings whose owners were dropped on the way.
    fn drop(&mut self) {
        for page in 0..self.states.len() {
            self.release(page);
        }
        self.unmap_queued();
        if !self.is_unused() {
            self.range.abandon();
        }
    }
}

impl<H: Hypervisor> fmt::Debug for MapPool<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MapPool")
            .field("domain", &self.domain)
            .field("pages", &self.states.len())
            .field("free", &self.free_pages())
            .finish_non_exhaustive()
    }
}
