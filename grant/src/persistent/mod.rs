//! Granted pages that stay mapped from one request to the next (`feature-persistent`, io/blkif.h).
//!
//! A frontend that uses the same grants over and over costs no hypercall for them once they are
//! mapped. The number of mapped pages is bounded: beyond that, a page is unmapped that no request
//! holds: the one that became idle first, and was not used since. A frontend may cycle through more
//! grants than fit: then each sweep maps and unmaps in one hypercall each, as without persistence.

mod entries;

use crate::map_pool::{Calls, MapPool, Mapping};
use crate::memory::{OutOfMemory, room_for};
use crate::{GrantAccess, NoRoom, Region};
use alloc::vec::Vec;
use bulkhead_xen::{DmaAddr, DomId, GrantRef, GrantStatus, Hypervisor};
use core::fmt;
use core::ptr::NonNull;
use entries::{Entries, MAPPED, MOST_ENTRIES, READ_ONLY, REVISITED};

/// A queue's persistently mapped pages. All memory it needs is taken when it is made.
pub struct PersistentCache<H: Hypervisor> {
    pool: MapPool<H>,
    entries: Entries,
    cached: usize,
    /// The number of pages that stay mapped: fewer than there is room for if Xen has not that many map
    /// slots. It is raised now and then, to find out whether Xen has more again.
    most: usize,
    /// The number of pages that were unmapped for that since it was last raised.
    held_down: u32,
    /// Entries that this sweep maps writable for requests that only need to read.
    try_writable: Vec<u16>,
    hits: u64,
    misses: u64,
}

/// After this many pages that were unmapped for want of map slots, the limit is raised by one.
const TRY_AGAIN: u32 = 64;

/// The right to use a cached page, from [`PersistentCache::hold`] to
/// [`PersistentCache::release`]. It stays mapped that long.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a page that is never released can never make room for another"]
pub struct CachedMapping {
    entry: u16,
    access: GrantAccess,
}

/// Every page of the cache is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheFull;

impl fmt::Display for CacheFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("all persistently mapped pages are in use")
    }
}

impl core::error::Error for CacheFull {}

impl<H: Hypervisor> PersistentCache<H> {
    /// Makes an empty cache for up to `capacity` pages that `domain` grants. It takes room for `sweep`
    /// pages more, so that `sweep` old pages can be exchanged for new ones in two hypercalls. One
    /// hypercall maps or unmaps up to `sweep` pages.
    ///
    /// # Panics
    /// If `capacity` is 0 or more than 65,535, or if `sweep` is 0.
    pub fn new(
        region: &Region<H>,
        domain: DomId,
        capacity: usize,
        sweep: usize,
    ) -> Result<Self, NoRoom> {
        assert!((1..=MOST_ENTRIES).contains(&capacity), "{capacity} pages");
        assert!(sweep > 0, "no page at a time");
        Ok(PersistentCache {
            pool: region.map_pool_in_batches(domain, capacity + sweep, sweep)?,
            entries: Entries::new(capacity)?,
            cached: 0,
            most: capacity,
            held_down: 0,
            try_writable: room_for(sweep)?,
            hits: 0,
            misses: 0,
        })
    }

    /// Keeps the pages' bus addresses from now on ([`dma_addr`](Self::dma_addr)), which takes memory.
    pub fn keep_dma_addrs(&mut self) -> Result<(), OutOfMemory> {
        self.pool.keep_dma_addrs()
    }

    /// Returns the number of cached pages.
    pub fn len(&self) -> usize {
        self.cached
    }

    /// Returns whether no page is cached.
    pub fn is_empty(&self) -> bool {
        self.cached == 0
    }

    /// Returns the number of holds of pages that were mapped already.
    pub fn hits(&self) -> u64 {
        self.hits
    }

    /// Returns the number of holds of pages that had to be mapped first.
    pub fn misses(&self) -> u64 {
        self.misses
    }

    /// Returns counts of the hypercalls made so far.
    pub fn calls(&self) -> Calls {
        self.pool.calls()
    }

    /// Holds a page of the frontend for a request. If it is not cached, the next
    /// [`map_queued`](Self::map_queued) maps it; if need be, a page that no request holds
    /// is unmapped for it: the one that became idle first, and was not used since.
    #[inline]
    pub fn hold(
        &mut self,
        gref: GrantRef,
        access: GrantAccess,
    ) -> Result<CachedMapping, CacheFull> {
        if let Some(at) = self.entries.find(gref) {
            let entry = &mut self.entries[at];
            let fits = access == GrantAccess::ReadOnly || !entry.is_read_only();
            if fits && entry.has_room() {
                entry.uses = (entry.uses | REVISITED) + 1;
                self.hits += 1;
                return Ok(CachedMapping { entry: at, access });
            }
        }
        self.hold_anew(gref, access)
    }

    /// Does the same for a page that is not cached, or perhaps not as it is wanted.
    #[cold]
    #[inline(never)]
    fn hold_anew(
        &mut self,
        gref: GrantRef,
        access: GrantAccess,
    ) -> Result<CachedMapping, CacheFull> {
        let at = match self.entries.find(gref) {
            // Mapped for reading while another request reads: this one is told when it asks for the address.
            Some(at) if self.entries[at].is_held() => {
                self.hits += 1;
                at
            }
            known => {
                if let Some(at) = known {
                    self.discard(at);
                }
                self.insert(gref, access)?
            }
        };
        let entry = &mut self.entries[at];
        if !entry.has_room() {
            return Err(CacheFull);
        }
        entry.uses += 1;
        Ok(CachedMapping { entry: at, access })
    }

    /// Returns where a page is mapped, and where devices find it, if it is mapped already so that `access` is
    /// possible. It stays so until the cache is used the next time: enough for a request that is done at
    /// once, and for [`hold`](Self::hold) to find it if the request is not.
    // Most requests have one page: inlined into a loop over pages, more is prepared than is used.
    #[inline(never)]
    pub fn revisit(
        &mut self,
        gref: GrantRef,
        access: GrantAccess,
    ) -> Option<(NonNull<u8>, Option<DmaAddr>)> {
        let at = self.entries.find(gref)?;
        let entry = &mut self.entries[at];
        if access == GrantAccess::ReadWrite && entry.is_read_only() {
            return None;
        }
        let found = self.pool.find(entry.mapping.as_ref()?)?;
        entry.uses |= REVISITED;
        Some(found)
    }

    /// Counts pages that were [revisited](Self::revisit) and not held.
    #[inline]
    pub fn count_hits(&mut self, pages: usize) {
        self.hits += pages as u64;
    }

    fn insert(&mut self, gref: GrantRef, access: GrantAccess) -> Result<u16, CacheFull> {
        if self.try_writable.len() == self.try_writable.capacity() {
            self.map_queued();
        }
        if self.cached >= self.most
            && let Some(oldest) = self.entries.oldest_idle()
        {
            self.discard(oldest);
            self.try_for_more();
        }
        if self.entries.are_full() {
            return Err(CacheFull);
        }
        if self.pool.free_pages() == 0 {
            self.pool.unmap_queued();
        }
        // A frontend allows writing to all its persistent grants (io/blkif.h, note 8), so later
        // requests that write need no other mapping.
        let mapping = self.pool.queue_map(gref, GrantAccess::ReadWrite);
        let mapping = mapping.map_err(|_| CacheFull)?;
        let at = self.entries.insert(gref, mapping);
        self.cached += 1;
        if access == GrantAccess::ReadOnly {
            self.try_writable.push(at);
        }
        self.misses += 1;
        Ok(at)
    }

    /// Maps all pages that were held anew: one hypercall, and one before it if others had to make
    /// room. Pages that may not be written are mapped for reading by one more, if reading is all
    /// that was asked for.
    pub fn map_queued(&mut self) {
        self.pool.unmap_queued();
        self.pool.map_queued();
        let slotless = self.pool.take_slotless();
        if slotless > 0 {
            self.make_do_without(slotless);
        }
        for at in 0..self.try_writable.len() {
            let entry = &mut self.entries[self.try_writable[at]];
            let Some(mapping) = &entry.mapping else {
                continue;
            };
            // Xen's status if the grant is read-only, among other reasons.
            if self.pool.address(mapping) == Err(GrantStatus::GENERAL_ERROR)
                && let Some(mapping) = entry.mapping.take()
            {
                self.pool.queue_unmap(mapping);
                entry.uses |= READ_ONLY;
                entry.mapping = self.pool.queue_map(entry.gref, GrantAccess::ReadOnly).ok();
            }
        }
        self.try_writable.clear();
        self.pool.map_queued();
    }

    /// Makes room after Xen had no map slots for `slotless` pages. Pages that no request holds are unmapped
    /// for them, and for other queues, which share Xen's slots: a quarter of the mapped pages is given up for
    /// those queues.
    #[cold]
    fn make_do_without(&mut self, slotless: usize) {
        let mapped = self.cached.saturating_sub(slotless);
        self.most = (mapped - mapped / 4).max(1);
        self.held_down = 0;
        self.trim();
        for at in self.entries.numbers() {
            let entry = &mut self.entries[at];
            let refused =
                |mapping: &Mapping| self.pool.address(mapping) == Err(GrantStatus::NO_SPACE);
            if entry.mapping.as_ref().is_some_and(refused)
                && let Some(mapping) = entry.mapping.take()
            {
                self.pool.queue_unmap(mapping);
                let access = match entry.is_read_only() {
                    true => GrantAccess::ReadOnly,
                    false => GrantAccess::ReadWrite,
                };
                entry.mapping = self.pool.queue_map(entry.gref, access).ok();
            }
        }
        self.pool.map_queued();
        // A page that finds no slot now either is copied, and mapped when it is used next.
        self.pool.take_slotless();
    }

    /// Unmaps pages that no request holds, down to the limit. Where Xen has few map slots, requests use more
    /// than that for a while.
    #[inline]
    pub fn trim(&mut self) {
        if self.cached > self.most {
            self.discard_down_to(self.most);
        }
    }

    #[cold]
    fn discard_down_to(&mut self, most: usize) {
        while self.cached > most
            && let Some(oldest) = self.entries.oldest_idle()
        {
            self.discard(oldest);
        }
        self.pool.unmap_queued();
    }

    /// Raises the limit now and then, after pages were unmapped although there was room in the cache.
    fn try_for_more(&mut self) {
        if self.most < self.entries.len() {
            self.held_down += 1;
            if self.held_down.is_multiple_of(TRY_AGAIN) {
                self.most += 1;
            }
        }
    }

    /// Returns the address of a mapped page, or the reason why it is not mapped.
    #[inline]
    pub fn address(&self, cached: &CachedMapping) -> Result<NonNull<u8>, GrantStatus> {
        let entry = &self.entries[cached.entry];
        if cached.access == GrantAccess::ReadWrite && entry.is_read_only() {
            return Err(GrantStatus::GENERAL_ERROR);
        }
        let mapping = entry.mapping.as_ref().ok_or(GrantStatus::GENERAL_ERROR)?;
        match entry.uses & MAPPED > 0 {
            true => Ok(self.pool.place(mapping)),
            false => self.pool.address(mapping),
        }
    }

    /// Returns the bus address of a mapped page. `None` if the page is not mapped, or if bus addresses are
    /// not kept ([`keep_dma_addrs`](Self::keep_dma_addrs)).
    #[inline(always)]
    pub fn dma_addr(&self, cached: &CachedMapping) -> Option<DmaAddr> {
        let mapping = self.entries[cached.entry].mapping.as_ref()?;
        self.pool.dma_addr(mapping)
    }

    /// Ends the use of a page by a request. It stays mapped as long as there is room.
    #[inline]
    pub fn release(&mut self, cached: CachedMapping) {
        if !self.entries[cached.entry].end_hold() {
            self.make_idle(cached.entry);
        }
    }

    /// Notes that no request holds an entry any more.
    #[cold]
    fn make_idle(&mut self, at: u16) {
        self.entries.link(at);
        let entry = &mut self.entries[at];
        let mapping = entry.mapping.as_ref();
        match mapping.is_some_and(|mapping| self.pool.address(mapping).is_ok()) {
            true => entry.uses |= MAPPED,
            // Refused, or never mapped: the next request asks Xen again.
            false => self.discard(at),
        }
    }

    /// Leaves every page that is mapped as it is, whatever becomes of the cache: a device may still access it.
    /// Returns how many these are.
    pub fn leave_mapped(&mut self) -> usize {
        self.pool.leave_mapped()
    }

    /// Unmaps all pages that no request holds, in one hypercall.
    pub fn discard_idle(&mut self) {
        self.discard_down_to(0);
    }

    /// Removes an idle entry; its page is unmapped with the next batch.
    fn discard(&mut self, at: u16) {
        self.cached -= 1;
        if let Some(mapping) = self.entries.remove(at) {
            self.pool.queue_unmap(mapping);
        }
    }
}

impl<H: Hypervisor> fmt::Debug for PersistentCache<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PersistentCache")
            .field("cached", &self.len())
            .field("capacity", &self.entries.len())
            .field("hits", &self.hits)
            .field("misses", &self.misses)
            .finish_non_exhaustive()
    }
}
