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
    entries: &'static [EntryV1],
    all: Vec<Left>,
    /// Those that have ended. Messages of before may still name them, so they are not given out before all have ended, and
    /// all rings that were taken up are drained.
    ended: Vec<GrantRef>,
    /// Those of rings that this boot has taken up, while a backend may be at work on messages of before there.
    undrained: Vec<GrantRef>,
    pages: Option<Arc<dyn GrantedBefore>>,
    /// How many there were.
    found: usize,
}

impl LeftGrants {
    /// Finds them. Returns also the number of the first entry behind all that were ever used, and the unused ones before it.
    pub fn find(
        entries: &'static [EntryV1],
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
            entries,
            found: all.len(),
            all,
            ended,
            undrained: Vec::new(),
            pages,
        };
        (left, fresh, unused)
    }

    /// Ends those whose pages are not in use, by `revoke`, which returns whether an entry has ended. A page is free memory
    /// again once all grants of it have ended. Passes entries to `free` as [`drained`](Self::drained) does.
    #[allow(unsafe_code, reason = "gives pages back that no grant names")]
    pub fn end(&mut self, revoke: impl Fn(GrantRef) -> bool, free: impl FnMut(GrantRef)) {
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
        self.free_ended(free);
    }

    /// Notes that a backend is at work on no message of before that it has found in these pages: it has answered all that
    /// were there, or uses the pages no more. Passes all entries that have ended to `free` if that was the last place where
    /// such messages may be.
    pub fn drained(&mut self, grefs: &[GrantRef], free: impl FnMut(GrantRef)) {
        // Most grants that end are none of these, as there are none.
        if !self.undrained.is_empty() {
            self.undrained.retain(|gref| !grefs.contains(gref));
            self.free_ended(free);
        }
    }

    /// Passes all entries that have ended to `free`, once no backend uses a number that it has found in a message of before:
    /// it has unmapped its rings, or they are drained. A boot after this one takes them for unused, unless this one uses them:
    /// otherwise, the numbers that may be given out would become fewer with each crash.
    fn free_ended(&mut self, mut free: impl FnMut(GrantRef)) {
        if !self.all.is_empty() || !self.undrained.is_empty() {
            return;
        }
        for gref in self.ended.drain(..) {
            if let Some(entry) = self.entries.get(gref.0 as usize) {
                entry.frame.store(0, Ordering::Relaxed);
            }
            free(gref);
        }
    }

    /// Takes those out, which are a domain's, and with them their pages, which no other grant may name, and which lie in a
    /// row. Returns where the first page is. They are taken to have messages of before until they are [`drained`](Self::drained).
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
        self.undrained.extend(grefs);
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
