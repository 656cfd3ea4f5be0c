//! Memory that a domain's device may read and write, and its bus addresses.

use super::grants::{FREE, GREF, Pair, READ, WRITE, peek, poke};
use crate::{DomainConfig, DomainKind, Sim, SimDevice, Violation};
use bulkhead_xen::abi::grant_table::{EntryFlags, MapFlags, MapGrantRef, UnmapGrantRef};
use bulkhead_xen::{
    DmaAddr, DmaMemory, GrantStatus, Hypervisor, PAGE_SHIFT, PAGE_SIZE, Reservation,
};

/// Returns whether the device can read there, and write.
fn access(device: &SimDevice, address: DmaAddr) -> (bool, bool) {
    let mut byte = [0];
    let reads = device.read(address, &mut byte).is_ok();
    (reads, device.write(address, &byte).is_ok())
}

#[test]
fn a_device_reaches_what_is_mapped_as_long_as_it_is() {
    let pair = Pair::of(DomainKind::Pv);
    let device = pair.backend.add_device();
    for (flags, writes) in [(READ, false), (WRITE, true)] {
        let mut op = pair.op(0, flags, GREF);
        // SAFETY: the first page of the region, where nothing is mapped.
        unsafe { pair.hypervisor.map_grants(std::slice::from_mut(&mut op)) }.unwrap();
        let address = op.dma_addr().expect("a bus address");
        assert_eq!(access(&device, address), (true, writes));
        poke(pair.page, 7);
        let mut byte = [0];
        device.read(address, &mut byte).unwrap();
        assert_eq!(byte, [7]);
        if writes {
            device.write(address.offset(9), &[1, 2, 3]).unwrap();
            // SAFETY: within the page.
            assert_eq!(peek(unsafe { pair.page.add(11) }), 3);
        }
        pair.unmap(0, op.handle);
        assert_eq!(access(&device, address), (false, false));
    }
    let refused = pair.backend.violations();
    assert_eq!(refused.len(), 1 + 2 + 2);
    let is_dma = |violation: &Violation| matches!(violation, Violation::Dma { .. });
    assert!(refused.iter().all(is_dma), "{refused:?}");
}

#[test]
fn no_other_number_is_a_bus_address() {
    let pair = Pair::of(DomainKind::Pv);
    let device = pair.backend.add_device();
    let mut op = pair.op(0, WRITE, GREF);
    // SAFETY: the first page of the region, where nothing is mapped.
    unsafe { pair.hypervisor.map_grants(std::slice::from_mut(&mut op)) }.unwrap();
    let address = op.dma_addr().expect("a bus address").get();
    let theirs = pair.frontend.frame_of(pair.page).0 << PAGE_SHIFT;
    let here = pair.slot(0).as_ptr() as u64;
    let other = pair.backend.alloc_page();
    let own = pair
        .hypervisor
        .dma_addr(other.as_ptr())
        .expect("a bus address")
        .get();
    let neighbours = [address + PAGE_SIZE as u64, address - PAGE_SIZE as u64];
    for wrong in [theirs, here, other.as_ptr() as u64, own + PAGE_SIZE as u64]
        .into_iter()
        .chain(neighbours)
    {
        let wrong = DmaAddr::new(wrong).expect("not 0");
        assert_eq!(access(&device, wrong), (false, false), "{wrong}");
    }
    // A range that runs on into the next page leaves what it may access.
    let last = DmaAddr::new(address + PAGE_SIZE as u64 - 1).expect("not 0");
    assert_eq!(access(&device, last), (true, true));
    assert!(device.read(last, &mut [0, 0]).is_err());
    pair.unmap(0, op.handle);
}

#[test]
fn own_memory_has_a_bus_address_of_its_own_in_each_domain() {
    let sim = Sim::new();
    let pv = || {
        sim.add_domain_with(DomainConfig {
            kind: DomainKind::Pv,
            ..DomainConfig::default()
        })
    };
    let (first, second) = (pv(), pv());
    let page = first.alloc_page();
    let address = first
        .hypervisor()
        .dma_addr(page.as_ptr())
        .expect("own memory");
    // As Xen numbers the pages of PV domains.
    assert_eq!(address.get(), first.frame_of(page).0 << PAGE_SHIFT);
    let inside = page.as_ptr().wrapping_add(100).cast_const();
    assert_eq!(
        first.hypervisor().dma_addr(inside),
        Some(address.offset(100))
    );
    assert_eq!(access(&first.add_device(), address), (true, true));
    assert_eq!(access(&second.add_device(), address), (false, false));
    assert_eq!(second.hypervisor().dma_addr(page.as_ptr()), None);
    let region = first
        .hypervisor()
        .foreign_region()
        .expect("the region")
        .base;
    assert_eq!(first.hypervisor().dma_addr(region.as_ptr()), None);
    // What a driver allocates is own memory, too, once it was named to a device.
    let driver = Box::new([5_u8; 64]);
    let address = first
        .hypervisor()
        .dma_addr(driver.as_ptr())
        .expect("own memory");
    let mut byte = [0];
    first.add_device().read(address, &mut byte).expect("named");
    assert_eq!(byte, [5]);
    assert_eq!(access(&second.add_device(), address), (false, false));
}

#[test]
fn a_hardware_virtualized_domain_has_no_devices() {
    let pair = Pair::new();
    assert_eq!(
        pair.hypervisor.dma_addr(pair.backend.alloc_page().as_ptr()),
        None
    );
    // Xen tells it the machine address all the same.
    let mut op = pair.op(0, WRITE, GREF);
    // SAFETY: the first page of the region, where nothing is mapped.
    unsafe { pair.hypervisor.map_grants(std::slice::from_mut(&mut op)) }.unwrap();
    assert!(op.dma_addr().is_some());
    pair.unmap(0, op.handle);
    let none = std::panic::catch_unwind(|| pair.backend.add_device());
    assert!(none.is_err(), "libxl refuses");
}

#[test]
fn a_paravirtualized_domain_grants_machine_frames() {
    let sim = Sim::new();
    let backend = sim.dom0();
    let frontend = sim.add_domain_with(DomainConfig {
        kind: DomainKind::Pv,
        ..DomainConfig::default()
    });
    let page = frontend.alloc_page();
    let frame = frontend.frame_of(page);
    frontend.grant(GREF, backend.id(), frame, FREE | EntryFlags::READONLY);
    let base = backend
        .hypervisor()
        .foreign_region()
        .expect("the region")
        .base;
    let mut op = bulkhead_xen::abi::grant_table::MapGrantRef::new(
        base.as_ptr() as u64,
        READ,
        GREF,
        frontend.id(),
    );
    poke(page, 3);
    // SAFETY: the first page of the region, where nothing is mapped.
    unsafe {
        backend
            .hypervisor()
            .map_grants(std::slice::from_mut(&mut op))
    }
    .unwrap();
    assert_eq!(peek(base), 3);
    assert_eq!(op.dev_bus_addr, frame.0 << PAGE_SHIFT);
}

/// Maps the grant for a device alone.
fn map_for_device(pair: &Pair, flags: MapFlags) -> MapGrantRef {
    let mut op = MapGrantRef::for_device(flags, GREF, pair.frontend.id());
    // SAFETY: it has no address.
    unsafe { pair.hypervisor.map_grants(std::slice::from_mut(&mut op)) }.unwrap();
    op
}

fn unmap_from_device(pair: &Pair, op: &MapGrantRef, address: Option<DmaAddr>) -> GrantStatus {
    let mut op = UnmapGrantRef::for_device(address, op.handle);
    // SAFETY: it has no address.
    unsafe { pair.hypervisor.unmap_grants(std::slice::from_mut(&mut op)) }.unwrap();
    op.status
}

#[test]
fn a_mapping_for_a_device_alone_has_no_address() {
    let pair = Pair::of(DomainKind::Pv);
    let device = pair.backend.add_device();
    for (flags, writes) in [(MapFlags::READONLY, false), (MapFlags::empty(), true)] {
        let op = map_for_device(&pair, flags | MapFlags::DEVICE_MAP);
        assert_eq!(op.status, GrantStatus::OKAY);
        let address = op.dma_addr().expect("a bus address");
        assert_eq!(access(&device, address), (true, writes));
        assert_eq!(super::grants::access(pair.slot(0)), "---");
        assert_eq!(pair.flags().contains(EntryFlags::WRITING), writes);
        // Another address is refused, and changes nothing.
        let other = unmap_from_device(&pair, &op, Some(address.offset(PAGE_SIZE)));
        assert_eq!(other, GrantStatus::BAD_DEV_ADDR);
        assert_eq!(
            unmap_from_device(&pair, &op, Some(address)),
            GrantStatus::OKAY
        );
        assert_eq!(access(&device, address), (false, false));
        assert_eq!(pair.backend.live_mappings(), 0);
    }
    // Without its address Xen leaves it as it is, and says nothing.
    let op = map_for_device(&pair, MapFlags::DEVICE_MAP);
    let before = pair.backend.violations().len();
    unmap_from_device(&pair, &op, None);
    assert_eq!(pair.backend.live_mappings(), 1);
    assert_eq!(pair.backend.violations().len(), before + 1);
}

#[test]
fn a_device_writes_as_long_as_one_of_the_mappings_allows_it() {
    let pair = Pair::of(DomainKind::Pv);
    let device = pair.backend.add_device();
    let reading = map_for_device(&pair, MapFlags::DEVICE_MAP | MapFlags::READONLY);
    let writing = map_for_device(&pair, MapFlags::DEVICE_MAP);
    let address = writing.dma_addr().expect("a bus address");
    assert_eq!(reading.dma_addr(), Some(address));
    assert_eq!(access(&device, address), (true, true));
    unmap_from_device(&pair, &writing, Some(address));
    assert_eq!(access(&device, address), (true, false));
    unmap_from_device(&pair, &reading, Some(address));
    assert_eq!(access(&device, address), (false, false));
}

#[test]
fn only_paravirtualized_domains_map_for_devices() {
    let pair = Pair::new();
    let op = map_for_device(&pair, MapFlags::DEVICE_MAP);
    assert_eq!(op.status, GrantStatus::GENERAL_ERROR);
    assert_eq!(pair.frontend.grants_in_use(), 0);
}

/// Xen unmaps what a domain has mapped before it takes its devices away.
#[test]
fn a_device_outlives_its_domain_and_writes_to_pages_that_are_not_mapped_any_more() {
    let pair = Pair::of(DomainKind::Pv);
    let device = pair.backend.add_device();
    let op = map_for_device(&pair, MapFlags::DEVICE_MAP);
    let address = op.dma_addr().expect("a bus address");
    let id = pair.backend.id();
    pair.sim.destroy_domain(id);
    assert!(pair.sim.is_fully_gone(id));
    assert_eq!(pair.frontend.grants_in_use(), 0);
    poke(pair.page, 1);
    device.write(address, &[2]).expect("the entry is there");
    assert_eq!(peek(pair.page), 2);
    pair.sim.release_devices(id);
    assert_eq!(access(&device, address), (false, false));
    assert_eq!(peek(pair.page), 2);
    // It was nobody's mistake that could be told by a domain's own calls.
    pair.sim.assert_no_violations();
}

#[test]
fn a_device_reaches_own_memory_only_while_it_can_be_written() {
    static CONSTANT: [u8; 64] = [7; 64];
    let sim = Sim::new();
    let domain = sim.add_domain_with(DomainConfig {
        kind: DomainKind::Pv,
        ..DomainConfig::default()
    });
    let (hypervisor, device) = (domain.hypervisor(), domain.add_device());
    let constant = hypervisor.dma_addr(CONSTANT.as_ptr());
    assert_eq!(
        access(&device, constant.expect("own memory")),
        (false, false)
    );
    // A page that Xen has back.
    let page = hypervisor.allocate(1).expect("a page");
    let address = hypervisor.dma_addr(page.as_ptr()).expect("own memory");
    assert_eq!(access(&device, address), (true, true));
    // SAFETY: our own page, which is not accessed until it is back.
    assert_eq!(unsafe { hypervisor.release(page, 1) }, 1);
    assert_eq!(hypervisor.dma_addr(page.as_ptr()), None);
    assert_eq!(access(&device, address), (false, false));
    // SAFETY: just released.
    assert_eq!(unsafe { hypervisor.populate(page, 1) }, 1);
    let address = hypervisor.dma_addr(page.as_ptr()).expect("own memory");
    assert_eq!(access(&device, address), (true, true));
}
