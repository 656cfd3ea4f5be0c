//! The ways to a frontend's pages: mapped for a request, mapped persistently, or copied by the
//! hypervisor.

mod mapped;
mod sweep;

pub use sweep::{Executed, Queueing, Sweep};

use super::bounce::Bounce;
use super::cost_model::{CostModel, Method};
use super::indirect::{DescriptorRange, Descriptors, IndirectFault, MOST_DESCRIPTOR_PAGES};
use super::mappings::Mappings;
use super::options::DataPath;
use super::pages::{Hold, InflightPages, Page, Pages};
use super::stats::QueueStats;
use alloc::sync::Arc;
use bulkhead_grant::{
    CopyBatch, Direction, GrantAccess, GrantedBytes, NoRoom, PersistentCache, Region,
};
use bulkhead_images::IoSegment;
use bulkhead_ring::blkif::Indirect;
use bulkhead_xen::{DmaMemory, DomId, GrantStatus, Hypervisor, Instant};
use core::ptr::NonNull;

/// The most pages that stay mapped for a frontend with persistent grants: all that Linux's frontend has in use
/// with a ring of one page, 32 indirect requests of 32 segments and a descriptor page each.
pub const MOST_PERSISTENT: usize = 32 * (32 + 1);
/// The most of them that are mapped, unmapped or exchanged in one hypercall, or two.
const EXCHANGED: usize = 128;
/// The most segments of indirect requests that one sweep fetches, if no request alone has more.
const FETCHED: usize = 352;
/// The number of sweeps for which pages are copied where possible, after Xen had no map slots.
const COPIED_INSTEAD: u32 = 64;
/// The most pages of address space that a queue takes for data.
pub const MOST_ADDRESS_SPACE: usize = MOST_PERSISTENT + EXCHANGED;

/// A queue's ways to the pages of its frontend.
pub struct PageAccess<H: Hypervisor> {
    mappings: Mappings<H>,
    descriptors: Descriptors,
    /// The way that is left where Xen has no map slots.
    pub(super) bounce: Bounce<H>,
    /// The number of further sweeps that do not try to map.
    slotless: u32,
    cost_model: CostModel,
}

/// The facts that decide over the ways to a frontend's pages.
pub struct Paths {
    /// The domain that grants the pages.
    pub frontend: DomId,
    /// True if the frontend keeps them granted.
    pub persistent: bool,
    /// The operator's choice.
    pub data_path: DataPath,
    /// True if the device has memory in which the hypervisor's copy is the whole operation.
    pub has_memory: bool,
    /// The device's sectors, in bytes.
    pub sector_size: usize,
    /// The bus addresses of own memory, if the device reads and writes pages by bus address.
    pub dma: Option<Arc<dyn DmaMemory>>,
}

impl<H: Hypervisor> PageAccess<H> {
    /// Creates one for requests of up to `pages` pages together, of which one request has up to `largest`.
    pub fn new(
        hypervisor: &H,
        region: &Region<H>,
        setup: Paths,
        pages: usize,
        largest: usize,
    ) -> Result<Self, NoRoom> {
        let frontend = setup.frontend;
        let batch = |capacity| CopyBatch::new(hypervisor.clone(), frontend, capacity);
        let mappings = if setup.persistent {
            let mut cache = PersistentCache::new(region, frontend, MOST_PERSISTENT, EXCHANGED)?;
            if setup.dma.is_some() {
                cache.keep_dma_addrs()?;
            }
            Mappings::Persistent(cache)
        } else if setup.dma.is_some() && setup.data_path != DataPath::Map {
            Mappings::ForDevice {
                pool: region.device_pool(frontend, pages)?,
                descriptors: batch(MOST_DESCRIPTOR_PAGES * 2)?,
            }
        } else {
            let mut map_pool = region.map_pool(frontend, pages)?;
            if setup.dma.is_some() {
                map_pool.keep_dma_addrs()?;
            }
            Mappings::PerRequest {
                map_pool,
                // Where our end of a copy does not lie at a page's start it takes two. Requests
                // that find no room here are mapped.
                copies: batch(pages)?,
                descriptors: batch(MOST_DESCRIPTOR_PAGES * 2)?,
            }
        };
        Ok(PageAccess {
            mappings,
            descriptors: Descriptors::new(pages.min(FETCHED).max(largest))?,
            bounce: Bounce::new(hypervisor, setup.dma, frontend, setup.sector_size)?,
            slotless: 0,
            // Only a device with memory to copy from or to leaves a choice.
            cost_model: CostModel::new(match setup.data_path {
                _ if !setup.has_memory => Some(Method::Map),
                DataPath::Map | DataPath::Persistent => Some(Method::Map),
                DataPath::Copy => Some(Method::Copy),
                DataPath::Auto => None,
            }),
        })
    }

    /// Returns the number of pages that can be mapped at once. A page that Xen did not unmap is lost.
    pub fn room(&self) -> usize {
        match &self.mappings {
            Mappings::Persistent(_) => MOST_PERSISTENT - MOST_DESCRIPTOR_PAGES,
            Mappings::PerRequest { map_pool, .. } => map_pool.free_pages(),
            Mappings::ForDevice { pool, .. } => pool.free_pages(),
        }
    }

    /// Decides how the pages of a sweep are reached. `now` is called only if the cost of the sweep is to be
    /// measured.
    #[inline]
    pub fn begin(&mut self, pages: usize, now: impl FnOnce() -> Instant) -> Sweep<Queueing> {
        if pages == 0 || self.needs_no_calls() {
            return Sweep::new(Method::Map, pages, None);
        }
        if self.slotless > 0 {
            self.slotless -= 1;
            return Sweep::new(Method::Copy, pages, None);
        }
        let began = self.cost_model.is_free().then(now);
        Sweep::new(self.cost_model.pick(pages), pages, began)
    }

    /// Returns whether the pages are reached without asking the hypervisor, as a rule.
    pub fn needs_no_calls(&self) -> bool {
        matches!(self.mappings, Mappings::Persistent(_))
    }

    /// Notes the descriptor pages of an indirect request to be fetched; `None` if this sweep has no room.
    pub fn queue_descriptors(&mut self, indirect: &Indirect) -> Option<DescriptorRange> {
        self.descriptors.queue(&mut self.mappings, indirect)
    }

    /// Fetches all descriptor pages noted: at most one hypercall.
    pub fn fetch_descriptors(&mut self) {
        self.descriptors.fetch(&mut self.mappings, &mut self.bounce);
    }

    /// Reads the segments of an indirect request into `pages`, and returns the number of their bytes.
    pub fn read_descriptors(
        &self,
        place: DescriptorRange,
        pool: &mut InflightPages,
        pages: &mut Pages,
    ) -> Result<usize, IndirectFault> {
        self.descriptors.read(&self.mappings, place, pool, pages)
    }

    /// Forgets the descriptor pages of this sweep.
    pub fn clear_descriptors(&mut self) {
        self.descriptors.clear(&mut self.mappings);
    }

    /// Notes all pages of a request to be copied from or to `memory`. Returns false if that is not possible:
    /// then they are to be mapped.
    ///
    /// # Safety
    /// `memory` is the device's own, has as many bytes as the pages together, and stays until
    /// [`execute`](Self::execute) returns.
    pub unsafe fn queue_copies(
        &mut self,
        _: &Sweep<Queueing>,
        pool: &mut InflightPages,
        pages: &Pages,
        direction: Direction,
        memory: NonNull<u8>,
    ) -> bool {
        let Mappings::PerRequest { copies, .. } = &mut self.mappings else {
            return false;
        };
        let (mut done, mut all) = (0, true);
        pool.for_each(pages, |page| {
            let (offset, len) = (page.offset(), page.len());
            let granted = GrantedBytes {
                gref: page.gref,
                offset,
                len,
            };
            // SAFETY: within the memory, as the caller promises.
            let copied = unsafe { copies.queue(direction, granted, memory.add(done)) };
            done += len;
            match copied {
                Ok(copied) => page.hold = Hold::Copied(copied),
                Err(_) => all = false,
            }
        });
        all
    }

    /// Notes all pages of a request to be mapped.
    pub fn queue_maps(
        &mut self,
        _: &Sweep<Queueing>,
        pool: &mut InflightPages,
        pages: &Pages,
        access: GrantAccess,
    ) {
        // A page that finds no room stays unreached, and is copied later.
        match &mut self.mappings {
            Mappings::Persistent(cache) => pool.for_each(pages, |page| {
                let kept = cache.hold(page.gref, access);
                page.hold = kept.map_or(Hold::None, Hold::Kept);
            }),
            Mappings::PerRequest { map_pool, .. } => pool.for_each(pages, |page| {
                let mapped = map_pool.queue_map(page.gref, access);
                page.hold = mapped.map_or(Hold::None, Hold::Mapped);
            }),
            Mappings::ForDevice { pool: device, .. } => pool.for_each(pages, |page| {
                let mapped = device.queue_map(page.gref, access);
                page.hold = mapped.map_or(Hold::None, Hold::ForDevice);
            }),
        }
    }

    /// Maps and copies everything noted: one hypercall each, where there is anything.
    pub fn execute(&mut self, sweep: Sweep<Queueing>) -> Sweep<Executed> {
        let Sweep {
            method,
            pages,
            mut began,
            asked,
            ..
        } = sweep;
        let slotless = match &mut self.mappings {
            Mappings::Persistent(cache) => {
                cache.map_queued();
                0
            }
            Mappings::PerRequest {
                map_pool, copies, ..
            } => {
                map_pool.map_queued();
                copies.run();
                map_pool.take_slotless()
            }
            Mappings::ForDevice { pool, .. } => {
                pool.map_queued();
                pool.take_slotless()
            }
        };
        if slotless > 0 {
            self.slotless = COPIED_INSTEAD;
            // The time that this took says nothing.
            began = None;
        }
        Sweep {
            asked,
            ..Sweep::new(method, pages, began)
        }
    }

    /// Returns a mapped page, which has an address in this domain, in the form in which the device gets it; or the
    /// reason why it is not mapped.
    // Two callers are enough for the compiler to make it a call, which costs 21 instructions for each page.
    #[inline(always)]
    pub fn segment(&self, page: &Page) -> Result<IoSegment, GrantStatus> {
        let (address, dma) = match (&self.mappings, &page.hold) {
            (Mappings::PerRequest { map_pool, .. }, Hold::Mapped(mapping)) => {
                (map_pool.address(mapping)?, map_pool.dma_addr(mapping))
            }
            (Mappings::Persistent(cache), Hold::Kept(cached)) => {
                (cache.address(cached)?, cache.dma_addr(cached))
            }
            _ => return Err(GrantStatus::NO_SPACE),
        };
        // A segment lies within its page, as its parser checked, so the sum is within the page.
        let address = address.map_addr(|address| address.saturating_add(page.offset()));
        let dma = dma.map(|first| first.offset(page.offset()));
        // SAFETY: the page stays mapped, writable where the request reads, until `release` gives
        // it up after the device has told the completion; and `Queue` drops the device's queue
        // before this. Nothing refers to guests' pages.
        Ok(unsafe { IoSegment::new(address, page.len(), dma) })
    }

    /// Returns the address of the bytes of a page that stays mapped from one request to the next; `None` if it is not
    /// mapped, or for its request alone.
    #[inline]
    pub fn kept_address(&self, page: &Page) -> Option<NonNull<u8>> {
        let (Mappings::Persistent(cache), Hold::Kept(cached)) = (&self.mappings, &page.hold) else {
            return None;
        };
        let address = cache.address(cached).ok()?;
        // As for `segment`.
        Some(address.map_addr(|address| address.saturating_add(page.offset())))
    }

    /// Returns whether pages are mapped for the device alone, so that [`segment_for_device`](Self::segment_for_device)
    /// returns them.
    #[inline]
    pub fn is_for_device(&self) -> bool {
        matches!(self.mappings, Mappings::ForDevice { .. })
    }

    /// Returns a page that is mapped for the device alone, or the reason why it is not mapped.
    // In one function with the other ways, these take 8 more instructions for each page.
    #[inline(never)]
    pub fn segment_for_device(&self, page: &Page) -> Result<IoSegment, GrantStatus> {
        let (Mappings::ForDevice { pool, .. }, Hold::ForDevice(mapping)) =
            (&self.mappings, &page.hold)
        else {
            return Err(GrantStatus::NO_SPACE);
        };
        // A segment lies within its page, as its parser checked.
        let dma = pool.dma_addr(mapping)?.offset(page.offset());
        // SAFETY: as of those that have an address, too.
        Ok(unsafe { IoSegment::for_device(dma, page.len()) })
    }

    /// Returns the outcome of a request's copies; `None` if it was not copied.
    #[inline]
    pub fn copied(
        &self,
        _: &Sweep<Executed>,
        pool: &InflightPages,
        pages: &Pages,
    ) -> Option<Result<(), GrantStatus>> {
        let Mappings::PerRequest { copies, .. } = &self.mappings else {
            return None;
        };
        let mut any = false;
        for page in pool.iter(pages) {
            let Hold::Copied(copied) = &page.hold else {
                return None;
            };
            any = true;
            if let Err(status) = copies.status(copied) {
                return Some(Err(status));
            }
        }
        any.then_some(Ok(()))
    }

    /// Gives up the hold on a page. It is unmapped by the next [`unmap`](Self::unmap) if it was mapped for its request
    /// alone.
    #[inline(always)]
    pub fn release(&mut self, hold: Hold) {
        match (&mut self.mappings, hold) {
            (Mappings::PerRequest { map_pool, .. }, Hold::Mapped(mapping)) => {
                map_pool.queue_unmap(mapping)
            }
            (Mappings::Persistent(cache), Hold::Kept(cached)) => cache.release(cached),
            (Mappings::ForDevice { pool, .. }, Hold::ForDevice(mapping)) => {
                pool.queue_unmap(mapping)
            }
            _ => {}
        }
    }

    /// Unmaps the pages that were given up: one hypercall, if there are any.
    pub fn unmap(&mut self) {
        match &mut self.mappings {
            Mappings::PerRequest { map_pool, .. } => map_pool.unmap_queued(),
            Mappings::Persistent(cache) => cache.trim(),
            Mappings::ForDevice { pool, .. } => {
                pool.unmap_queued();
            }
        }
    }

    /// Ends a sweep, once the outcome of its copies is known, and learns what it has cost.
    pub fn finish(&mut self, sweep: Sweep<Executed>, now: impl FnOnce() -> Instant) {
        let Mappings::PerRequest { copies, .. } = &mut self.mappings else {
            return;
        };
        let nothing_copied = copies.is_empty();
        copies.clear();
        let Some(began) = sweep.began else {
            return;
        };
        // No page was copied, so the time says nothing of copies. If the device was not asked for its memory,
        // as for a flush with data, that no page was copied says nothing either.
        if sweep.method == Method::Copy && nothing_copied {
            if sweep.asked {
                self.cost_model.rule_out(Method::Copy, sweep.pages);
            }
            return;
        }
        self.cost_model
            .learn(sweep.method, sweep.pages, now().since(began));
    }

    /// Writes the counts of hypercalls to `stats`. `staged` are the calls and the bytes of copies that `submit`
    /// has made.
    pub fn count(&self, stats: &QueueStats, staged: (u64, u64)) {
        let (calls, copies) = match &self.mappings {
            Mappings::Persistent(cache) => {
                stats.persistent_misses.set(cache.misses());
                (cache.calls(), (0, 0))
            }
            Mappings::PerRequest {
                map_pool,
                copies,
                descriptors,
            } => (
                map_pool.calls(),
                (
                    copies.calls() + descriptors.calls(),
                    copies.bytes() + descriptors.bytes(),
                ),
            ),
            Mappings::ForDevice { pool, descriptors } => {
                stats.device_maps.set(pool.calls().pages);
                (pool.calls(), (descriptors.calls(), descriptors.bytes()))
            }
        };
        let bounced = self.bounce.copied();
        stats.map_calls.set(calls.maps);
        stats.maps.set(calls.pages);
        stats.unmap_calls.set(calls.unmaps);
        stats.copy_calls.set(copies.0 + bounced.0 + staged.0);
        stats.bytes_copied.set(copies.1 + bounced.1 + staged.1);
    }
}
