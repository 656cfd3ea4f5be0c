//! The phys-to-machine list of a PV domain: the machine frame behind each page frame.

use bulkhead_xen::Mfn;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

/// The phys-to-machine list of a PV domain.
#[derive(Clone, Copy)]
pub(crate) struct P2m {
    list: *mut u64,
    pages: u64,
}

// SAFETY: once the domain runs, the list is only accessed atomically.
unsafe impl Send for P2m {}
// SAFETY: as above.
unsafe impl Sync for P2m {}

impl P2m {
    /// The builder's entry for a page frame without memory (`INVALID_P2M_ENTRY`).
    const INVALID: u64 = u64::MAX;

    /// # Safety
    /// `list` has `pages` entries, for as long as the domain runs.
    pub unsafe fn new(list: *mut u64, pages: u64) -> Self {
        P2m { list, pages }
    }

    /// Returns the machine frame behind a page frame.
    pub fn machine_frame(&self, pfn: u64) -> Option<Mfn> {
        let mfn = self.entry(pfn)?.load(Ordering::Relaxed);
        (mfn != Self::INVALID).then_some(Mfn(mfn))
    }

    /// Returns whether one of these machine frames is behind a page of this domain.
    pub fn has_any(&self, frames: &Range<u64>) -> bool {
        let behind = |pfn| self.machine_frame(pfn);
        (0..self.pages)
            .filter_map(behind)
            .any(|mfn| frames.contains(&mfn.0))
    }

    /// Notes that a page frame of this domain has another machine frame, or none, from now on.
    pub fn set_machine_frame(&self, pfn: u64, mfn: Option<Mfn>) {
        let entry = self.entry(pfn).expect("a page frame of ours");
        entry.store(mfn.map_or(Self::INVALID, |mfn| mfn.0), Ordering::Relaxed);
    }

    fn entry(&self, pfn: u64) -> Option<&AtomicU64> {
        // SAFETY: within the list, which is memory of ours for as long as the domain runs.
        (pfn < self.pages).then(|| unsafe { AtomicU64::from_ptr(self.list.add(pfn as usize)) })
    }
}
