//! A queue's data pages that only a device accesses: mapped and unmapped in batches, and found by bus address.

use crate::map_pool::{Calls, MapPoolFull};
use crate::memory::{OutOfMemory, filled, room_for};
use crate::page_states::{PageState, PageStates};
use crate::{EAGAIN_TRIES, GrantAccess};
use alloc::vec::Vec;
use bulkhead_xen::abi::grant_table::{MapGrantRef, UnmapGrantRef};
use bulkhead_xen::{DmaAddr, DomId, GrantHandle, GrantRef, GrantStatus, Hypervisor};
use core::fmt;

/// A fixed number of pages of one frontend, each mapped for the device alone (`GNTMAP_device_map`): such a
/// mapping is a pin of the page and an entry of the IOMMU. It has no address and no page-table entry, so this takes
/// none of the address space for foreign pages. All memory it needs is taken when it is made.
///
/// Xen lets only PV domains have such mappings; the devices of others, if Xen gave them any, would have every
/// mapped page anyway.
pub struct DevicePool<H: Hypervisor> {
    hypervisor: H,
    domain: DomId,
    /// In the upper half of each mapping's number.
    number: u16,
    states: PageStates,
    /// The bus addresses of the mapped pages.
    addresses: Vec<Option<DmaAddr>>,
    /// The entries of the next hypercalls, and the pages that they are for: an entry has no address that says so.
    maps: Vec<MapGrantRef>,
    mapping: Vec<u16>,
    unmaps: Vec<UnmapGrantRef>,
    unmapping: Vec<u16>,
    /// The number of pages that were not mapped for want of map slots, since
    /// [`take_slotless`](Self::take_slotless) was last called.
    slotless: usize,
    calls: Calls,
}

/// A page of a [`DevicePool`] that is in use, from [`DevicePool::queue_map`] to [`DevicePool::queue_unmap`]. It is
/// neither copied nor made elsewhere, so a page cannot be unmapped twice, or while it is still used.
///
/// A mapping that is dropped instead keeps its page until the pool is dropped, which unmaps it.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "its page is in use until it is given to `queue_unmap`"]
pub struct DeviceMapping {
    pool: u16,
    page: u16,
}

/// The most pages of a pool.
const MOST_PAGES: usize = u16::MAX as usize;

impl<H: Hypervisor> DevicePool<H> {
    /// Makes a pool of `pages` pages. `number` tells it from others.
    ///
    /// # Panics
    /// If there are more than 65,535 pages.
    pub(crate) fn new(
        hypervisor: H,
        domain: DomId,
        number: u16,
        pages: usize,
    ) -> Result<Self, OutOfMemory> {
        assert!(pages <= MOST_PAGES, "{pages} pages");
        Ok(DevicePool {
            hypervisor,
            domain,
            number,
            states: PageStates::new(pages)?,
            addresses: filled(pages, |_| None)?,
            maps: room_for(pages)?,
            mapping: room_for(pages)?,
            unmaps: room_for(pages)?,
            unmapping: room_for(pages)?,
            slotless: 0,
            calls: Calls::default(),
        })
    }

    /// Returns the domain whose grants it maps.
    pub fn domain(&self) -> DomId {
        self.domain
    }

    /// Returns the number of pages that can still be queued.
    pub fn free_pages(&self) -> usize {
        self.states.free_pages()
    }

    /// Returns counts of the hypercalls made so far.
    pub fn calls(&self) -> Calls {
        self.calls
    }

    /// Returns whether no page is mapped or queued.
    pub fn is_unused(&self) -> bool {
        self.states.are_all_free()
    }

    /// The pool's page that a mapping stands for.
    ///
    /// # Panics
    /// If the mapping is another pool's.
    #[inline]
    fn index(&self, mapping: &DeviceMapping) -> usize {
        assert!(
            mapping.pool == self.number,
            "a mapping is used with the pool that gave it out"
        );
        mapping.page.into()
    }

    /// Queues a page to be mapped by the next [`map_queued`](Self::map_queued): for the device to read, or to read
    /// and write.
    #[inline(never)]
    pub fn queue_map(
        &mut self,
        gref: GrantRef,
        access: GrantAccess,
    ) -> Result<DeviceMapping, MapPoolFull> {
        let page = self.states.take_free().ok_or(MapPoolFull)?;
        let state = PageState::unmapped(GrantStatus::GENERAL_ERROR);
        self.states.set(page, state);
        let map = MapGrantRef::for_device(access.device_flags(), gref, self.domain);
        self.maps.push(map);
        // There are at most `MOST_PAGES`.
        let page = page as u16;
        self.mapping.push(page);
        Ok(DeviceMapping {
            pool: self.number,
            page,
        })
    }

    /// Maps all queued pages, in one hypercall. [`dma_addr`](Self::dma_addr) returns the outcome for each.
    pub fn map_queued(&mut self) {
        for _ in 0..EAGAIN_TRIES {
            if self.maps.is_empty() {
                return;
            }
            self.calls.maps += 1;
            self.calls.pages += self.maps.len() as u64;
            // SAFETY: they name no address: nothing is mapped where this domain could access it.
            if let Err(error) = unsafe { self.hypervisor.map_grants(&mut self.maps) } {
                log::error!(
                    "cannot map {} grants of domain {} for a device: {error}",
                    self.maps.len(),
                    self.domain
                );
                break;
            }
            let mut again = 0;
            for entry in 0..self.maps.len() {
                let (map, page) = (self.maps[entry], self.mapping[entry]);
                let at = usize::from(page);
                let state = match map.status {
                    GrantStatus::OKAY => PageState::mapped(map.handle),
                    refused => PageState::unmapped(refused),
                };
                self.states.set(at, state);
                self.addresses[at] = map.dma_addr();
                if map.status == GrantStatus::EAGAIN {
                    (self.maps[again], self.mapping[again]) = (map, page);
                    again += 1;
                } else if map.status == GrantStatus::NO_SPACE {
                    self.slotless += 1;
                }
            }
            self.maps.truncate(again);
            self.mapping.truncate(again);
        }
        self.maps.clear();
        self.mapping.clear();
    }

    /// Returns the number of pages for which Xen had no map slot since the last call. They can be copied.
    pub fn take_slotless(&mut self) -> usize {
        core::mem::take(&mut self.slotless)
    }

    /// Returns where the device finds a mapped page, or the reason why it is not mapped.
    #[inline]
    pub fn dma_addr(&self, mapping: &DeviceMapping) -> Result<DmaAddr, GrantStatus> {
        let page = self.index(mapping);
        match self.states.get(page) {
            PageState::Mapped(_) => self.addresses[page].ok_or(GrantStatus::BAD_DEV_ADDR),
            PageState::Unmapped(status) => Err(GrantStatus(i16::from_ne_bytes(status))),
            PageState::Free(_) | PageState::Leaving | PageState::Stuck => {
                Err(GrantStatus::BAD_HANDLE)
            }
        }
    }

    /// Queues a page to be unmapped by the next [`unmap_queued`](Self::unmap_queued); a page that was refused
    /// becomes free at once. The device has finished with the page: its owner gets it back.
    #[inline]
    pub fn queue_unmap(&mut self, mapping: DeviceMapping) {
        self.release(self.index(&mapping));
    }

    // A call for each page costs little beside the hypercall's work on it, and saves kilobytes.
    #[inline(never)]
    fn release(&mut self, page: usize) {
        match self.states.get(page) {
            PageState::Mapped(handle) => {
                let handle = GrantHandle(u32::from_ne_bytes(handle));
                let unmap = UnmapGrantRef::for_device(self.addresses[page], handle);
                self.unmaps.push(unmap);
                self.unmapping.push(page as u16);
                self.states.set(page, PageState::Leaving);
            }
            PageState::Unmapped(_) => {
                // It may still be queued for mapping.
                let queued = self.mapping.iter().position(|&at| usize::from(at) == page);
                if let Some(entry) = queued {
                    self.maps.swap_remove(entry);
                    self.mapping.swap_remove(entry);
                }
                self.states.set_free(page);
            }
            PageState::Free(_) | PageState::Leaving | PageState::Stuck => {}
        }
    }

    /// Unmaps all queued pages, in one hypercall, and returns how many there were. If Xen refuses it as a whole, they
    /// stay queued for the next call.
    pub fn unmap_queued(&mut self) -> usize {
        let pages = self.unmaps.len();
        if pages == 0 {
            return 0;
        }
        self.calls.unmaps += 1;
        // SAFETY: the pages were given up by `queue_unmap`, whose callers had finished with them; nothing was
        // ever mapped where this domain could access it.
        if let Err(error) = unsafe { self.hypervisor.unmap_grants(&mut self.unmaps) } {
            let domain = self.domain;
            log::error!("cannot unmap {pages} grants of domain {domain} from a device: {error}");
            return 0;
        }
        for (unmap, &page) in self.unmaps.iter().zip(&self.unmapping) {
            if unmap.status.is_okay() {
                self.states.set_free(page.into());
            } else {
                let (status, domain) = (unmap.status, self.domain);
                log::error!("cannot unmap a grant of domain {domain} from a device: {status}");
                self.states.set(page.into(), PageState::Stuck);
            }
        }
        self.unmaps.clear();
        self.unmapping.clear();
        pages
    }

    /// Leaves every page that is mapped as it is, whatever becomes of the pool: the device may still access it.
    /// Returns how many these are.
    pub fn leave_mapped(&mut self) -> usize {
        self.states.leave_mapped()
    }
}

impl<H: Hypervisor> Drop for DevicePool<H> {
    /// Unmaps whatever is still mapped: mappings whose owners were dropped on the way.
    fn drop(&mut self) {
        for page in 0..self.states.len() {
            self.release(page);
        }
        self.unmap_queued();
    }
}

impl<H: Hypervisor> fmt::Debug for DevicePool<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DevicePool")
            .field("domain", &self.domain)
            .field("pages", &self.states.len())
            .field("free", &self.free_pages())
            .finish_non_exhaustive()
    }
}
