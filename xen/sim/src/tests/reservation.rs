//! Memory given back to the machine and asked for again.

use super::grants::access;
use crate::{Hypercall, Sim, SimDomain, Violation};
use bulkhead_xen::abi::grant_table::{EntryFlags, MapFlags, MapGrantRef};
use bulkhead_xen::{Errno, GrantRef, Hypervisor, PAGE_SIZE, Reservation};
use std::ptr::NonNull;

const GREF: GrantRef = GrantRef(8);

fn domain() -> (Sim, SimDomain) {
    let sim = Sim::new();
    let domain = sim.add_domain();
    (sim, domain)
}

fn page(first: NonNull<u8>, number: usize) -> NonNull<u8> {
    first.map_addr(|address| address.checked_add(number * PAGE_SIZE).unwrap())
}

#[test]
fn a_released_page_faults_and_comes_back_zeroed() {
    let (sim, domain) = domain();
    let hypervisor = domain.hypervisor();
    let owned = domain.memory_pages();
    let first = hypervisor.allocate(4).unwrap();
    // SAFETY: the domain's own pages, touched only while they are there.
    unsafe {
        for number in 0..4 {
            page(first, number).write_bytes(7, PAGE_SIZE);
        }
        assert_eq!(hypervisor.release(page(first, 1), 2), 2);
        assert_eq!(domain.memory_pages(), owned - 2);
        let rights = [0, 1, 2, 3].map(|number| access(page(first, number)));
        assert_eq!(rights, ["rw-", "---", "---", "rw-"]);

        assert_eq!(hypervisor.populate(page(first, 2), 1), 1);
        assert_eq!(domain.memory_pages(), owned - 1);
        let bytes = [0, 2, 3].map(|number| page(first, number).read_volatile());
        assert_eq!(bytes, [7, 0, 7]);
        assert_eq!(access(page(first, 1)), "---");
    }
    sim.assert_no_violations();
}

#[test]
fn a_domain_gets_no_more_than_its_limit() {
    let (sim, domain) = domain();
    let hypervisor = domain.hypervisor();
    let first = hypervisor.allocate(4).unwrap();
    // SAFETY: own pages that nothing touches.
    unsafe {
        assert_eq!(hypervisor.release(first, 4), 4);
        domain.set_memory_limit(domain.memory_pages() + 3);
        assert_eq!(hypervisor.populate(first, 4), 3);
        assert_eq!(hypervisor.populate(page(first, 3), 1), 0);
        assert_eq!(hypervisor.release(first, 1), 1);
        assert_eq!(hypervisor.populate(page(first, 3), 1), 1);
    }
    sim.assert_no_violations();
}

#[test]
fn what_is_left_in_a_released_page_is_noticed() {
    let (sim, domain) = domain();
    let hypervisor = domain.hypervisor();
    let first = hypervisor.allocate(3).unwrap();
    // SAFETY: own pages, touched only while they are there.
    unsafe {
        first.write_bytes(0, 3 * PAGE_SIZE);
        page(first, 1).add(PAGE_SIZE - 1).write_volatile(1);
        assert_eq!(hypervisor.release(first, 3), 3);
    }
    assert_eq!(domain.stats().pages_released_uncleared, 1);
    sim.assert_no_violations();
}

#[test]
fn calls_can_be_made_to_fail() {
    let (sim, domain) = domain();
    let hypervisor = domain.hypervisor();
    let first = hypervisor.allocate(1).unwrap();
    domain.fail_call(Hypercall::ReleasePages, Errno::NOMEM, 1);
    domain.fail_call(Hypercall::PopulatePages, Errno::NOMEM, 1);
    // SAFETY: an own page that nothing touches.
    let done = unsafe {
        [
            hypervisor.release(first, 1),
            hypervisor.release(first, 1),
            hypervisor.populate(first, 1),
            hypervisor.populate(first, 1),
        ]
    };
    assert_eq!(done, [0, 1, 0, 1]);
    let stats = domain.stats();
    assert_eq!((stats.release_calls, stats.populate_calls), (2, 2));
    sim.assert_no_violations();
}

#[test]
fn mistakes_are_kept() {
    let (sim, domain) = domain();
    let (hypervisor, other) = (domain.hypervisor(), sim.add_domain());
    let first = domain.alloc_pages(2);
    let shared = domain.frame_of(first);
    domain.grant(GREF, other.id(), shared, EntryFlags::PERMIT_ACCESS);
    let hypervisor_of_other = other.hypervisor();
    let region = hypervisor_of_other.foreign_region().unwrap();
    let address = region.base.as_ptr() as u64;
    let mut map = [MapGrantRef::new(
        address,
        MapFlags::HOST_MAP,
        GREF,
        domain.id(),
    )];
    // SAFETY: the first page of the region, where nothing is mapped yet.
    unsafe { hypervisor_of_other.map_grants(&mut map) }.unwrap();
    let id = domain.id();
    // SAFETY: nothing touches the pages; that the promise is broken is what this test is about.
    unsafe {
        assert_eq!(hypervisor.release(page(first, 1), 1), 1);
        assert_eq!(hypervisor.release(page(first, 1), 1), 0, "gone already");
        assert_eq!(hypervisor.release(first, 1), 1, "mapped by another domain");
        assert_eq!(hypervisor.populate(first, 1), 1);
        assert_eq!(hypervisor.populate(first, 1), 0, "there already");
        assert_eq!(hypervisor_of_other.release(first, 1), 0, "not its own");
    }
    let address = |number| page(first, number).as_ptr().addr() as u64;
    let expected = [
        Violation::ReleasedNothing {
            domain: id,
            address: address(1),
        },
        Violation::FreedWhileShared {
            domain: id,
            frame: shared,
        },
        Violation::PopulatedOccupied {
            domain: id,
            address: address(0),
        },
        Violation::ReleasedNothing {
            domain: other.id(),
            address: address(0),
        },
    ];
    assert_eq!(sim.violations(), expected);
}
