//! Granting own pages to other domains: this domain's grant table.
//!
//! The order of accesses is that of `grant_table.h` for version 1 entries: frame and domain are
//! written before the flags that make the entry valid, and a grant ends only by a compare-and-swap
//! that finds neither READING nor WRITING set, the marks of a page in use. Entries that accept frames follow
//! the protocol in `transfer_entry`.

use crate::GrantAccess;
use crate::left::LeftGrants;
use crate::transfer::AcceptedTransfer;
use crate::transfer_entry::TransferEntry;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_xen::abi::grant_table::{EntryFlags, EntryV1, RESERVED_ENTRIES};
use bulkhead_xen::{DomId, Gfn, GrantRef, GrantedBefore, Hypervisor, Pfn};
use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::Ordering;
use spin::{Mutex, Once};

/// The domain's grant table. Clones share it, from any vCPU: its lock is taken when entries are
/// taken and given back, not when a page is granted with an [`Entry`] or the grant ended.
pub struct GrantTable<H: Hypervisor> {
    shared: Arc<Shared<H>>,
}

struct Shared<H> {
    entries: &'static [EntryV1],
    free_entries: Mutex<FreeEntries>,
    /// Keeps the domain, whose table it is.
    _hypervisor: H,
}

/// Free entries.
struct FreeEntries {
    /// All entries from here on were never used.
    fresh: u32,
    free: Vec<GrantRef>,
    /// Abandoned while the other domain was still using the page: free as soon as it stops.
    lingering: Vec<GrantRef>,
    /// Left by a boot before this one, which has crashed.
    left: LeftGrants,
}

impl FreeEntries {
    /// Takes an entry back that grants nothing any more.
    fn give_back(&mut self, gref: GrantRef) {
        self.free.push(gref);
        let free = &mut self.free;
        self.left.drained(&[gref], |gref| free.push(gref));
    }
}

/// The domain's grant table, which is set up when it is first needed. Clones are the same.
pub struct TableOnDemand<H: Hypervisor> {
    shared: Arc<OnDemand<H>>,
    /// Called whenever somebody needs it by this clone.
    note: Option<fn()>,
}

struct OnDemand<H: Hypervisor> {
    hypervisor: H,
    table: Once<Option<GrantTable<H>>>,
    /// The pages of grants that a boot before this one has left, if it may have left any.
    before: Option<Arc<dyn GrantedBefore>>,
}

impl<H: Hypervisor> TableOnDemand<H> {
    /// Returns it for a domain whose grant table has no other owner.
    pub fn new(hypervisor: H) -> Self {
        Self::with(hypervisor, None)
    }

    /// Returns it for a domain that has started again in place after a crash: grants of the boot before may still be in
    /// use, and `before` is what becomes of their pages.
    pub fn left(hypervisor: H, before: Arc<dyn GrantedBefore>) -> Self {
        Self::with(hypervisor, Some(before))
    }

    fn with(hypervisor: H, before: Option<Arc<dyn GrantedBefore>>) -> Self {
        let shared = Arc::new(OnDemand {
            hypervisor,
            table: Once::new(),
            before,
        });
        let note = None;
        TableOnDemand { shared, note }
    }

    /// Returns a clone that calls `note` when somebody needs the table by it.
    pub fn noting(&self, note: fn()) -> Self {
        TableOnDemand {
            note: Some(note),
            ..self.clone()
        }
    }

    /// Returns whether a boot before this one may have left grants.
    pub fn was_left(&self) -> bool {
        self.shared.before.is_some()
    }

    /// Returns the table; `None` if Xen gives none, or something else has taken it.
    pub fn get(&self) -> Option<GrantTable<H>> {
        if let Some(note) = self.note {
            note();
        }
        let on_demand = &self.shared;
        let make = || GrantTable::with(on_demand.hypervisor.clone(), on_demand.before.clone());
        on_demand.table.call_once(make).clone()
    }
}

impl<H: Hypervisor> Clone for TableOnDemand<H> {
    fn clone(&self) -> Self {
        TableOnDemand {
            shared: self.shared.clone(),
            note: self.note,
        }
    }
}

/// An entry of the table that grants and accepts nothing at the moment. Dropping it gives it back.
pub struct Entry<H: Hypervisor> {
    gref: GrantRef,
    table: GrantTable<H>,
}

/// A page that another domain may access.
///
/// Dropping it ends the grant. If the other domain is using the page at that moment, the grant
/// stays until it stops, and so must the page: [`end`](Self::end) returns whether it did.
#[must_use = "dropping a grant ends it"]
pub struct Grant<H: Hypervisor> {
    /// Its drop ends the grant, as it would any that is left in the entry.
    entry: Entry<H>,
}

/// All entries of the grant table are in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableFull;

impl fmt::Display for TableFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("all entries of the grant table are in use")
    }
}

impl core::error::Error for TableFull {}

/// The other domain has the page mapped, or copies it right now; the grant goes on.
pub struct InUse<H: Hypervisor>(
    /// The grant.
    pub Grant<H>,
);

impl<H: Hypervisor> fmt::Display for InUse<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "grant {} is still in use", self.0.gref())
    }
}

impl<H: Hypervisor> core::error::Error for InUse<H> {}

impl<H: Hypervisor> GrantTable<H> {
    /// Takes the domain's grant table. `None` if it was taken already.
    pub fn new(hypervisor: H) -> Option<Self> {
        Self::with(hypervisor, None)
    }

    fn with(hypervisor: H, before: Option<Arc<dyn GrantedBefore>>) -> Option<Self> {
        let entries = hypervisor.grant_entries()?;
        let (left, fresh, free) = match before {
            Some(pages) => LeftGrants::find(entries, pages),
            None => (LeftGrants::default(), RESERVED_ENTRIES, Vec::new()),
        };
        let shared = Shared {
            entries,
            free_entries: Mutex::new(FreeEntries {
                fresh,
                free,
                lingering: Vec::new(),
                left,
            }),
            _hypervisor: hypervisor,
        };
        Some(GrantTable {
            shared: Arc::new(shared),
        })
    }

    /// Ends the grants that a boot before this one has left, as far as their pages are not in use. Returns how many are
    /// left to a domain, or to all.
    pub fn end_left(&self, domain: Option<DomId>) -> usize {
        let mut free_entries = self.shared.free_entries.lock();
        let FreeEntries { free, left, .. } = &mut *free_entries;
        left.end(|gref| self.revoke(gref), |gref| free.push(gref));
        left.count(domain)
    }

    /// Returns whether one of these grants to a domain is one that a boot before this one has left, and in use.
    pub fn is_left(&self, domain: DomId, grefs: &[GrantRef]) -> bool {
        self.end_left(None) > 0 && self.shared.free_entries.lock().left.has(domain, grefs)
    }

    /// Returns how many grants a boot before this one had left when this one began.
    pub fn found_left(&self) -> usize {
        self.shared.free_entries.lock().left.found()
    }

    /// Goes on with grants that a boot before this one has left, that their domain uses, and whose pages lie in a row: they are
    /// this boot's from here on, and so are the pages. Adds the grants to `grants`, which has room for them, and returns the
    /// address of the first page; `None` if there are none such. No number of before is given out until they are
    /// drained, or have ended.
    pub fn keep_left(
        &self,
        domain: DomId,
        grefs: &[GrantRef],
        grants: &mut Vec<Grant<H>>,
    ) -> Option<NonNull<u8>> {
        let used = EntryFlags::READING | EntryFlags::WRITING;
        let is_used = |gref: &GrantRef| {
            let entry = self.shared.entries.get(gref.0 as usize);
            let flags = entry.map_or(0, |entry| entry.flags.load(Ordering::Acquire));
            EntryFlags::from_bits_retain(flags).intersects(used)
        };
        let mut free_entries = self.shared.free_entries.lock();
        if !grefs.iter().all(is_used) {
            return None;
        }
        let first = free_entries.left.keep(domain, grefs)?;
        grants.extend(grefs.iter().map(|&gref| {
            let table = self.clone();
            let entry = Entry { gref, table };
            Grant { entry }
        }));
        Some(first)
    }

    /// Notes that the other domain has answered all messages of before in pages that were [kept](Self::keep_left).
    pub(crate) fn drained(&self, grefs: &[GrantRef]) {
        let mut free_entries = self.shared.free_entries.lock();
        let FreeEntries { free, left, .. } = &mut *free_entries;
        left.drained(grefs, |gref| free.push(gref));
    }

    /// Takes an entry.
    pub fn entry(&self) -> Result<Entry<H>, TableFull> {
        let gref = self.take().ok_or(TableFull)?;
        let table = self.clone();
        Ok(Entry { gref, table })
    }

    /// Takes an entry and grants a page with it.
    ///
    /// # Safety
    /// As for [`Entry::grant`].
    pub unsafe fn grant(
        &self,
        domain: DomId,
        frame: Gfn,
        access: GrantAccess,
    ) -> Result<Grant<H>, TableFull> {
        let entry = self.entry()?;
        // SAFETY: the caller promises just that.
        Ok(unsafe { entry.grant(domain, frame, access) })
    }

    /// Takes an entry and accepts a frame with it.
    ///
    /// # Safety
    /// As for [`Entry::accept_transfer`].
    pub unsafe fn accept_transfer(
        &self,
        domain: DomId,
        place: Pfn,
    ) -> Result<AcceptedTransfer<H>, TableFull> {
        let entry = self.entry()?;
        // SAFETY: the caller promises just that.
        Ok(unsafe { entry.accept_transfer(domain, place) })
    }

    /// Returns the number of entries that can be taken.
    pub fn free_entries(&self) -> usize {
        let mut free_entries = self.shared.free_entries.lock();
        self.reclaim(&mut free_entries);
        free_entries.free.len()
            + self
                .shared
                .entries
                .len()
                .saturating_sub(free_entries.fresh as usize)
    }

    fn take(&self) -> Option<GrantRef> {
        let mut free_entries = self.shared.free_entries.lock();
        if let Some(gref) = free_entries.free.pop() {
            return Some(gref);
        }
        if (free_entries.fresh as usize) < self.shared.entries.len() {
            free_entries.fresh += 1;
            return Some(GrantRef(free_entries.fresh - 1));
        }
        self.reclaim(&mut free_entries);
        free_entries.free.pop()
    }

    /// Ends the grants that were abandoned while in use and are no longer in use.
    fn reclaim(&self, free_entries: &mut FreeEntries) {
        let mut ended = Vec::new();
        free_entries.lingering.retain(|&gref| {
            let still = !self.revoke(gref);
            if !still {
                ended.push(gref);
            }
            still
        });
        ended
            .into_iter()
            .for_each(|gref| free_entries.give_back(gref));
    }

    pub(crate) fn transfer_entry(&self, gref: GrantRef) -> TransferEntry<'static> {
        let EntryV1 {
            flags,
            domain,
            frame,
        } = self.at(gref);
        TransferEntry {
            flags,
            domain,
            frame,
        }
    }

    fn at(&self, gref: GrantRef) -> &'static EntryV1 {
        &self.shared.entries[gref.0 as usize]
    }

    /// Makes an entry invalid unless its page is in use; returns whether it did.
    fn revoke(&self, gref: GrantRef) -> bool {
        let flags = &self.at(gref).flags;
        let busy = (EntryFlags::READING | EntryFlags::WRITING).bits();
        flags
            .try_update(Ordering::AcqRel, Ordering::Acquire, |flags| {
                (flags & busy == 0).then_some(0)
            })
            .is_ok()
    }
}

impl<H: Hypervisor> Clone for GrantTable<H> {
    fn clone(&self) -> Self {
        let shared = self.shared.clone();
        GrantTable { shared }
    }
}

impl<H: Hypervisor> fmt::Debug for GrantTable<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrantTable")
            .field("entries", &self.shared.entries.len())
            .finish_non_exhaustive()
    }
}

impl<H: Hypervisor> fmt::Debug for Entry<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Entry({})", self.gref)
    }
}

impl<H: Hypervisor> fmt::Debug for Grant<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Grant({})", self.gref())
    }
}

impl<H: Hypervisor> fmt::Debug for InUse<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InUse({})", self.0.gref())
    }
}

impl<H: Hypervisor> Entry<H> {
    /// Returns the entry's number, which the other domain needs.
    pub fn gref(&self) -> GrantRef {
        self.gref
    }

    /// Lets `domain` access an own frame. Takes no lock.
    ///
    /// # Safety
    /// As long as the grant lasts, the frame is own memory that is accessed by volatile or atomic
    /// accesses alone, and its whole content may be seen by `domain`. It lasts until
    /// [`Grant::end`] succeeds.
    pub unsafe fn grant(self, domain: DomId, frame: Gfn, access: GrantAccess) -> Grant<H> {
        let frame = u32::try_from(frame.0).expect("version 1 entries hold frames below 2^32");
        let entry = self.table.at(self.gref);
        entry.frame.store(frame, Ordering::Relaxed);
        entry.domain.store(domain.0, Ordering::Relaxed);
        // The other domain may look at it from here on.
        entry.flags.store(access_flags(access), Ordering::Release);
        Grant { entry: self }
    }

    /// Lets `domain` transfer one frame to this domain (`GTF_accept_transfer`), to be behind its page frame
    /// `place` ([`FrameTransfer::page_frame`](bulkhead_xen::FrameTransfer::page_frame)). Takes no lock.
    ///
    /// Xen refuses the transfer if this domain has as many pages as it may: the page was released before.
    ///
    /// # Safety
    /// There is nothing behind the page frame (the page was released, or its frame given away), and nothing is
    /// put there until [`AcceptedTransfer::end`] returns: until then it may be memory at any time, with any
    /// content.
    pub unsafe fn accept_transfer(self, domain: DomId, place: Pfn) -> AcceptedTransfer<H> {
        let place = u32::try_from(place.0).expect("version 1 entries hold frames below 2^32");
        self.transfer().accept(domain.0, place);
        AcceptedTransfer { entry: self }
    }

    pub(crate) fn transfer(&self) -> TransferEntry<'static> {
        self.table.transfer_entry(self.gref)
    }
}

/// Returns the flags of an entry that grants a page.
fn access_flags(access: GrantAccess) -> u16 {
    let flags = match access {
        GrantAccess::ReadOnly => EntryFlags::PERMIT_ACCESS | EntryFlags::READONLY,
        GrantAccess::ReadWrite => EntryFlags::PERMIT_ACCESS,
    };
    flags.bits()
}

impl<H: Hypervisor> Drop for Entry<H> {
    fn drop(&mut self) {
        if TransferEntry::accepts(self.table.at(self.gref).flags.load(Ordering::Relaxed)) {
            self.table.end_transfer(self.gref);
        }
        let ended = self.table.revoke(self.gref);
        let mut free_entries = self.table.shared.free_entries.lock();
        if ended {
            free_entries.give_back(self.gref);
        } else {
            log::warn!(
                "grant {} is abandoned while its page is still in use",
                self.gref
            );
            free_entries.lingering.push(self.gref);
        }
    }
}

impl<H: Hypervisor> Grant<H> {
    /// Returns the grant's number, which the other domain needs.
    pub fn gref(&self) -> GrantRef {
        self.entry.gref
    }

    /// Returns whether the other domain has the page mapped, or copies it right now.
    pub fn is_in_use(&self) -> bool {
        let entry = self.entry.table.at(self.entry.gref);
        let flags = EntryFlags::from_bits_retain(entry.flags.load(Ordering::Acquire));
        flags.intersects(EntryFlags::READING | EntryFlags::WRITING)
    }

    /// Keeps the other domain off the page until [`resume`](Self::resume). Returns false, and changes nothing, while the
    /// other domain uses it. Takes no lock.
    pub fn suspend(&self) -> bool {
        self.entry.table.revoke(self.entry.gref)
    }

    /// Lets the other domain access the same page again, under the same number. Takes no lock.
    ///
    /// # Safety
    /// The grant is suspended. From now on, what [`Entry::grant`] asks for holds again.
    pub unsafe fn resume(&self, access: GrantAccess) {
        let entry = self.entry.table.at(self.entry.gref);
        entry.flags.store(access_flags(access), Ordering::Release);
    }

    /// Ends the grant and gives the entry back, to be used again. Refused while the other domain
    /// uses the page. Takes no lock.
    pub fn end(self) -> Result<Entry<H>, InUse<H>> {
        if self.entry.table.revoke(self.entry.gref) {
            Ok(self.entry)
        } else {
            Err(InUse(self))
        }
    }
}
