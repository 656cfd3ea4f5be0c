//! Images in the memory of a simulated domain, which can give it back.

#![allow(dead_code, reason = "each test file uses a part of it")]

use super::{Guest, submit};
use bulkhead_images::testing::{CompleteNow, OpenNow};
use bulkhead_images::{
    Access, BlockDevice, Catalog, DiscardMode, GrowError, ImageMemory, Io, IoError, IoQueue, Op,
    Sector, Stores, Submitted, Tag,
};
use bulkhead_xen::PAGE_SIZE;
use bulkhead_xen_sim::{DomainConfig, Sim, SimDomain};
use std::sync::Arc;

/// A driver domain with a ramdisk.
pub struct Domain {
    pub sim: Sim,
    pub domain: SimDomain,
    pub catalog: Arc<Catalog>,
    pub stores: Stores,
    /// The number of pages that it owned with everything in place.
    pub owned: usize,
}

impl Domain {
    /// Returns a domain with that ramdisk. Discarded memory goes back to Xen.
    pub fn with(ramdisk: &[u8]) -> Domain {
        Domain::discarding(DiscardMode::Release, ramdisk)
    }

    /// Returns a domain with that ramdisk and that discard mode.
    pub fn discarding(mode: DiscardMode, ramdisk: &[u8]) -> Domain {
        let sim = Sim::new();
        let domain = sim.add_domain_with(DomainConfig {
            memory_pages: 4096,
            ..DomainConfig::default()
        });
        let first = domain.alloc_pages(ramdisk.len().div_ceil(PAGE_SIZE));
        // SAFETY: just allocated, and not used otherwise until the simulation ends.
        let memory = unsafe {
            first
                .as_ptr()
                .copy_from_nonoverlapping(ramdisk.as_ptr(), ramdisk.len());
            ImageMemory::new(first, ramdisk.len())
        };
        let stores = Stores::new(
            Catalog::from_module(memory)
                .with_discard(mode)
                .with_reservation(Arc::new(domain.hypervisor())),
        );
        Domain {
            catalog: stores.catalog().clone(),
            stores,
            owned: domain.memory_pages(),
            domain,
            sim,
        }
    }

    /// Returns the number of pages that it has given back and not got again.
    pub fn missing(&self) -> usize {
        self.owned - self.domain.memory_pages()
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.sim.assert_no_violations();
        }
    }
}

/// Grows an image, to the end. Returns the number of bytes that it had before.
pub fn grow(catalog: &Catalog, name: &str, size: u64) -> Result<u64, GrowError> {
    let mut resize = catalog.grow(name, size)?;
    loop {
        if let Some(old) = resize.step() {
            return Ok(old);
        }
    }
}

/// Opens a target of the domain's.
pub fn open(domain: &Domain, target: &str, access: Access) -> Arc<dyn BlockDevice> {
    let device = domain.stores.open_now(target, access, "domain 5, xvda");
    device.expect("it can be opened")
}

/// Returns content without a zero in it.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n % 251) as u8 + 1).collect()
}

/// Discards to the end.
pub fn discard(queue: &mut dyn IoQueue, sector: u64, count: u64) -> Result<(), IoError> {
    let op = Op::Discard {
        sector: Sector(sector),
        count: Sector(count),
        secure: false,
    };
    let io = Io { op, segments: &[] };
    if let Submitted::Done(result) = queue.submit(Tag(77), io) {
        return result;
    }
    for _ in 0..10_000_000 {
        let mut told = None;
        queue.complete(&mut |tag, result| told = Some((tag, result)));
        if let Some((tag, result)) = told {
            assert_eq!(tag, Tag(77));
            return result;
        }
        std::thread::yield_now();
    }
    panic!("a discard does not come to its end");
}

/// Writes `data` in segments of up to a page.
pub fn write(queue: &mut dyn IoQueue, sector: u64, data: &[u8]) -> Result<(), IoError> {
    let buffers: Vec<&[u8]> = data.chunks(PAGE_SIZE).collect();
    let mut guest = Guest::with(&buffers);
    let segments = guest.segments();
    let sector = Sector(sector);
    submit(queue, Op::write(sector), &segments)
}

/// Reads `count` sectors.
pub fn read(queue: &mut dyn IoQueue, sector: u64, count: usize) -> Result<Vec<u8>, IoError> {
    let lengths: Vec<usize> = vec![0; count * 512]
        .chunks(PAGE_SIZE)
        .map(<[u8]>::len)
        .collect();
    let mut guest = Guest::filled(&lengths);
    let segments = guest.segments();
    let sector = Sector(sector);
    submit(queue, Op::Read { sector }, &segments)?;
    Ok(guest.content())
}

/// Returns the content of the whole device.
pub fn all(device: &dyn BlockDevice) -> Vec<u8> {
    let sectors = device.geometry().sectors.0;
    read(&mut *device.queue(), 0, sectors as usize).expect("all of it can be read")
}
