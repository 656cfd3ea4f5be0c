//! The pages of a request that are all mapped already.

use super::super::mappings::Mappings;
use super::super::pages::{Hold, InflightPages, Pages};
use super::super::stats::QueueStats;
use super::PageAccess;
use alloc::vec::Vec;
use bulkhead_grant::GrantAccess;
use bulkhead_images::IoSegment;
use bulkhead_ring::blkif::SlotSegments;
use bulkhead_xen::Hypervisor;

impl<H: Hypervisor> PageAccess<H> {
    /// Puts the pages of a request into `into`, in the form in which the device gets them, if all are mapped already so
    /// that `access` is possible. Returns the number of their bytes; `None` if a page is not mapped. They stay mapped
    /// until pages are noted or released the next time: if the request is not done by then, the caller has to
    /// [keep](Self::keep_mapped) them.
    #[inline]
    pub fn find_mapped(
        &mut self,
        segments: SlotSegments<'_>,
        access: GrantAccess,
        into: &mut Vec<IoSegment>,
    ) -> Option<usize> {
        let Mappings::Persistent(cache) = &mut self.mappings else {
            return None;
        };
        let mut bytes = 0;
        into.clear();
        for segment in segments.iter() {
            let (page, dma) = cache.revisit(segment.gref(), access)?;
            // A segment lies within its page, as its parser checked, so the sum is within the page.
            let address = page.map_addr(|page| page.saturating_add(segment.offset()));
            let dma = dma.map(|first| first.offset(segment.offset()));
            // SAFETY: the page is mapped, writable where the request reads. It stays so until the device has
            // told the completion: if it does not at once, the pages are kept as those of other requests
            // are. Nothing refers to guests' pages.
            into.push(unsafe { IoSegment::new(address, segment.len(), dma) });
            bytes += segment.len();
        }
        Some(bytes)
    }

    /// Counts pages of a request that were found mapped, and that the device no longer uses.
    #[inline]
    pub fn count_found(&mut self, pages: usize) {
        if let Mappings::Persistent(cache) = &mut self.mappings {
            cache.count_hits(pages);
        }
    }

    /// Writes the number of pages that were mapped already to `stats`.
    #[inline]
    pub fn count_hits(&self, stats: &QueueStats) {
        if let Mappings::Persistent(cache) = &self.mappings {
            stats.persistent_hits.set(cache.hits());
        }
    }

    /// Holds the pages of a request that [`find_mapped`](Self::find_mapped) has found just before.
    #[cold]
    pub fn keep_mapped(&mut self, pool: &mut InflightPages, pages: &Pages, access: GrantAccess) {
        if let Mappings::Persistent(cache) = &mut self.mappings {
            pool.for_each(pages, |page| {
                page.hold = cache.hold(page.gref, access).map_or(Hold::None, Hold::Kept);
                debug_assert!(matches!(page.hold, Hold::Kept(_)), "it was found");
            });
        }
    }
}
