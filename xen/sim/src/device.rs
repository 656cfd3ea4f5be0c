//! A device that was passed through to a simulated domain: it reads and writes by bus address, and an IOMMU
//! decides which.
//!
//! The IOMMU tables are those that Xen keeps for a PV domain. A bus address is that of the machine frame. The tables
//! hold the domain's own writable pages, and the pages of other domains that it has mapped, with `GNTMAP_device_map` or
//! without; those that it has mapped read-only can only be read.
//!
//! When a domain ends, its mappings are removed first, as in Xen (`domain_teardown`). The tables stay as they are, and
//! the devices with them, until [`Sim::release_devices`](super::Sim::release_devices). What a device writes until then,
//! it may write to pages that their owners use again.

use super::grants::MapTrack;
use super::memory;
use super::process;
use super::stats::Violation;
use super::world::{DomainKind, Shared, World};
use bulkhead_xen::abi::grant_table::MapFlags;
use bulkhead_xen::{DmaAddr, DomId, Gfn, Mfn, PAGE_SHIFT, PAGE_SIZE};
use std::fmt;

/// A device that was given to a domain ([`SimDomain::add_device`](super::SimDomain::add_device)).
#[derive(Clone)]
pub struct SimDevice {
    world: Shared,
    domain: DomId,
}

/// An access that the IOMMU refused. It is also a [`Violation`] of the domain, while that lives, since it is the
/// domain that gives addresses to its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaFault {
    /// The bus address.
    pub address: u64,
}

impl fmt::Display for DmaFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the IOMMU refuses bus address {:#x}", self.address)
    }
}

impl std::error::Error for DmaFault {}

impl SimDevice {
    pub(super) fn new(world: Shared, domain: DomId) -> SimDevice {
        SimDevice { world, domain }
    }

    /// Reads memory from a bus address on. Fails at the first page that the IOMMU tables do not have.
    pub fn read(&self, from: DmaAddr, bytes: &mut [u8]) -> Result<(), DmaFault> {
        let mut world = self.world.lock();
        let (mut at, mut rest) = (from.get(), bytes);
        while !rest.is_empty() {
            let part;
            (part, rest) = rest.split_at_mut(in_page(at).min(rest.len()));
            let address = world.translate(self.domain, at, false)?;
            memory::device_reads(address, part);
            at += part.len() as u64;
        }
        Ok(())
    }

    /// Writes memory from a bus address on. Fails at the first page that the IOMMU tables do not have as writable.
    pub fn write(&self, to: DmaAddr, bytes: &[u8]) -> Result<(), DmaFault> {
        let mut world = self.world.lock();
        let (mut at, mut rest) = (to.get(), bytes);
        while !rest.is_empty() {
            let part;
            (part, rest) = rest.split_at(in_page(at).min(rest.len()));
            let address = world.translate(self.domain, at, true)?;
            memory::device_writes(address, part);
            at += part.len() as u64;
        }
        Ok(())
    }
}

impl fmt::Debug for SimDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimDevice({})", self.domain)
    }
}

/// An entry of the tables of a domain that has ended.
pub(super) struct LateEntry {
    frame: Mfn,
    writable: bool,
    /// The address at which the process finds the page, which stays as long as the machine.
    page: usize,
}

/// Returns the number of bytes from a bus address to the end of its page.
fn in_page(address: u64) -> usize {
    PAGE_SIZE - address as usize % PAGE_SIZE
}

impl World {
    /// Returns the address at which the process finds the byte at a bus address of a domain's devices.
    fn translate(&mut self, id: DomId, bus: u64, writes: bool) -> Result<usize, DmaFault> {
        let page = self.device_page(id, Mfn(bus >> PAGE_SHIFT), writes);
        let offset = bus as usize % PAGE_SIZE;
        page.map(|page| page + offset).ok_or_else(|| {
            let (domain, address) = (id, bus);
            if self.alive_mut(id).is_some() {
                self.violations.push(Violation::Dma { domain, address });
            }
            DmaFault { address }
        })
    }

    /// Keeps the entries for the pages that a domain has mapped, which are about to be unmapped, as its devices stay.
    pub(super) fn keep_device_entries(&mut self, id: DomId) {
        let Some(domain) = self.domain(id).filter(|domain| domain.devices > 0) else {
            return;
        };
        let entry = |mapping: &MapTrack| {
            let owner = self.domain(mapping.owner)?;
            Some(LateEntry {
                frame: mapping.frame,
                writable: !mapping.flags.contains(MapFlags::READONLY),
                page: owner.memory.address_of(mapping.gfn)?,
            })
        };
        let entries = domain.grants.mappings().filter_map(entry).collect();
        self.late_entries.insert(id, entries);
    }

    fn late_page(&self, id: DomId, frame: Mfn, writes: bool) -> Option<usize> {
        let entries = self.late_entries.get(&id)?;
        let allows = |entry: &&LateEntry| entry.frame == frame && (entry.writable || !writes);
        entries.iter().find(allows).map(|entry| entry.page)
    }

    fn device_page(&self, id: DomId, frame: Mfn, writes: bool) -> Option<usize> {
        let Some(domain) = self.domain(id).filter(|domain| !domain.dying) else {
            return self.late_page(id, frame, writes);
        };
        if domain.kind != DomainKind::Pv {
            return None;
        }
        if domain.memory.is_present(frame.into()) || domain.heap_for_devices.contains(&frame) {
            return domain.memory.address_of(frame.into());
        }
        let mapping = domain.grants.mappings().find(|mapping| {
            mapping.frame == frame && !(writes && mapping.flags.contains(MapFlags::READONLY))
        })?;
        if mapping.flags.contains(MapFlags::HOST_MAP) {
            return usize::try_from(mapping.address).ok();
        }
        self.domain(mapping.owner)?.memory.address_of(mapping.gfn)
    }

    /// Returns the bus address at which the devices of a domain find a byte of its memory. A page of its heap is in the
    /// tables once its address was asked for.
    pub(super) fn bus_address(&mut self, id: DomId, address: usize) -> Option<DmaAddr> {
        let is_heap = self.machine.is_heap(address);
        let domain = self.domain_mut(id)?;
        if domain.kind != DomainKind::Pv {
            return None;
        }
        let frame: Gfn = match domain.memory.frame_of(address) {
            Some(frame) => frame,
            None if is_heap => domain.memory.heap_frame(address),
            None => return None,
        };
        let frame = domain.memory.machine_frame(frame);
        // Xen puts pages into the tables that the domain has mapped writable, and no others.
        if is_heap && !domain.heap_for_devices.contains(&frame) && process::is_writable(address) {
            domain.heap_for_devices.insert(frame);
        }
        Some(frame.dma_addr()?.offset(address % PAGE_SIZE))
    }
}
