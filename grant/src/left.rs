//! Grants that a boot before this one of the same domain has left in the table when it crashed. Other domains may still
//! use their pages, until their frontends have told them to let go.

use alloc::collections::BinaryHeap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_xen::abi::grant_table::{EntryV1, RESERVED_ENTRIES};
use bulkhead_xen::{DomId, Gfn, GrantRef, GrantedBefore, PAGE_SIZE};
use core::ptr::NonNull;
use core::sync::atomic::Ordering;

/// A grant that was left. They are ordered by their frames.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Left {
    frame: Gfn,
    gref: GrantRef,
    domain: DomId,
}

/// All grants that were left and have not ended, in the order of their frames.
#[derive(Default)]
pub(crate) struct LeftGrants {
    all: Vec<Left>,
    /// Those that have ended. Messages of before may still name them, so they are not given out before all have ended.
    ended: Vec<GrantRef>,
    pages: Option<Arc<dyn GrantedBefore>>,
    /// How many there were.
    found: usize,
}

impl LeftGrants {
    /// Finds them. Returns also the number of the first entry behind all that were ever used, and the unused ones before it.
    pub fn find(
        entries: &[EntryV1],
        pages: Arc<dyn GrantedBefore>,
    ) -> (LeftGrants, u32, Vec<GrantRef>) {
        let (mut all, mut ended, mut unused) = (BinaryHeap::new(), Vec::new(), Vec::new());
        let mut fresh = RESERVED_ENTRIES;
        for (number, entry) in (0..).zip(entries).skip(RESERVED_ENTRIES as usize) {
            let granted = entry.flags.load(Ordering::Acquire) != 0;
            let frame = entry.frame.load(Ordering::Relaxed);
            if !granted && frame == 0 {
                continue;
            }
            unused.extend((fresh..number).map(GrantRef));
            fresh = number + 1;
            if !granted {
                ended.push(GrantRef(number));
                continue;
            }
            all.push(Left {
                frame: Gfn(frame.into()),
                gref: GrantRef(number),
                domain: DomId(entry.domain.load(Ordering::Relaxed)),
            });
        }
        // A heap sorts by a tenth of the code that `sort_unstable` has.
        let (all, pages) = (all.into_sorted_vec(), Some(pages));
        let left = LeftGrants {
            found: all.len(),
            all,
            ended,
            pages,
        };
        (left, fresh, unused)
    }

    /// Ends those whose pages are not in use, by `revoke`, which returns whether an entry has ended. A page is free memory
    /// again once all grants of it have ended. Once all grants have ended, passes all entries to `free`: a backend has
    /// unmapped its rings then, and uses no number that it has found there.
    #[allow(unsafe_code, reason = "gives pages back that no grant names")]
    pub fn end(&mut self, revoke: impl Fn(GrantRef) -> bool, mut free: impl FnMut(GrantRef)) {
        let mut used = Vec::new();
        for page in self.all.chunk_by(|one, other| one.frame == other.frame) {
            let before = used.len();
            for left in page {
                match revoke(left.gref) {
                    true => self.ended.push(left.gref),
                    false => used.push(*left),
                }
            }
            if used.len() == before
                && let (Some(pages), Some(left)) = (&self.pages, page.first())
            {
                // SAFETY: all that were left of this frame have ended, and nothing has granted it since: it is not free.
                unsafe { pages.free(left.frame) };
            }
        }
        self.all = used;
        if self.all.is_empty() {
            self.ended.drain(..).for_each(&mut free);
        }
    }

    /// Takes those out, which are a domain's, and with them their pages, which no other grant may name, and which lie in a
    /// row. Returns where the first page is.
    pub fn keep(&mut self, domain: DomId, grefs: &[GrantRef]) -> Option<NonNull<u8>> {
        let mut first = None;
        for (number, gref) in grefs.iter().enumerate() {
            let left = *self.all.iter().find(|left| left.gref == *gref)?;
            let same_page = |other: &&Left| other.frame == left.frame;
            if left.domain != domain || self.all.iter().filter(same_page).count() != 1 {
                return None;
            }
            // If a later one is refused, this page stays out of use for good, and its grant is waited for as any other.
            let page = self.pages.as_ref()?.keep(left.frame)?;
            let base = *first.get_or_insert(page);
            if page.addr().get() != base.addr().get() + number * PAGE_SIZE {
                return None;
            }
        }
        self.all.retain(|left| !grefs.contains(&left.gref));
        first
    }

    /// Returns whether one of these has not ended, and is a domain's.
    pub fn has(&self, domain: DomId, grefs: &[GrantRef]) -> bool {
        let is_one = |left: &Left| left.domain == domain && grefs.contains(&left.gref);
        self.all.iter().any(is_one)
    }

    /// Returns how many there were when this boot began.
    pub fn found(&self) -> usize {
        self.found
    }

    /// Returns how many have not ended: those of a domain, or all.
    pub fn count(&self, domain: Option<DomId>) -> usize {
        let of_it = |left: &&Left| domain.is_none_or(|domain| left.domain == domain);
        self.all.iter().filter(of_it).count()
    }
}
