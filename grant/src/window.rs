//! A queue's data pages: mapped and unmapped in batches, one hypercall each.

use crate::region::Place;
use crate::{Access, EAGAIN_TRIES};
use alloc::vec::Vec;
use bulkhead_xen::abi::grant_table::{MapGrantRef, UnmapGrantRef};
use bulkhead_xen::{
    DomId, Errno, Frame, GrantHandle, GrantRef, GrantStatus, Hypervisor, PAGE_SHIFT,
};
use core::fmt;
use core::ptr::NonNull;

/// A fixed number of pages of one frontend. All memory it needs is taken when it is made.
pub struct Window<H: Hypervisor> {
    door: H,
    domain: DomId,
    place: Place,
    states: Vec<State>,
    free: Vec<u32>,
    maps: Vec<MapGrantRef>,
    /// The slots of `maps`, entry by entry; likewise for `unmaps`.
    map_slots: Vec<u32>,
    unmaps: Vec<UnmapGrantRef>,
    unmap_slots: Vec<u32>,
}

/// A page's place in its window, from [`Window::queue_map`] to [`Window::queue_unmap`]. It is
/// neither copied nor made elsewhere, so a page cannot be unmapped twice or used afterwards.
#[derive(Debug, PartialEq, Eq)]
pub struct Slot(u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    /// Queued for mapping, or refused with a status.
    Unmapped(GrantStatus),
    Mapped(GrantHandle),
    /// Unmapping failed: Xen may still have the page there. Never used again.
    Stuck,
}

/// The window has no page left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowFull;

impl fmt::Display for WindowFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("all pages of the window are in use")
    }
}

impl core::error::Error for WindowFull {}

impl<H: Hypervisor> Window<H> {
    pub(crate) fn new(door: H, domain: DomId, place: Place) -> Self {
        let pages = place.pages();
        Window {
            door,
            domain,
            place,
            states: alloc::vec![State::Free; pages],
            free: (0..pages as u32).rev().collect(),
            maps: Vec::with_capacity(pages),
            map_slots: Vec::with_capacity(pages),
            unmaps: Vec::with_capacity(pages),
            unmap_slots: Vec::with_capacity(pages),
        }
    }

    /// How many pages can still be queued.
    pub fn free_slots(&self) -> usize {
        self.free.len()
    }

    /// Notes a page to be mapped by the next [`map_queued`](Self::map_queued).
    #[inline]
    pub fn queue_map(&mut self, gref: GrantRef, access: Access) -> Result<Slot, WindowFull> {
        let slot = self.free.pop().ok_or(WindowFull)?;
        let address = self.place.page(slot as usize).addr().get() as u64;
        self.maps
            .push(MapGrantRef::new(address, access.flags(), gref, self.domain));
        self.map_slots.push(slot);
        self.states[slot as usize] = State::Unmapped(GrantStatus::GENERAL_ERROR);
        Ok(Slot(slot))
    }

    /// Maps everything noted, in one hypercall. What became of each page is its
    /// [`address`](Self::address)'s to tell.
    pub fn map_queued(&mut self) {
        for _ in 0..EAGAIN_TRIES {
            if self.maps.is_empty() {
                return;
            }
            // SAFETY: each address is that of a slot of ours which was free, where nothing is
            // mapped.
            if let Err(error) = unsafe { self.door.map_grants(&mut self.maps) } {
                self.refuse_batch(error);
                break;
            }
            let mut again = 0;
            for entry in 0..self.maps.len() {
                let map = self.maps[entry];
                let slot = self.map_slots[entry];
                self.states[slot as usize] = match map.status {
                    GrantStatus::OKAY => State::Mapped(map.handle),
                    refused => State::Unmapped(refused),
                };
                if map.status == GrantStatus::EAGAIN {
                    self.maps[again] = map;
                    self.map_slots[again] = slot;
                    again += 1;
                }
            }
            self.maps.truncate(again);
            self.map_slots.truncate(again);
        }
        self.maps.clear();
        self.map_slots.clear();
    }

    /// The hypercall as a whole was refused: no entry was looked at, and all stay unmapped.
    #[cold]
    fn refuse_batch(&mut self, error: Errno) {
        log::error!(
            "mapping {} grants of domain {}: {error}",
            self.maps.len(),
            self.domain
        );
    }

    /// Where a page is mapped, or why it is not.
    #[inline]
    pub fn address(&self, slot: &Slot) -> Result<NonNull<u8>, GrantStatus> {
        match self.states[slot.0 as usize] {
            State::Mapped(_) => Ok(self.place.page(slot.0 as usize)),
            State::Unmapped(status) => Err(status),
            State::Free | State::Stuck => Err(GrantStatus::BAD_HANDLE),
        }
    }

    /// The guest frame at which a page is mapped, as a device behind the IOMMU would name it.
    #[inline]
    pub fn frame(&self, slot: &Slot) -> Frame {
        let address = self.place.page(slot.0 as usize).addr().get();
        Frame((address >> PAGE_SHIFT) as u64)
    }

    /// Notes a page to be unmapped by the next [`unmap_queued`](Self::unmap_queued); a page that
    /// was refused is just given back. Whoever uses the page's address has finished with it.
    #[inline]
    pub fn queue_unmap(&mut self, slot: Slot) {
        match self.states[slot.0 as usize] {
            State::Mapped(handle) => {
                let address = self.place.page(slot.0 as usize).addr().get() as u64;
                self.unmaps.push(UnmapGrantRef::new(address, handle));
                self.unmap_slots.push(slot.0);
            }
            State::Unmapped(_) => {
                // It may still be noted for mapping.
                if let Some(entry) = self.map_slots.iter().position(|&queued| queued == slot.0) {
                    self.maps.swap_remove(entry);
                    self.map_slots.swap_remove(entry);
                }
                self.states[slot.0 as usize] = State::Free;
                self.free.push(slot.0);
            }
            State::Free | State::Stuck => {}
        }
    }

    /// Unmaps everything noted, in one hypercall.
    pub fn unmap_queued(&mut self) {
        if self.unmaps.is_empty() {
            return;
        }
        // SAFETY: the slots were given up by `queue_unmap`, whose callers had finished with them.
        let outcome = unsafe { self.door.unmap_grants(&mut self.unmaps) };
        for (unmap, &slot) in self.unmaps.iter().zip(&self.unmap_slots) {
            let done = outcome.is_ok() && unmap.status.is_okay();
            self.states[slot as usize] = if done {
                self.free.push(slot);
                State::Free
            } else {
                log::error!(
                    "unmapping a grant of domain {}: {}; its page stays out of use",
                    self.domain,
                    match outcome {
                        Ok(()) => unmap.status,
                        Err(_) => GrantStatus::GENERAL_ERROR,
                    }
                );
                State::Stuck
            };
        }
        self.unmaps.clear();
        self.unmap_slots.clear();
    }
}

impl<H: Hypervisor> Drop for Window<H> {
    /// Unmaps whatever is still mapped: slots whose owners were dropped on the way.
    fn drop(&mut self) {
        self.unmap_queued();
        for slot in 0..self.states.len() as u32 {
            if let State::Mapped(_) = self.states[slot as usize] {
                self.queue_unmap(Slot(slot));
            }
        }
        self.unmap_queued();
        if self.states.contains(&State::Stuck) {
            self.place.abandon();
        }
    }
}
