//! The entries of a cache of mappings: found by grant, and in the order of their last use.

use crate::map_pool::Mapping;
use crate::memory::{OutOfMemory, filled};
use alloc::vec::Vec;
use bulkhead_xen::GrantRef;
use core::ops::{Index, IndexMut};

/// The end of a list of entries.
const NONE: u16 = u16::MAX;

/// The most entries there can be.
pub const MOST_ENTRIES: usize = NONE as usize;

/// The entries of a cache. All memory they need is taken when they are made.
pub struct Entries {
    all: Vec<CacheEntry>,
    /// The first entry that caches nothing; each names the next.
    vacant: u16,
    /// The first entry of each list of those whose grants have the same low bits. Frontends use small
    /// numbers close together, which those bits tell apart.
    lists: Vec<u16>,
    /// The entries that no request holds, the one that became idle last first. Those that a request has come to hold
    /// since stay, until the list is searched: so nothing is moved for a page that is used again and again.
    idle: IdleList,
}

pub struct CacheEntry {
    pub gref: GrantRef,
    pub mapping: Option<Mapping>,
    /// The number of requests that use it, with the bits [`READ_ONLY`], [`REVISITED`], [`LISTED`] and [`MAPPED`].
    pub uses: u16,
    /// The next entry in its list by grant, or among the vacant ones.
    next: u16,
    /// Neighbours in the list of idle entries.
    newer: u16,
    older: u16,
}

/// Set in [`CacheEntry::uses`] if the page is mapped for reading alone.
pub const READ_ONLY: u16 = 1 << 15;
/// Set in [`CacheEntry::uses`] if the page was used since it became idle.
pub const REVISITED: u16 = 1 << 14;
/// Set in [`CacheEntry::uses`] if it is in the list of idle entries.
const LISTED: u16 = 1 << 13;
/// Set in [`CacheEntry::uses`] if the page was found to be mapped: it stays so until the entry is removed.
pub const MAPPED: u16 = 1 << 12;
/// The rest of [`CacheEntry::uses`].
const MOST_HOLDERS: u16 = MAPPED - 1;

const _: () = assert!(size_of::<CacheEntry>() == 16);

impl CacheEntry {
    #[inline]
    pub fn is_held(&self) -> bool {
        self.uses & MOST_HOLDERS > 0
    }

    #[inline]
    pub fn is_read_only(&self) -> bool {
        self.uses & READ_ONLY > 0
    }

    /// Returns whether one request more can hold it: many times more can than a queue has pages.
    #[inline]
    pub fn has_room(&self) -> bool {
        self.uses & MOST_HOLDERS < MOST_HOLDERS
    }

    /// Ends a hold. Returns true if nothing else is to be done: a request holds it still, or it is mapped and in the list
    /// of idle entries.
    #[inline]
    pub fn end_hold(&mut self) -> bool {
        self.uses -= 1;
        self.is_held() || self.uses & (LISTED | MAPPED) == LISTED | MAPPED
    }
}

#[derive(Clone, Copy)]
struct IdleList {
    newest: u16,
    oldest: u16,
}

impl Entries {
    /// Makes `capacity` entries, which cache nothing.
    pub fn new(capacity: usize) -> Result<Entries, OutOfMemory> {
        let entry = |number| CacheEntry {
            gref: GrantRef(0),
            mapping: None,
            uses: 0,
            next: if number + 1 < capacity {
                number as u16 + 1
            } else {
                NONE
            },
            newer: NONE,
            older: NONE,
        };
        Ok(Entries {
            all: filled(capacity, entry)?,
            vacant: 0,
            lists: filled((capacity / 2).next_power_of_two(), |_| NONE)?,
            idle: IdleList {
                newest: NONE,
                oldest: NONE,
            },
        })
    }

    /// Returns the number of entries.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Returns the number of every entry, in use or not.
    pub fn numbers(&self) -> impl Iterator<Item = u16> + use<> {
        (0..self.all.len()).map(|number| number as u16)
    }

    /// Returns whether each of them caches something.
    pub fn are_full(&self) -> bool {
        self.vacant == NONE
    }

    /// Returns the entry that caches a grant.
    #[inline(always)]
    pub fn find(&self, gref: GrantRef) -> Option<u16> {
        let mut at = self.lists[self.list(gref)];
        loop {
            let entry = self.all.get(usize::from(at))?;
            if entry.gref == gref {
                return Some(at);
            }
            at = entry.next;
        }
    }

    /// Returns the number of the list that a grant belongs to.
    #[inline]
    fn list(&self, gref: GrantRef) -> usize {
        gref.0 as usize & (self.lists.len() - 1)
    }

    /// Caches the mapping of a grant in a vacant entry, which is not idle yet.
    ///
    /// # Panics
    /// If there is none.
    pub fn insert(&mut self, gref: GrantRef, mapping: Mapping) -> u16 {
        let at = self.vacant;
        let list = self.list(gref);
        let entry = &mut self.all[usize::from(at)];
        self.vacant = entry.next;
        *entry = CacheEntry {
            gref,
            mapping: Some(mapping),
            uses: 0,
            next: core::mem::replace(&mut self.lists[list], at),
            newer: NONE,
            older: NONE,
        };
        at
    }

    /// Removes an idle entry, and returns what it cached.
    pub fn remove(&mut self, at: u16) -> Option<Mapping> {
        self.unlink(at);
        let list = self.list(self[at].gref);
        let vacant = self.vacant;
        let entry = &mut self[at];
        let next = core::mem::replace(&mut entry.next, vacant);
        let mapping = entry.mapping.take();
        self.vacant = at;
        if self.lists[list] == at {
            self.lists[list] = next;
            return mapping;
        }
        let mut before = self.lists[list];
        while self[before].next != at {
            before = self[before].next;
        }
        self[before].next = next;
        mapping
    }

    /// Returns the entry that became idle first, and was not used since. On the way, entries that were used are moved to
    /// the front, and those that a request holds are taken out of the list, each once for all its uses.
    pub fn oldest_idle(&mut self) -> Option<u16> {
        loop {
            let oldest = self.idle.oldest;
            let entry = self.all.get(usize::from(oldest))?;
            let is_held = entry.is_held();
            if !is_held && entry.uses & REVISITED == 0 {
                return Some(oldest);
            }
            self.unlink(oldest);
            if !is_held {
                self.link(oldest);
            }
        }
    }

    /// Makes an entry idle: if it is not in the list, it becomes the one that was used most recently.
    pub fn link(&mut self, at: u16) {
        if self[at].uses & LISTED > 0 {
            return;
        }
        let older = self.idle.newest;
        self[at].uses = self[at].uses & !REVISITED | LISTED;
        self[at].newer = NONE;
        self[at].older = older;
        match older {
            NONE => self.idle.oldest = at,
            older => self[older].newer = at,
        }
        self.idle.newest = at;
    }

    /// Takes an entry out of the list of idle ones.
    fn unlink(&mut self, at: u16) {
        let CacheEntry { newer, older, .. } = self[at];
        self[at].uses &= !LISTED;
        match newer {
            NONE => self.idle.newest = older,
            newer => self[newer].older = older,
        }
        match older {
            NONE => self.idle.oldest = newer,
            older => self[older].newer = newer,
        }
    }
}

impl Index<u16> for Entries {
    type Output = CacheEntry;

    #[inline]
    fn index(&self, at: u16) -> &CacheEntry {
        &self.all[usize::from(at)]
    }
}

impl IndexMut<u16> for Entries {
    #[inline]
    fn index_mut(&mut self, at: u16) -> &mut CacheEntry {
        &mut self.all[usize::from(at)]
    }
}
