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
    /// The pages of `maps`, entry by entry; likewise for `unmaps`.
    map_pages: Vec<u32>,
    unmaps: Vec<UnmapGrantRef>,
    unmap_pages: Vec<u32>,
    calls: Calls,
}

/// How often Xen was asked so far, and for how much.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// Hypercalls that mapped.
    pub maps: u64,
    /// Pages that they were to map.
    pub pages: u64,
    /// Hypercalls that unmapped.
    pub unmaps: u64,
}

/// A page's place in its window, from [`Window::queue_map`] to [`Window::queue_unmap`]. It is
/// neither copied nor made elsewhere, so a page cannot be unmapped twice or used afterwards.
///
/// One that is dropped instead keeps its page until the window is dropped, which unmaps it.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "its page is in use until it is given to `queue_unmap`"]
pub struct Slot(
    /// The page, counted from the start of the region, so that no other window takes it for its own.
    u32,
);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    /// Queued for mapping, or refused with a status.
    Unmapped(GrantStatus),
    Mapped(GrantHandle),
    /// Queued for unmapping.
    Leaving,
    /// Unmapping was refused: Xen may still have the page there. Never used again.
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
            map_pages: Vec::with_capacity(pages),
            unmaps: Vec::with_capacity(pages),
            unmap_pages: Vec::with_capacity(pages),
            calls: Calls::default(),
        }
    }

    /// The domain whose grants it maps.
    pub fn domain(&self) -> DomId {
        self.domain
    }

    /// The address of one of the window's pages, whatever is there.
    pub(crate) fn page(&self, index: usize) -> NonNull<u8> {
        self.place.page(index)
    }

    /// How many pages can still be queued.
    pub fn free_slots(&self) -> usize {
        self.free.len()
    }

    /// What was asked of Xen so far.
    pub fn calls(&self) -> Calls {
        self.calls
    }

    /// Whether no page is mapped or queued.
    pub fn is_unused(&self) -> bool {
        self.free.len() == self.states.len()
    }

    /// The window's page that a slot stands for.
    ///
    /// # Panics
    /// If the slot is another window's.
    #[inline]
    fn index(&self, slot: &Slot) -> usize {
        let index = self.place.index(slot.0 as usize);
        index.expect("a slot is used with the window that gave it out")
    }

    /// Notes a page to be mapped by the next [`map_queued`](Self::map_queued).
    #[inline]
    pub fn queue_map(&mut self, gref: GrantRef, access: Access) -> Result<Slot, WindowFull> {
        let page = self.free.pop().ok_or(WindowFull)?;
        self.maps.push(MapGrantRef::new(
            self.place.address(page as usize),
            access.flags(),
            gref,
            self.domain,
        ));
        self.map_pages.push(page);
        self.states[page as usize] = State::Unmapped(GrantStatus::GENERAL_ERROR);
        Ok(Slot(self.place.number(page as usize) as u32))
    }

    /// Maps everything noted, in one hypercall. What became of each page is its
    /// [`address`](Self::address)'s to tell.
    pub fn map_queued(&mut self) {
        for _ in 0..EAGAIN_TRIES {
            if self.maps.is_empty() {
                return;
            }
            self.calls.maps += 1;
            self.calls.pages += self.maps.len() as u64;
            // SAFETY: each address is that of a slot of ours which was free, where nothing is
            // mapped.
            if let Err(error) = unsafe { self.door.map_grants(&mut self.maps) } {
                self.refuse_batch(error);
                break;
            }
            let mut again = 0;
            for entry in 0..self.maps.len() {
                let map = self.maps[entry];
                let page = self.map_pages[entry];
                self.states[page as usize] = match map.status {
                    GrantStatus::OKAY => State::Mapped(map.handle),
                    refused => State::Unmapped(refused),
                };
                if map.status == GrantStatus::EAGAIN {
                    self.maps[again] = map;
                    self.map_pages[again] = page;
                    again += 1;
                }
            }
            self.maps.truncate(again);
            self.map_pages.truncate(again);
        }
        self.maps.clear();
        self.map_pages.clear();
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
        let page = self.index(slot);
        match self.states[page] {
            State::Mapped(_) => Ok(self.place.page(page)),
            State::Unmapped(status) => Err(status),
            State::Free | State::Leaving | State::Stuck => Err(GrantStatus::BAD_HANDLE),
        }
    }

    /// The guest frame at which a page is mapped, as a device behind the IOMMU would name it.
    #[inline]
    pub fn frame(&self, slot: &Slot) -> Frame {
        Frame(self.place.address(self.index(slot)) >> PAGE_SHIFT)
    }

    /// Notes a page to be unmapped by the next [`unmap_queued`](Self::unmap_queued); a page that
    /// was refused is just given back. Whoever uses the page's address has finished with it.
    #[inline]
    pub fn queue_unmap(&mut self, slot: Slot) {
        self.release(self.index(&slot));
    }

    #[inline]
    fn release(&mut self, page: usize) {
        match self.states[page] {
            State::Mapped(handle) => {
                let address = self.place.address(page);
                self.unmaps.push(UnmapGrantRef::new(address, handle));
                self.unmap_pages.push(page as u32);
                self.states[page] = State::Leaving;
            }
            State::Unmapped(_) => {
                // It may still be noted for mapping.
                if let Some(entry) = self.map_pages.iter().position(|&at| at as usize == page) {
                    self.maps.swap_remove(entry);
                    self.map_pages.swap_remove(entry);
                }
                self.states[page] = State::Free;
                self.free.push(page as u32);
            }
            State::Free | State::Leaving | State::Stuck => {}
        }
    }

    /// Unmaps everything noted, in one hypercall. Should Xen refuse that as a whole, the pages
    /// stay noted for the next time.
    pub fn unmap_queued(&mut self) {
        if self.unmaps.is_empty() {
            return;
        }
        self.calls.unmaps += 1;
        // SAFETY: the pages were given up by `queue_unmap`, whose callers had finished with them.
        if let Err(error) = unsafe { self.door.unmap_grants(&mut self.unmaps) } {
            let (pages, domain) = (self.unmaps.len(), self.domain);
            log::error!("unmapping {pages} grants of domain {domain}: {error}");
            return;
        }
        for (unmap, &page) in self.unmaps.iter().zip(&self.unmap_pages) {
            self.states[page as usize] = if unmap.status.is_okay() {
                self.free.push(page);
                State::Free
            } else {
                let (status, domain) = (unmap.status, self.domain);
                log::error!("unmapping a grant of domain {domain}: {status}; its page is lost");
                State::Stuck
            };
        }
        self.unmaps.clear();
        self.unmap_pages.clear();
    }
}

impl<H: Hypervisor> Drop for Window<H> {
    /// Unmaps whatever is still mapped: slots whose owners were dropped on the way.
    fn drop(&mut self) {
        for page in 0..self.states.len() {
            self.release(page);
        }
        self.unmap_queued();
        if !self.is_unused() {
            self.place.abandon();
        }
    }
}

impl<H: Hypervisor> fmt::Debug for Window<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Window")
            .field("domain", &self.domain)
            .field("pages", &self.states.len())
            .field("free", &self.free.len())
            .finish_non_exhaustive()
    }
}
