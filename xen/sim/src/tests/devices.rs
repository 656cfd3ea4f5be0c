//! Memory that a domain's device may read and write, and its bus addresses.

use super::grants::{FREE, GREF, Pair, READ, WRITE, peek, poke};
use crate::{DomainConfig, DomainKind, Sim, SimDevice, Violation};
use bulkhead_xen::abi::grant_table::EntryFlags;
use bulkhead_xen::{DmaAddr, DmaMemory, Hypervisor, PAGE_SHIFT, PAGE_SIZE};

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
