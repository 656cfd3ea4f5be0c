//! Grant tables as Xen keeps them: what each entry permits, which domain has it pinned, and what each
//! domain maps.
//!
//! The rules and their order are those of Xen's `common/grant_table.c` for version 1 entries:
//!
//! - The entry's domain, type and read-only bit are looked at only when the grant is not yet
//!   pinned, or is pinned for reading and now wanted for writing. While it is pinned, what the
//!   granting domain writes there changes nothing: a revoked grant stays mapped.
//! - READING and WRITING are set in the shared entry with the first pin of a kind and cleared with
//!   the last one.
//! - Each kind of pin is a counter of 8 bits; one more is refused.
//! - A grant that is not for the caller, of the wrong type or read-only, is `GENERAL_ERROR`;
//!   a reference beyond the table is `BAD_GNTREF`; a frame that the granter does not own is
//!   `BAD_PAGE`.

use bulkhead_xen::abi::grant_table::{EntryFlags, EntryV1, MapFlags, RESERVED_ENTRIES};
use bulkhead_xen::{DomId, Gfn, GrantHandle, GrantRef, GrantStatus, Mfn, PAGE_SIZE};
use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::Ordering;

/// `GTF_type_mask`
const TYPE_MASK: u16 = 3;
/// `GTF_sub_page`: a version 2 type that may be copied and never mapped.
const SUB_PAGE: u16 = 1 << 8;
/// Each pin counter of Xen has this many bits less one (`GNTPIN_hstr_mask` and so on).
const PIN_MAX: u16 = 255;

/// The number of uses of one grant, by kind.
#[derive(Clone, Copy, Debug, Default)]
struct Pins {
    host_read: u16,
    host_write: u16,
    device_read: u16,
    device_write: u16,
}

impl Pins {
    /// Returns what one mapping or copy adds.
    fn of(flags: MapFlags) -> Pins {
        let readonly = flags.contains(MapFlags::READONLY);
        let count = |flag, kind: bool| u16::from(flags.contains(flag) && kind);
        Pins {
            host_read: count(MapFlags::HOST_MAP, readonly),
            host_write: count(MapFlags::HOST_MAP, !readonly),
            device_read: count(MapFlags::DEVICE_MAP, readonly),
            device_write: count(MapFlags::DEVICE_MAP, !readonly),
        }
    }

    fn any(&self) -> bool {
        self.host_read + self.device_read > 0 || self.writing()
    }

    fn writing(&self) -> bool {
        self.host_write + self.device_write > 0
    }

    fn plus(&self, more: Pins) -> Option<Pins> {
        let add = |a: u16, b: u16| (a + b <= PIN_MAX).then_some(a + b);
        Some(Pins {
            host_read: add(self.host_read, more.host_read)?,
            host_write: add(self.host_write, more.host_write)?,
            device_read: add(self.device_read, more.device_read)?,
            device_write: add(self.device_write, more.device_write)?,
        })
    }

    fn minus(&self, less: Pins) -> Pins {
        Pins {
            host_read: self.host_read - less.host_read,
            host_write: self.host_write - less.host_write,
            device_read: self.device_read - less.device_read,
            device_write: self.device_write - less.device_write,
        }
    }
}

/// A grant in use (Xen's "active entry").
#[derive(Clone, Copy, Default)]
struct Active {
    pins: Pins,
    user: DomId,
    frame: Gfn,
}

/// A grant that a domain has mapped (Xen's "map track" entry).
#[derive(Clone, Copy)]
pub(super) struct MapTrack {
    pub(super) owner: DomId,
    pub(super) gref: GrantRef,
    pub(super) flags: MapFlags,
    /// The page, and what its owner calls it.
    pub(super) frame: Mfn,
    pub(super) gfn: Gfn,
    pub(super) address: u64,
}

/// The purpose for which a grant is pinned.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Map,
    Copy,
}

/// The state of one domain's grants: those that it grants, and those that it has mapped.
pub(super) struct Grants {
    entries: &'static [EntryV1],
    active: Vec<Active>,
    /// The number of `active` entries in use.
    pinned: usize,
    entries_taken: bool,
    mappings: Vec<Option<MapTrack>>,
    free_handles: VecDeque<u32>,
    maptrack_limit: u32,
}

impl Grants {
    pub(super) fn new(entries: &'static [EntryV1], maptrack_limit: u32) -> Grants {
        Grants {
            entries,
            active: vec![Active::default(); entries.len()],
            pinned: 0,
            entries_taken: false,
            mappings: Vec::new(),
            free_handles: VecDeque::new(),
            maptrack_limit,
        }
    }

    /// The shared table, to its one owner.
    pub(super) fn take_entries(&mut self) -> Option<&'static [EntryV1]> {
        (!std::mem::replace(&mut self.entries_taken, true)).then_some(self.entries)
    }

    /// Its owner is no more.
    pub(super) fn give_back_entries(&mut self) {
        self.entries_taken = false;
    }

    /// Returns the frames that the entries name, but for the toolstack's.
    pub(super) fn granted_frames(&self) -> BTreeSet<Gfn> {
        let entries = self.entries.iter().skip(RESERVED_ENTRIES as usize);
        let used = entries.filter(|entry| entry.flags.load(Ordering::Acquire) != 0);
        used.map(|entry| Gfn(entry.frame.load(Ordering::Relaxed).into()))
            .collect()
    }

    /// The shared table, to look at.
    pub(super) fn entries(&self) -> &'static [EntryV1] {
        self.entries
    }

    /// Returns the number of the domain's grants that are in use.
    pub(super) fn pinned(&self) -> usize {
        self.pinned
    }

    /// Returns the number of grants of others that the domain has mapped.
    pub(super) fn live_mappings(&self) -> usize {
        self.mappings.len() - self.free_handles.len()
    }

    pub(super) fn set_maptrack_limit(&mut self, limit: u32) {
        self.maptrack_limit = limit;
    }

    /// Reserves a map-track entry; handles are used again as late as possible, as in Xen.
    pub(super) fn take_handle(&mut self) -> Option<GrantHandle> {
        if self.live_mappings() >= self.maptrack_limit as usize {
            return None;
        }
        let handle = self.free_handles.pop_front().unwrap_or_else(|| {
            self.mappings.push(None);
            self.mappings.len() as u32 - 1
        });
        Some(GrantHandle(handle))
    }

    pub(super) fn put_handle(&mut self, handle: GrantHandle) {
        self.mappings[handle.0 as usize] = None;
        self.free_handles.push_back(handle.0);
    }

    pub(super) fn set_mapping(&mut self, handle: GrantHandle, mapping: MapTrack) {
        self.mappings[handle.0 as usize] = Some(mapping);
    }

    pub(super) fn mapping(&self, handle: GrantHandle) -> Option<MapTrack> {
        *self.mappings.get(handle.0 as usize)?
    }

    /// Returns what the domain has mapped.
    pub(super) fn mappings(&self) -> impl Iterator<Item = &MapTrack> {
        self.mappings.iter().flatten()
    }

    /// Every handle that maps something.
    pub(super) fn live_handles(&self) -> Vec<GrantHandle> {
        let live = |(at, mapping): (u32, &Option<MapTrack>)| mapping.map(|_| GrantHandle(at));
        (0..).zip(&self.mappings).filter_map(live).collect()
    }
}

/// The address space in which a domain maps other domains' frames.
pub(super) struct ForeignSpace {
    base: usize,
    occupied: Vec<bool>,
    taken: bool,
}

impl ForeignSpace {
    pub(super) fn new(base: usize, pages: usize) -> ForeignSpace {
        ForeignSpace {
            base,
            occupied: vec![false; pages],
            taken: false,
        }
    }

    /// The region's address and pages, to its one owner.
    pub(super) fn take(&mut self) -> Option<(usize, usize)> {
        let first = !std::mem::replace(&mut self.taken, true);
        first.then_some((self.base, self.occupied.len()))
    }

    /// Its owner is no more.
    pub(super) fn give_back(&mut self) {
        self.taken = false;
    }

    /// Returns whether something is mapped at a page; `None` where that is no page of the region.
    pub(super) fn slot(&mut self, address: u64) -> Option<&mut bool> {
        let offset = usize::try_from(address).ok()?.checked_sub(self.base)?;
        if !offset.is_multiple_of(PAGE_SIZE) {
            return None;
        }
        self.occupied.get_mut(offset / PAGE_SIZE)
    }
}

impl super::world::Domain {
    /// Pins one of this domain's grants for `user`; returns its frame.
    pub(super) fn pin(
        &mut self,
        gref: GrantRef,
        user: DomId,
        flags: MapFlags,
        purpose: Purpose,
    ) -> Result<Gfn, GrantStatus> {
        let index = gref.0 as usize;
        let (Some(entry), Some(active)) = (
            self.grants.entries.get(index),
            self.grants.active.get_mut(index),
        ) else {
            return Err(GrantStatus::BAD_GNTREF);
        };
        let before = active.pins;
        let readonly = flags.contains(MapFlags::READONLY);
        if before.any() && active.user != user {
            return Err(GrantStatus::GENERAL_ERROR);
        }
        let after = before
            .plus(Pins::of(flags))
            .ok_or(GrantStatus::GENERAL_ERROR)?;
        if !before.any() || (!readonly && !before.writing()) {
            set_status(entry, before.any(), user, readonly, purpose)?;
            // A copy looks the frame up again even where a mapping has it pinned.
            if !before.any() || purpose == Purpose::Copy {
                let frame = Gfn(u64::from(entry.frame.load(Ordering::Relaxed)));
                let usable = if self.dying || !self.memory.owns(frame) {
                    Err(GrantStatus::BAD_PAGE)
                } else if before.any() && active.frame != frame {
                    Err(GrantStatus::GENERAL_ERROR)
                } else {
                    Ok(frame)
                };
                if let Err(status) = usable {
                    reduce_status(entry, before, readonly);
                    return Err(status);
                }
                active.frame = frame;
            }
        } else if purpose == Purpose::Copy && self.dying {
            return Err(GrantStatus::BAD_DOMAIN);
        }
        active.user = user;
        active.pins = after;
        if !before.any() {
            self.grants.pinned += 1;
            self.memory.pin(active.frame);
        }
        Ok(active.frame)
    }

    /// Undoes a [`pin`](Self::pin).
    pub(super) fn unpin(&mut self, gref: GrantRef, flags: MapFlags) {
        let index = gref.0 as usize;
        let active = &mut self.grants.active[index];
        active.pins = active.pins.minus(Pins::of(flags));
        let readonly = flags.contains(MapFlags::READONLY);
        reduce_status(&self.grants.entries[index], active.pins, readonly);
        if !active.pins.any() {
            self.grants.pinned -= 1;
            self.memory.unpin(active.frame);
        }
    }
}

/// Checks a shared entry and marks it as in use (`_set_status_v1`).
fn set_status(
    entry: &EntryV1,
    pinned: bool,
    user: DomId,
    readonly: bool,
    purpose: Purpose,
) -> Result<(), GrantStatus> {
    let mut mask = TYPE_MASK;
    if purpose == Purpose::Map {
        mask |= SUB_PAGE;
    }
    // The granting domain may change the entry meanwhile; after a few rounds it is to blame.
    for _ in 0..5 {
        let flags = entry.flags.load(Ordering::Acquire);
        let permits = flags & mask == EntryFlags::PERMIT_ACCESS.bits()
            && entry.domain.load(Ordering::Relaxed) == user.0;
        if !pinned && !permits {
            return Err(GrantStatus::GENERAL_ERROR);
        }
        let mut marked = flags | EntryFlags::READING.bits();
        if !readonly {
            if flags & EntryFlags::READONLY.bits() != 0 {
                return Err(GrantStatus::GENERAL_ERROR);
            }
            marked |= EntryFlags::WRITING.bits();
        }
        let swapped =
            entry
                .flags
                .compare_exchange(flags, marked, Ordering::AcqRel, Ordering::Relaxed);
        if swapped.is_ok() {
            return Ok(());
        }
    }
    Err(GrantStatus::GENERAL_ERROR)
}

/// Clears from a shared entry what its pins no longer justify (`reduce_status_for_pin`).
fn reduce_status(entry: &EntryV1, pins: Pins, readonly: bool) {
    let mut clear = EntryFlags::empty();
    if !readonly && !pins.writing() {
        clear |= EntryFlags::WRITING;
    }
    if !pins.any() {
        clear |= EntryFlags::READING;
    }
    entry.flags.fetch_and(!clear.bits(), Ordering::AcqRel);
}
