//! The address space for foreign pages, and which parts of it are in use.

use crate::device_pool::DevicePool;
use crate::map_pool::MapPool;
use crate::memory::OutOfMemory;
use crate::pages::MappedPages;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_xen::{DomId, ForeignRegion, GrantRef, GrantStatus, Hypervisor, PAGE_SIZE};
use core::fmt;
use core::ops::Range;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU16, Ordering};
use spin::Mutex;

/// The domain's address space for foreign pages. Clones share it, from any vCPU: its lock is
/// taken when a disk connects or goes, never while it is served.
#[derive(Clone)]
pub struct Region<H> {
    hypervisor: H,
    shared: Arc<Shared>,
}

struct Shared {
    all: ForeignRegion,
    /// The number of the next pool of mappings without an address.
    next_pool: AtomicU16,
    free: Mutex<FreeRanges>,
}

impl<H: Hypervisor> Region<H> {
    /// Takes the domain's foreign region. `None` if it was taken already.
    pub fn new(hypervisor: H) -> Option<Self> {
        let all = hypervisor.foreign_region()?;
        let free = Mutex::new(FreeRanges::new(all.pages));
        Some(Region {
            hypervisor,
            shared: Arc::new(Shared {
                all,
                next_pool: AtomicU16::new(0),
                free,
            }),
        })
    }

    /// Returns the same region for another vCPU, which alone uses what is made from it.
    pub fn on_vcpu(&self, hypervisor: H) -> Self {
        let shared = self.shared.clone();
        Region { hypervisor, shared }
    }

    /// Makes a pool of `pages` pages for data that `domain` grants, all of which are mapped or unmapped in
    /// one hypercall.
    pub fn map_pool(&self, domain: DomId, pages: usize) -> Result<MapPool<H>, NoRoom> {
        self.map_pool_in_batches(domain, pages, pages)
    }

    /// Makes a pool that maps and unmaps in hypercalls of up to `batch` pages, and takes memory for those alone.
    pub(crate) fn map_pool_in_batches(
        &self,
        domain: DomId,
        pages: usize,
        batch: usize,
    ) -> Result<MapPool<H>, NoRoom> {
        let range = self.take(pages)?;
        Ok(MapPool::new(self.hypervisor.clone(), domain, range, batch)?)
    }

    /// Makes a pool of `pages` pages that `domain` grants and a device accesses. It takes nothing of the region.
    ///
    /// # Panics
    /// If there are more than 65,535 pages.
    pub fn device_pool(&self, domain: DomId, pages: usize) -> Result<DevicePool<H>, OutOfMemory> {
        let number = self.shared.next_pool.fetch_add(1, Ordering::Relaxed);
        DevicePool::new(self.hypervisor.clone(), domain, number, pages)
    }

    /// Maps pages that `domain` grants next to each other, readable and writable. The outer error
    /// is ours, the inner one is the grant's that cannot be mapped.
    ///
    /// # Panics
    /// If there are no grants.
    #[allow(
        clippy::type_complexity,
        reason = "two kinds of refusal that callers tell apart"
    )]
    pub fn map_pages(
        &self,
        domain: DomId,
        grefs: &[GrantRef],
    ) -> Result<Result<MappedPages<H>, (GrantRef, GrantStatus)>, NoRoom> {
        let range = self.take(grefs.len())?;
        Ok(MappedPages::map(
            self.hypervisor.clone(),
            domain,
            range,
            grefs,
        )?)
    }

    /// Returns the number of free pages.
    pub fn free_pages(&self) -> usize {
        self.shared.free.lock().total()
    }

    fn take(&self, pages: usize) -> Result<PageRange, OutOfSpace> {
        let range = self.shared.free.lock().take(pages);
        let range = range.ok_or(OutOfSpace {
            wanted: pages,
            free: self.free_pages(),
        })?;
        Ok(PageRange {
            range,
            shared: self.shared.clone(),
        })
    }
}

/// There is no room for that many contiguous pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfSpace {
    /// The number of pages that were asked for.
    pub wanted: usize,
    /// The number of free pages, contiguous or not.
    pub free: usize,
}

impl fmt::Display for OutOfSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "no address space for {} foreign pages, {} are free",
            self.wanted, self.free
        )
    }
}

impl core::error::Error for OutOfSpace {}

/// The resource that a connection lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRoom {
    /// The address space for foreign pages is full.
    Space(OutOfSpace),
    /// The heap is full.
    Memory(OutOfMemory),
}

impl fmt::Display for NoRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoRoom::Space(error) => error.fmt(f),
            NoRoom::Memory(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for NoRoom {}

impl From<OutOfSpace> for NoRoom {
    fn from(error: OutOfSpace) -> Self {
        NoRoom::Space(error)
    }
}

impl From<OutOfMemory> for NoRoom {
    fn from(error: OutOfMemory) -> Self {
        NoRoom::Memory(error)
    }
}

/// A range of the region in use, given back when dropped.
pub(crate) struct PageRange {
    range: Range<usize>,
    shared: Arc<Shared>,
}

impl PageRange {
    /// Returns the number of its pages.
    #[inline]
    pub(crate) fn pages(&self) -> usize {
        self.range.len()
    }

    /// Returns the address of one of its pages, to name to Xen.
    #[inline]
    pub(crate) fn address(&self, index: usize) -> u64 {
        self.page(index).addr().get() as u64
    }

    /// Returns one of its pages, to access.
    #[inline]
    pub(crate) fn page(&self, index: usize) -> NonNull<u8> {
        let offset = self.number(index) * PAGE_SIZE;
        // The region is address space, not an object: its addresses are plain numbers.
        let base = self.shared.all.base;
        base.map_addr(|address| address.saturating_add(offset))
    }

    /// Returns the number of one of its pages in the region.
    #[inline]
    pub(crate) fn number(&self, index: usize) -> usize {
        assert!(index < self.pages(), "page {index} of a smaller range");
        self.range.start + index
    }

    /// Returns the index of the page that has that number in the region.
    #[inline]
    pub(crate) fn index(&self, number: usize) -> Option<usize> {
        let index = number.checked_sub(self.range.start)?;
        (index < self.pages()).then_some(index)
    }

    /// Keeps the pages from ever being given out again: Xen may still have something there.
    pub(crate) fn abandon(&mut self) {
        self.range = self.range.start..self.range.start;
    }
}

impl Drop for PageRange {
    fn drop(&mut self) {
        self.shared.free.lock().give_back(self.range.clone());
    }
}

/// Free ranges in order of their start, none adjacent to the next.
struct FreeRanges(Vec<Range<usize>>);

impl FreeRanges {
    fn new(pages: usize) -> Self {
        FreeRanges(alloc::vec![0..pages])
    }

    fn total(&self) -> usize {
        self.0.iter().map(|range| range.len()).sum()
    }

    /// Takes the first range that is large enough.
    fn take(&mut self, pages: usize) -> Option<Range<usize>> {
        let at = self.0.iter().position(|range| range.len() >= pages)?;
        let start = self.0[at].start;
        self.0[at].start += pages;
        if self.0[at].is_empty() {
            self.0.remove(at);
        }
        Some(start..start + pages)
    }

    fn give_back(&mut self, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        let at = self.0.partition_point(|free| free.start < range.start);
        self.0.insert(at, range);
        if at + 1 < self.0.len() && self.0[at].end == self.0[at + 1].start {
            self.0[at].end = self.0.remove(at + 1).end;
        }
        if at > 0 && self.0[at - 1].end == self.0[at].start {
            self.0[at - 1].end = self.0.remove(at).end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::FreeRanges;

    #[test]
    fn ranges_merge_again_whatever_the_order() {
        for order in [
            [0, 1, 2],
            [0, 2, 1],
            [1, 0, 2],
            [1, 2, 0],
            [2, 0, 1],
            [2, 1, 0],
        ] {
            let mut free = FreeRanges::new(10);
            let taken = [
                free.take(3).unwrap(),
                free.take(4).unwrap(),
                free.take(3).unwrap(),
            ];
            assert_eq!((free.take(1), free.total()), (None, 0));
            for index in order {
                free.give_back(taken[index].clone());
            }
            assert_eq!(free.0, core::slice::from_ref(&(0..10)));
        }
    }

    #[test]
    fn a_range_is_contiguous_or_refused() {
        let mut free = FreeRanges::new(10);
        let (low, middle) = (free.take(4).unwrap(), free.take(2).unwrap());
        free.give_back(low);
        assert_eq!(free.total(), 8);
        assert_eq!(free.take(5), None);
        free.give_back(middle);
        assert_eq!(free.take(5), Some(0..5));
    }
}
