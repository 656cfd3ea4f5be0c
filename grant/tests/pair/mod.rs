//! A backend that maps and a frontend that grants, in the simulated Xen.
#![allow(dead_code, reason = "each test program uses its part")]

use bulkhead_grant::Region;
use bulkhead_xen::abi::grant_table::EntryFlags;
use bulkhead_xen::{DomId, GrantRef};
use bulkhead_xen_sim::{DomainConfig, DomainKind, Sim, SimDomain, SimVcpu};
use core::ptr::NonNull;

pub struct Pair {
    pub sim: Sim,
    pub backend: SimDomain,
    pub frontend: SimDomain,
    pub region: Region<SimVcpu>,
}

impl Pair {
    pub fn new() -> Pair {
        Pair::of(DomainKind::Pvh)
    }

    /// With a backend of that kind.
    pub fn of(kind: DomainKind) -> Pair {
        let sim = Sim::new();
        let backend = sim.add_domain_with(DomainConfig {
            kind,
            ..DomainConfig::default()
        });
        let frontend = sim.add_domain();
        let region = Region::new(backend.hypervisor()).unwrap();
        Pair {
            sim,
            backend,
            frontend,
            region,
        }
    }

    pub fn guest(&self) -> DomId {
        self.frontend.id()
    }

    /// Grants a new page of the frontend to the backend.
    pub fn grant(&self, gref: u32) -> NonNull<u8> {
        self.grant_as(gref, EntryFlags::PERMIT_ACCESS)
    }

    pub fn grant_read_only(&self, gref: u32) -> NonNull<u8> {
        self.grant_as(gref, EntryFlags::PERMIT_ACCESS | EntryFlags::READONLY)
    }

    fn grant_as(&self, gref: u32, flags: EntryFlags) -> NonNull<u8> {
        let page = self.frontend.alloc_page();
        let frame = self.frontend.frame_of(page);
        self.frontend
            .grant(GrantRef(gref), self.backend.id(), frame, flags);
        page
    }

    /// Checks that the backend holds nothing of the frontend, and has made no mistake.
    pub fn assert_clean(&self) {
        assert_eq!(self.backend.live_mappings(), 0);
        assert_eq!(self.frontend.grants_in_use(), 0);
        self.sim.assert_no_violations();
    }
}

pub fn peek(page: NonNull<u8>) -> u8 {
    // SAFETY: the tests pass mapped pages.
    unsafe { page.read_volatile() }
}

pub fn poke(page: NonNull<u8>, value: u8) {
    // SAFETY: the tests pass pages that are mapped for writing.
    unsafe { page.write_volatile(value) }
}
