//! Maps and unmaps that are allowed or refused, and the granter's entry afterwards.

use crate::{DomainConfig, DomainKind, GrantUse, Hypercall, Sim, SimDomain, SimVcpu, Violation};
use bulkhead_xen::abi::grant_table::{EntryFlags, MapFlags, MapGrantRef, UnmapGrantRef};
use bulkhead_xen::{DomId, Errno, Gfn, GrantHandle, GrantRef, GrantStatus, Hypervisor, PAGE_SIZE};
use std::ptr::NonNull;

pub(super) const READ: MapFlags = MapFlags::HOST_MAP.union(MapFlags::READONLY);
pub(super) const WRITE: MapFlags = MapFlags::HOST_MAP;
pub(super) const FREE: EntryFlags = EntryFlags::PERMIT_ACCESS;
pub(super) const GREF: GrantRef = GrantRef(8);

/// A backend with its region, and a frontend that grants it one page.
pub(super) struct Pair {
    pub(super) sim: Sim,
    pub(super) backend: SimDomain,
    pub(super) frontend: SimDomain,
    pub(super) hypervisor: SimVcpu,
    region: NonNull<u8>,
    pub(super) page: NonNull<u8>,
}

impl Pair {
    pub(super) fn new() -> Pair {
        Pair::of(DomainKind::Pvh)
    }

    pub(super) fn of(kind: DomainKind) -> Pair {
        let sim = Sim::new();
        let backend = sim.add_domain_with(DomainConfig {
            kind,
            ..DomainConfig::default()
        });
        let frontend = sim.add_domain();
        let hypervisor = backend.hypervisor();
        let region = hypervisor.foreign_region().unwrap().base;
        let page = frontend.alloc_page();
        let pair = Pair {
            sim,
            backend,
            frontend,
            hypervisor,
            region,
            page,
        };
        pair.grant(GREF, FREE);
        pair
    }

    pub(super) fn grant(&self, gref: GrantRef, flags: EntryFlags) {
        let frame = self.frontend.frame_of(self.page);
        self.frontend.grant(gref, self.backend.id(), frame, flags);
    }

    pub(super) fn slot(&self, page: usize) -> NonNull<u8> {
        // SAFETY: the region has far more pages.
        unsafe { self.region.add(page * PAGE_SIZE) }
    }

    pub(super) fn op(&self, page: usize, flags: MapFlags, gref: GrantRef) -> MapGrantRef {
        let address = self.slot(page).as_ptr() as u64;
        MapGrantRef::new(address, flags, gref, self.frontend.id())
    }

    fn map_op(&self, mut op: MapGrantRef) -> Result<GrantHandle, GrantStatus> {
        // SAFETY: whatever a test names wrong, the simulated Xen refuses.
        unsafe { self.hypervisor.map_grants(std::slice::from_mut(&mut op)) }.unwrap();
        match op.status {
            GrantStatus::OKAY => Ok(op.handle),
            status => Err(status),
        }
    }

    fn map(&self, page: usize, flags: MapFlags) -> Result<GrantHandle, GrantStatus> {
        self.map_op(self.op(page, flags, GREF))
    }

    pub(super) fn unmap(&self, page: usize, handle: GrantHandle) -> GrantStatus {
        let mut op = UnmapGrantRef::new(self.slot(page).as_ptr() as u64, handle);
        // SAFETY: the tests do not access what they unmap.
        unsafe { self.hypervisor.unmap_grants(std::slice::from_mut(&mut op)) }.unwrap();
        op.status
    }

    pub(super) fn flags(&self) -> EntryFlags {
        self.frontend.grant_flags(GREF)
    }
}

pub(super) fn peek(page: NonNull<u8>) -> u8 {
    // SAFETY: the tests pass mapped pages.
    unsafe { page.read_volatile() }
}

pub(super) fn poke(page: NonNull<u8>, value: u8) {
    // SAFETY: the tests pass pages that are mapped for writing.
    unsafe { page.write_volatile(value) }
}

/// Returns what the processor lets this process do at an address: "---", "r--" or "rw-".
pub(super) fn access(page: NonNull<u8>) -> String {
    let address = page.as_ptr().addr();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let line = maps.lines().find(|line| {
        let (range, _) = line.split_once(' ').unwrap();
        let (start, end) = range.split_once('-').unwrap();
        let number = |text| usize::from_str_radix(text, 16).unwrap();
        (number(start)..number(end)).contains(&address)
    });
    line.unwrap().split(' ').nth(1).unwrap()[..3].to_string()
}

#[test]
fn a_mapping_is_the_page_itself() {
    let pair = Pair::new();
    let handle = pair.map(0, WRITE).unwrap();
    poke(pair.slot(0), 7);
    assert_eq!(peek(pair.page), 7);
    poke(pair.page, 9);
    assert_eq!(peek(pair.slot(0)), 9);
    assert_eq!(pair.unmap(0, handle), GrantStatus::OKAY);
    assert_eq!(pair.backend.live_mappings(), 0);
    pair.sim.assert_no_violations();
}

#[test]
fn unmapped_pages_fault_and_read_only_ones_cannot_be_written() {
    let pair = Pair::new();
    assert_eq!(access(pair.slot(0)), "---");
    let handle = pair.map(0, READ).unwrap();
    assert_eq!(access(pair.slot(0)), "r--");
    assert_eq!(access(pair.slot(1)), "---");
    pair.unmap(0, handle);
    assert_eq!(access(pair.slot(0)), "---");
    pair.map(0, WRITE).unwrap();
    assert_eq!(access(pair.slot(0)), "rw-");
    pair.sim.destroy_domain(pair.backend.id());
    assert_eq!(access(pair.slot(0)), "---");
}

#[test]
fn entry_flags_follow_the_first_and_the_last_use() {
    let pair = Pair::new();
    let first = pair.map(0, READ).unwrap();
    assert_eq!(pair.flags(), FREE | EntryFlags::READING);
    let second = pair.map(1, WRITE).unwrap();
    let both = EntryFlags::READING | EntryFlags::WRITING;
    assert_eq!(pair.flags(), FREE | both);
    pair.unmap(1, second);
    assert_eq!(pair.flags(), FREE | EntryFlags::READING);
    pair.unmap(0, first);
    assert_eq!(pair.flags(), FREE);
    assert_eq!(pair.frontend.grants_in_use(), 0);
}

#[test]
fn what_is_not_granted_is_refused() {
    let pair = Pair::new();
    let refused = |flags: EntryFlags| {
        pair.grant(GREF, flags);
        pair.map(0, WRITE).unwrap_err()
    };
    let general = GrantStatus::GENERAL_ERROR;
    assert_eq!(refused(EntryFlags::empty()), general);
    assert_eq!(refused(FREE | EntryFlags::READONLY), general);
    // GTF_accept_transfer and GTF_transitive
    assert_eq!(refused(EntryFlags::from_bits_retain(2)), general);
    assert_eq!(refused(EntryFlags::from_bits_retain(3)), general);

    let frame = pair.frontend.frame_of(pair.page);
    pair.frontend.grant(GREF, DomId(99), frame, FREE);
    assert_eq!(pair.map(0, WRITE), Err(general));
    assert_eq!(pair.flags(), FREE);

    let unknown = MapGrantRef {
        domain: DomId(99),
        ..pair.op(0, WRITE, GREF)
    };
    assert_eq!(pair.map_op(unknown), Err(GrantStatus::BAD_DOMAIN));
    let beyond = pair.op(0, WRITE, GrantRef(2048));
    assert_eq!(pair.map_op(beyond), Err(GrantStatus::BAD_GNTREF));
    assert_eq!(pair.backend.live_mappings(), 0);
    assert_eq!(pair.backend.stats().maps_refused, 7);
    pair.sim.assert_no_violations();
}

#[test]
fn a_read_only_grant_is_mapped_for_reading() {
    let pair = Pair::new();
    pair.grant(GREF, FREE | EntryFlags::READONLY);
    let handle = pair.map(0, READ).unwrap();
    // It stays read-only while it is mapped, too.
    assert_eq!(pair.map(1, WRITE), Err(GrantStatus::GENERAL_ERROR));
    assert_eq!(pair.unmap(0, handle), GrantStatus::OKAY);
}

#[test]
fn only_the_granters_own_frames_can_be_mapped() {
    let pair = Pair::new();
    let ours = pair.backend.frame_of(pair.backend.alloc_page());
    for frame in [Gfn(0), ours, Gfn(0xFFFF_FFFF)] {
        pair.frontend.grant(GREF, pair.backend.id(), frame, FREE);
        assert_eq!(pair.map(0, WRITE), Err(GrantStatus::BAD_PAGE));
        assert_eq!(pair.flags(), FREE, "the refused mapping left no mark");
    }
}

#[test]
fn a_revoked_grant_stays_mapped() {
    let pair = Pair::new();
    let first = pair.map(0, WRITE).unwrap();
    pair.frontend.revoke(GREF);
    poke(pair.slot(0), 3);
    assert_eq!(peek(pair.page), 3);
    // Xen looks at the entry again only when nothing pins it.
    let second = pair.map(1, WRITE).unwrap();
    pair.unmap(0, first);
    pair.unmap(1, second);
    assert_eq!(pair.map(0, WRITE), Err(GrantStatus::GENERAL_ERROR));
}

#[test]
fn a_pinned_grant_is_for_its_user_alone() {
    let pair = Pair::new();
    let handle = pair.map(0, WRITE).unwrap();
    let other = pair.sim.add_domain();
    let frame = pair.frontend.frame_of(pair.page);
    pair.frontend.grant(GREF, other.id(), frame, FREE);
    let region = other.hypervisor().foreign_region().unwrap().base;
    let address = region.as_ptr() as u64;
    let mut op = [MapGrantRef::new(address, WRITE, GREF, pair.frontend.id())];
    // SAFETY: a page of the other domain's region.
    unsafe { other.hypervisor().map_grants(&mut op) }.unwrap();
    assert_eq!(op[0].status, GrantStatus::GENERAL_ERROR);
    pair.unmap(0, handle);
    // SAFETY: as above.
    unsafe { other.hypervisor().map_grants(&mut op) }.unwrap();
    assert_eq!(op[0].status, GrantStatus::OKAY);
}

#[test]
fn one_grant_can_be_mapped_255_times() {
    let pair = Pair::new();
    for page in 0..255 {
        pair.map(page, READ).unwrap();
    }
    assert_eq!(pair.map(255, READ), Err(GrantStatus::GENERAL_ERROR));
    // Writers are counted apart.
    pair.map(256, WRITE).unwrap();
}

#[test]
fn map_track_entries_run_out() {
    let pair = Pair::new();
    pair.backend.set_maptrack_limit(1);
    let handle = pair.map(0, READ).unwrap();
    assert_eq!(pair.map(1, READ), Err(GrantStatus::NO_SPACE));
    pair.unmap(0, handle);
    pair.map(1, READ).unwrap();
}

#[test]
fn mistakes_of_the_mapper_are_kept() {
    let pair = Pair::new();
    let handle = pair.map(0, READ).unwrap();
    let domain = pair.backend.id();
    let address = pair.slot(0).as_ptr() as u64;

    let general = GrantStatus::GENERAL_ERROR;
    assert_eq!(pair.map(0, READ), Err(general));
    let mut expected = vec![Violation::MapOccupied { domain, address }];
    for outside in [pair.page.as_ptr() as u64, address + 8, 0] {
        let op = MapGrantRef {
            host_addr: outside,
            ..pair.op(0, READ, GREF)
        };
        assert_eq!(pair.map_op(op), Err(general));
        let address = outside;
        expected.push(Violation::MapOutsideRegion { domain, address });
    }
    assert_eq!(pair.unmap(1, handle), general);
    let address = pair.slot(1).as_ptr() as u64;
    expected.push(Violation::UnmapAddress {
        domain,
        handle,
        address,
    });
    assert_eq!(pair.unmap(0, handle), GrantStatus::OKAY);
    assert_eq!(pair.unmap(0, handle), GrantStatus::BAD_HANDLE);
    expected.push(Violation::UnmapHandle { domain, handle });
    assert_eq!(pair.sim.violations(), expected);
    assert_eq!(pair.frontend.grants_in_use(), 0);
}

#[test]
fn device_mappings_are_for_paravirtualized_domains() {
    let both = WRITE | MapFlags::DEVICE_MAP;
    let pvh = Pair::new();
    assert_eq!(pvh.map(0, both), Err(GrantStatus::GENERAL_ERROR));

    let pv = Pair::of(DomainKind::Pv);
    let mut op = pv.op(0, both, GREF);
    // SAFETY: the first page of the region, where nothing is mapped.
    unsafe { pv.hypervisor.map_grants(std::slice::from_mut(&mut op)) }.unwrap();
    let (handle, dev_bus_addr) = (op.handle, op.dev_bus_addr);
    assert_eq!(pv.unmap(0, handle), GrantStatus::OKAY);
    // The device's half was not named, and so is still there.
    assert_eq!(pv.backend.live_mappings(), 1);
    let mut op = [UnmapGrantRef {
        dev_bus_addr,
        ..UnmapGrantRef::new(0, handle)
    }];
    // SAFETY: nothing accesses the page.
    unsafe { pv.hypervisor.unmap_grants(&mut op) }.unwrap();
    assert_eq!(op[0].status, GrantStatus::OKAY);
    assert_eq!(pv.backend.live_mappings(), 0);
    pv.sim.assert_no_violations();
}

#[test]
fn failures_happen_on_demand() {
    let pair = Pair::new();
    let grant = (pair.frontend.id(), GREF);
    let again = GrantStatus::EAGAIN;
    pair.sim.fail_grant(GrantUse::Map, grant, again, 2);
    assert_eq!(pair.map(0, READ), Err(again));
    assert_eq!(pair.map(0, READ), Err(again));
    let handle = pair.map(0, READ).unwrap();

    pair.backend
        .fail_call(Hypercall::UnmapGrants, Errno::FAULT, 1);
    let mut op = [UnmapGrantRef::new(pair.slot(0).as_ptr() as u64, handle)];
    // SAFETY: nothing accesses the page.
    let refused = unsafe { pair.hypervisor.unmap_grants(&mut op) };
    assert_eq!(refused, Err(Errno::FAULT));
    assert_eq!(pair.unmap(0, handle), GrantStatus::OKAY);
}

#[test]
fn region_and_table_have_one_owner() {
    let pair = Pair::new();
    assert!(pair.hypervisor.foreign_region().is_none());
    assert!(pair.hypervisor.grant_entries().is_some());
    assert!(pair.hypervisor.grant_entries().is_none());
    assert_eq!(pair.hypervisor.frame_of(pair.slot(0).as_ptr()), None);
    let own = pair.backend.alloc_page();
    let frame = pair.backend.frame_of(own);
    assert_eq!(pair.hypervisor.frame_of(own.as_ptr()), Some(frame));
    assert_eq!(pair.hypervisor.frame_of(pair.page.as_ptr()), None);
}
