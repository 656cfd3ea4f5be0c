//! A device that was passed through to a simulated domain: it reads and writes by bus address, and an IOMMU
//! decides which.
//!
//! The tables are those that Xen keeps for a PV domain: each machine frame at its own number, and in them the
//! domain's own pages, and those of others for as long as the domain has them mapped, read-only ones for
//! reading.

use super::memory;
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

/// The IOMMU lets the device access nothing there. This is a [`Violation`] of the domain's, too: it is the
/// domain that names addresses to its device.
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

    /// Reads memory from a bus address on.
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

    /// Writes memory from a bus address on.
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

/// Returns the number of bytes from a bus address to the end of its page.
fn in_page(address: u64) -> usize {
    PAGE_SIZE - address as usize % PAGE_SIZE
}

impl World {
    /// Returns where the process finds what a domain's devices find at a bus address.
    fn translate(&mut self, id: DomId, bus: u64, writes: bool) -> Result<usize, DmaFault> {
        let page = self.device_page(id, Mfn(bus >> PAGE_SHIFT), writes);
        let offset = bus as usize % PAGE_SIZE;
        page.map(|page| page + offset).ok_or_else(|| {
            let (domain, address) = (id, bus);
            self.violations.push(Violation::Dma { domain, address });
            DmaFault { address }
        })
    }

    fn device_page(&self, id: DomId, frame: Mfn, writes: bool) -> Option<usize> {
        let domain = self.domain(id).filter(|domain| !domain.dying)?;
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

    /// Returns where the devices of a domain find a page of its own; its heap is in the tables once it was asked
    /// about.
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
        if is_heap {
            domain.heap_for_devices.insert(frame);
        }
        Some(frame.dma_addr()?.offset(address % PAGE_SIZE))
    }
}
