//! The end of a domain, its memory, and the clock.

use crate::{Sim, SimDomain, Violation};
use bulkhead_xen::abi::grant_table::{EntryFlags, MapFlags, MapGrantRef, UnmapGrantRef};
use bulkhead_xen::{DomId, Errno, GrantHandle, GrantRef, GrantStatus, Hypervisor, VcpuId};
use std::ptr::NonNull;
use std::time::Duration;

const GREF: GrantRef = GrantRef(8);

/// Grants `page` and maps it at the start of the backend's region.
fn share(
    frontend: &SimDomain,
    backend: &SimDomain,
    page: NonNull<u8>,
) -> (NonNull<u8>, GrantHandle) {
    let frame = frontend.frame_of(page);
    frontend.grant(GREF, backend.id(), frame, EntryFlags::PERMIT_ACCESS);
    let base = backend.hypervisor().foreign_region().unwrap().base;
    let address = base.as_ptr() as u64;
    let mut op = [MapGrantRef::new(
        address,
        MapFlags::HOST_MAP,
        GREF,
        frontend.id(),
    )];
    // SAFETY: the first page of the region, where nothing is mapped yet.
    unsafe { backend.hypervisor().map_grants(&mut op) }.unwrap();
    assert_eq!(op[0].status, GrantStatus::OKAY);
    (base, op[0].handle)
}

#[test]
fn mapped_pages_outlive_their_domain() {
    let sim = Sim::new();
    let (backend, frontend) = (sim.add_domain(), sim.add_domain());
    let page = frontend.alloc_page();
    let (base, handle) = share(&frontend, &backend, page);
    // SAFETY: mapped for writing.
    unsafe { base.write_volatile(1) };

    sim.destroy_domain(frontend.id());
    assert!(!sim.is_fully_gone(frontend.id()));
    // SAFETY: still mapped.
    assert_eq!(unsafe { base.read_volatile() }, 1);

    let map = |page: usize, gref| {
        let address = base.as_ptr() as u64 + page as u64 * 4096;
        let mut op = [MapGrantRef::new(
            address,
            MapFlags::HOST_MAP,
            gref,
            frontend.id(),
        )];
        // SAFETY: a page of the region where nothing is mapped.
        unsafe { backend.hypervisor().map_grants(&mut op) }.unwrap();
        op[0].status
    };
    // Nothing more of it can be mapped.
    let frame = frontend.frame_of(page);
    frontend.grant(GrantRef(9), backend.id(), frame, EntryFlags::PERMIT_ACCESS);
    assert_eq!(map(1, GrantRef(9)), GrantStatus::BAD_PAGE);

    let mut op = [UnmapGrantRef::new(base.as_ptr() as u64, handle)];
    // SAFETY: not accessed any more.
    unsafe { backend.hypervisor().unmap_grants(&mut op) }.unwrap();
    assert_eq!(op[0].status, GrantStatus::OKAY);
    assert!(sim.is_fully_gone(frontend.id()));
    assert_eq!(map(1, GREF), GrantStatus::BAD_DOMAIN);
    sim.assert_no_violations();
}

#[test]
fn a_destroyed_domain_lets_go_of_everything() {
    let sim = Sim::new();
    let (backend, frontend) = (sim.add_domain(), sim.add_domain());
    let ports = frontend.open_ports();
    share(&frontend, &backend, frontend.alloc_page());
    let theirs = frontend.hypervisor().alloc_unbound(backend.id()).unwrap();
    backend
        .hypervisor()
        .bind_interdomain(frontend.id(), theirs)
        .unwrap();

    sim.destroy_domain(backend.id());
    assert!(sim.is_fully_gone(backend.id()));
    assert_eq!(frontend.grants_in_use(), 0);
    assert_eq!(frontend.grant_flags(GREF), EntryFlags::PERMIT_ACCESS);
    // The other end is unbound again: sending does nothing, and a domain may bind it anew.
    assert_eq!(frontend.open_ports(), ports + 1);
    assert_eq!(frontend.hypervisor().notify(theirs), Ok(()));
    assert_eq!(
        backend.hypervisor().alloc_unbound(DomId(0)),
        Err(Errno::SRCH)
    );
    assert_eq!(backend.hypervisor().notify(theirs), Err(Errno::SRCH));
    sim.assert_no_violations();
}

#[test]
fn pages_are_zeroed_and_counted() {
    let sim = Sim::new();
    let domain = sim.add_domain();
    let before = domain.pages_in_use();
    let pages = domain.alloc_pages(3);
    let first = domain.frame_of(pages);
    // SAFETY: the second of three pages.
    let second = unsafe { pages.add(4096) };
    assert_eq!(domain.frame_of(second).0, first.0 + 1);
    // SAFETY: own memory.
    unsafe { second.write_volatile(1) };
    assert_eq!(domain.pages_in_use(), before + 3);
    domain.free_pages(pages, 3);
    assert_eq!(domain.pages_in_use(), before);
    for _ in 0..1024 - before {
        let page = domain.alloc_page();
        // SAFETY: own memory.
        assert_eq!(unsafe { page.read_volatile() }, 0);
    }
}

#[test]
fn freeing_a_shared_page_is_a_mistake() {
    let sim = Sim::new();
    let (backend, frontend) = (sim.add_domain(), sim.add_domain());
    let page = frontend.alloc_page();
    share(&frontend, &backend, page);
    frontend.free_pages(page, 1);
    let expected = Violation::FreedWhileShared {
        domain: frontend.id(),
        frame: frontend.frame_of(page),
    };
    assert_eq!(sim.violations(), [expected]);
    assert_eq!(frontend.violations(), sim.violations());
    assert_eq!(backend.violations(), []);
}

#[test]
fn the_clock_moves_when_told() {
    let sim = Sim::new();
    let domain = sim.add_domain();
    let hypervisor = domain.hypervisor();
    let start = hypervisor.now();
    assert!(!sim.advance_to_next_deadline());
    hypervisor.block(Some(start + Duration::from_millis(5)));
    assert!(domain.is_blocked(VcpuId(0)));
    sim.advance(Duration::from_millis(1));
    assert!(domain.is_blocked(VcpuId(0)));
    assert!(sim.advance_to_next_deadline());
    assert_eq!(hypervisor.now().since(start), Duration::from_millis(5));
    assert!(!domain.is_blocked(VcpuId(0)));
    assert_eq!(domain.stats().block_calls, 1);
    // A deadline that has passed ends the wait at once.
    hypervisor.block(Some(start));
    assert!(!domain.is_blocked(VcpuId(0)));
}

#[test]
fn machines_follow_each_other() {
    for _ in 0..50 {
        let sim = Sim::new();
        let domain = sim.add_domain();
        let entries = domain.hypervisor().grant_entries().unwrap();
        // The table of the machine before was emptied, but for what the toolstack grants anew.
        assert!(domain.grant_flags(GREF).is_empty());
        domain.grant(
            GREF,
            DomId(0),
            domain.frame_of(domain.alloc_page()),
            EntryFlags::PERMIT_ACCESS,
        );
        assert_eq!(entries.len(), 2048);
    }
}
