//! Granted pages that stay mapped from one request to the next (`feature-persistent`, io/blkif.h).
//!
//! A frontend that uses the same grants over and over costs no hypercall for them once they are
//! mapped. How many stay is bounded: beyond that, the least recently used one goes that nobody
//! holds. A frontend may cycle through more grants than fit: then each sweep maps and unmaps in
//! one hypercall each, as without persistence.

use crate::window::{Calls, Slot, Window};
use crate::{Access, OutOfSpace, Region};
use alloc::vec::Vec;
use bulkhead_xen::{DomId, Frame, GrantRef, GrantStatus, Hypervisor};
use core::fmt;
use core::ptr::NonNull;
use hashbrown::HashTable;

/// The end of a list of entries.
const NONE: u32 = u32::MAX;

/// A queue's persistently mapped pages. All memory it needs is taken when it is made.
pub struct PersistentCache<H: Hypervisor> {
    window: Window<H>,
    entries: Vec<Entry>,
    /// Entries that cache nothing.
    vacant: Vec<u32>,
    /// Entries by grant.
    index: HashTable<u32>,
    /// Entries that nobody holds, the most recently used one first.
    idle: IdleList,
    /// Entries queued for writing by this sweep for requests that would be content with reading.
    hopeful: Vec<u32>,
    hits: u64,
    misses: u64,
}

struct Entry {
    gref: GrantRef,
    access: Access,
    slot: Option<Slot>,
    holders: u32,
    /// Neighbours in the list of idle entries.
    newer: u32,
    older: u32,
}

#[derive(Clone, Copy)]
struct IdleList {
    newest: u32,
    oldest: u32,
}

/// The right to use a cached page, from [`PersistentCache::hold`] to
/// [`PersistentCache::release`]. It stays mapped that long.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a page that is never released can never make room for another"]
pub struct Held {
    entry: u32,
    access: Access,
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
    /// An empty cache for up to `capacity` pages that `domain` grants. It takes room for `sweep`
    /// pages more, so that so many old ones and new ones can be exchanged in two hypercalls.
    pub fn new(
        region: &Region<H>,
        domain: DomId,
        capacity: usize,
        sweep: usize,
    ) -> Result<Self, OutOfSpace> {
        let window = region.window(domain, capacity + sweep)?;
        let vacant = (0..capacity as u32).rev().collect();
        let entry = |_| Entry {
            gref: GrantRef(0),
            access: Access::ReadOnly,
            slot: None,
            holders: 0,
            newer: NONE,
            older: NONE,
        };
        Ok(PersistentCache {
            window,
            entries: (0..capacity).map(entry).collect(),
            vacant,
            // Never more than half full, so that it never grows: what deletions leave behind is
            // cleared in place.
            index: HashTable::with_capacity(capacity * 2 + 1),
            idle: IdleList {
                newest: NONE,
                oldest: NONE,
            },
            hopeful: Vec::with_capacity(capacity),
            hits: 0,
            misses: 0,
        })
    }

    /// How many pages are cached.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether no page is cached.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// How often a page was held that was mapped already.
    pub fn hits(&self) -> u64 {
        self.hits
    }

    /// How often a page was held that had to be mapped first.
    pub fn misses(&self) -> u64 {
        self.misses
    }

    /// What was asked of Xen so far.
    pub fn calls(&self) -> Calls {
        self.window.calls()
    }

    /// Holds a page of the frontend for a request. If it is not cached, the next
    /// [`map_queued`](Self::map_queued) maps it; if need be, the least recently used page that
    /// nobody holds makes room.
    #[inline]
    pub fn hold(&mut self, gref: GrantRef, access: Access) -> Result<Held, CacheFull> {
        let entries = &self.entries;
        let cached = self
            .index
            .find(hash(gref), |&entry| entries[entry as usize].gref == gref);
        let entry = match cached.copied() {
            Some(entry) if !self.is_too_weak(entry, access) => {
                self.hits += 1;
                if self.entries[entry as usize].holders == 0 {
                    self.unlink(entry);
                }
                entry
            }
            Some(entry) => {
                self.discard(entry);
                self.insert(gref, access)?
            }
            None => self.insert(gref, access)?,
        };
        self.entries[entry as usize].holders += 1;
        Ok(Held { entry, access })
    }

    /// Whether an entry is mapped for reading, wanted for writing, and can be mapped anew.
    fn is_too_weak(&self, entry: u32, wanted: Access) -> bool {
        let entry = &self.entries[entry as usize];
        entry.holders == 0 && entry.access == Access::ReadOnly && wanted == Access::ReadWrite
    }

    #[cold]
    fn insert(&mut self, gref: GrantRef, access: Access) -> Result<u32, CacheFull> {
        if self.vacant.is_empty() {
            if self.idle.oldest == NONE {
                return Err(CacheFull);
            }
            self.discard(self.idle.oldest);
        }
        if self.window.free_slots() == 0 {
            self.window.unmap_queued();
        }
        // A frontend allows writing to all its persistent grants (io/blkif.h, note 8), so later
        // requests that write need no other mapping.
        let slot = self.window.queue_map(gref, Access::ReadWrite);
        let slot = slot.map_err(|_| CacheFull)?;
        let entry = self.vacant.pop().expect("made room above");
        self.entries[entry as usize] = Entry {
            gref,
            access: Access::ReadWrite,
            slot: Some(slot),
            holders: 0,
            newer: NONE,
            older: NONE,
        };
        let entries = &self.entries;
        self.index.insert_unique(hash(gref), entry, |&entry| {
            hash(entries[entry as usize].gref)
        });
        if access == Access::ReadOnly {
            self.hopeful.push(entry);
        }
        self.misses += 1;
        Ok(entry)
    }

    /// Maps all pages that were held anew: one hypercall, and one before it if others had to make
    /// room. Pages that may not be written are mapped for reading by one more, if reading is all
    /// that was asked for.
    pub fn map_queued(&mut self) {
        self.window.unmap_queued();
        self.window.map_queued();
        for at in 0..self.hopeful.len() {
            let entry = &mut self.entries[self.hopeful[at] as usize];
            let Some(slot) = &entry.slot else { continue };
            // What Xen answers if the grant is read-only, among other things.
            if self.window.address(slot) == Err(GrantStatus::GENERAL_ERROR)
                && let Some(slot) = entry.slot.take()
            {
                self.window.queue_unmap(slot);
                entry.access = Access::ReadOnly;
                entry.slot = self.window.queue_map(entry.gref, Access::ReadOnly).ok();
            }
        }
        self.hopeful.clear();
        self.window.map_queued();
    }

    /// Where a page is mapped, or why it is not.
    #[inline]
    pub fn address(&self, held: &Held) -> Result<NonNull<u8>, GrantStatus> {
        let entry = &self.entries[held.entry as usize];
        if held.access == Access::ReadWrite && entry.access == Access::ReadOnly {
            return Err(GrantStatus::GENERAL_ERROR);
        }
        let slot = entry.slot.as_ref().ok_or(GrantStatus::GENERAL_ERROR)?;
        self.window.address(slot)
    }

    /// The guest frame at which a page is mapped, as a device behind the IOMMU would name it.
    #[inline]
    pub fn frame(&self, held: &Held) -> Option<Frame> {
        let slot = self.entries[held.entry as usize].slot.as_ref()?;
        Some(self.window.frame(slot))
    }

    /// Ends the use of a page by a request. It stays mapped as long as there is room.
    #[inline]
    pub fn release(&mut self, held: Held) {
        let at = held.entry;
        let entry = &mut self.entries[at as usize];
        entry.holders -= 1;
        if entry.holders > 0 {
            return;
        }
        let mapped = entry
            .slot
            .as_ref()
            .is_some_and(|slot| self.window.address(slot).is_ok());
        self.link(at);
        if !mapped {
            // Refused, or never mapped: the next request asks Xen again.
            self.discard(at);
        }
    }

    /// Unmaps all pages that nobody holds, in one hypercall.
    pub fn discard_idle(&mut self) {
        while self.idle.oldest != NONE {
            self.discard(self.idle.oldest);
        }
        self.window.unmap_queued();
    }

    /// Removes an idle entry; its page is unmapped with the next batch.
    fn discard(&mut self, at: u32) {
        self.unlink(at);
        let gref = self.entries[at as usize].gref;
        if let Ok(found) = self.index.find_entry(hash(gref), |&entry| entry == at) {
            found.remove();
        }
        if let Some(slot) = self.entries[at as usize].slot.take() {
            self.window.queue_unmap(slot);
        }
        self.vacant.push(at);
    }

    fn link(&mut self, at: u32) {
        let older = self.idle.newest;
        self.entries[at as usize].newer = NONE;
        self.entries[at as usize].older = older;
        match older {
            NONE => self.idle.oldest = at,
            older => self.entries[older as usize].newer = at,
        }
        self.idle.newest = at;
    }

    fn unlink(&mut self, at: u32) {
        let Entry { newer, older, .. } = self.entries[at as usize];
        match newer {
            NONE => self.idle.newest = older,
            newer => self.entries[newer as usize].older = older,
        }
        match older {
            NONE => self.idle.oldest = newer,
            older => self.entries[older as usize].newer = newer,
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

/// Grants are small numbers close together: one multiplication spreads them over both ends of the
/// word, of which the table uses the low bits for the place and the high ones to compare.
fn hash(gref: GrantRef) -> u64 {
    u64::from(gref.0).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}
