//! Two domains in conversation: one grants a page and a port, the other uses them.
//!
//! `test=grant peer=DOMID` runs first, then, with the port that it prints, `test=map peer=DOMID port=PORT`.

use alloc::vec::Vec;
use bulkhead_kernel::{Machine, command_line, memory};
use bulkhead_xen::abi::grant_table::{
    CopyEnd, CopyFlags, EntryFlags, GrantCopy, MapFlags, MapGrantRef, UnmapGrantRef,
};
use bulkhead_xen::{DmaMemory, DomId, GrantRef, GrantStatus, Hypervisor, PAGE_SIZE, Port};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

const GREF: GrantRef = GrantRef(8);
const ROUNDS: u64 = 500;
const BATCH: usize = 64;
const SWEEPS: u32 = 100;
const PATTERN: u8 = 0xc3;

fn number(machine: &Machine, key: &str) -> u32 {
    let text = command_line::value(machine.command_line, key).unwrap_or("");
    text.parse()
        .unwrap_or_else(|_| panic!("{key}={text}: not a number"))
}

/// Returns two counters at the start of the shared page: one from each side.
fn counters(page: NonNull<u8>) -> (&'static AtomicU64, &'static AtomicU64) {
    let first = page.cast::<u64>().as_ptr();
    // SAFETY: the page stays until the conversation is over; both sides only use atomics.
    unsafe {
        (
            AtomicU64::from_ptr(first),
            AtomicU64::from_ptr(first.add(1)),
        )
    }
}

/// Blocks until a counter has a value.
fn wait_for(machine: &Machine, counter: &AtomicU64, value: u64) {
    while counter.load(Ordering::Acquire) != value {
        machine.hypervisor.block(None);
        machine.hypervisor.take_pending(&mut |_| {});
    }
}

/// Returns the place where the granting domain writes the bus address of the shared page, or 0 if it can have
/// no devices.
fn bus_address(page: NonNull<u8>) -> NonNull<u64> {
    // SAFETY: within the page, behind the counters.
    unsafe { page.cast::<u64>().add(2) }
}

/// Grants a page, answers every count, and ends the grant.
pub fn grant(machine: &Machine) {
    let hypervisor = machine.hypervisor;
    let peer = DomId(number(machine, "peer") as u16);
    let page = memory::allocate_pages(1).expect("a page");
    // SAFETY: a fresh page.
    unsafe { page.write_bytes(PATTERN, PAGE_SIZE) };
    let (theirs, ours) = counters(page);
    theirs.store(0, Ordering::Relaxed);
    ours.store(0, Ordering::Relaxed);
    let bus = hypervisor
        .dma_addr(page.as_ptr())
        .map_or(0, |address| address.get());
    // SAFETY: the page is not shared yet.
    unsafe { bus_address(page).write_volatile(bus) };
    let table = hypervisor.grant_entries().expect("a grant table");
    let entry = &table[GREF.0 as usize];
    entry.domain.store(peer.0, Ordering::Relaxed);
    let frame = hypervisor.frame_of(page.as_ptr()).expect("an own page");
    entry.frame.store(frame.0 as u32, Ordering::Relaxed);
    entry
        .flags
        .store(EntryFlags::PERMIT_ACCESS.bits(), Ordering::Release);
    let port = hypervisor.alloc_unbound(peer).expect("a port");
    log::info!("granted to {peer}, port {port}");
    for round in 1..=ROUNDS {
        wait_for(machine, theirs, round);
        ours.store(round, Ordering::Release);
        hypervisor.notify(port).expect("notify");
    }
    wait_for(machine, theirs, u64::MAX);
    let used = EntryFlags::from_bits_retain(entry.flags.swap(0, Ordering::AcqRel));
    log::info!("conversation over, grant ended with {used:?}");
    hypervisor.close_port(port).expect("close");
}

/// Maps the page, counts, copies, maps it many times at once, and tries what must fail.
pub fn map(machine: &Machine) {
    let hypervisor = machine.hypervisor;
    let peer = DomId(number(machine, "peer") as u16);
    let region = hypervisor.foreign_region().expect("a foreign region");
    let port = hypervisor
        .bind_interdomain(peer, Port(number(machine, "port")))
        .expect("bind");
    let address = region.base.as_ptr() as u64;
    let mut one = [MapGrantRef::new(address, MapFlags::HOST_MAP, GREF, peer)];
    // SAFETY: the region is unused.
    unsafe { hypervisor.map_grants(&mut one).expect("map") };
    assert!(one[0].status.is_okay(), "{}", one[0].status);
    assert_eq!(hypervisor.frame_of(region.base.as_ptr()), None);
    // SAFETY: mapped just now.
    assert_eq!(unsafe { region.base.add(100).read_volatile() }, PATTERN);

    // SAFETY: as above.
    let theirs = unsafe { bus_address(region.base).read_volatile() };
    let bus = one[0].dev_bus_addr;
    log::info!("mapped at bus address {bus:#x}, its owner's is {theirs:#x}");
    assert!(bus != address && bus.is_multiple_of(PAGE_SIZE as u64));
    assert!(theirs == 0 || theirs == bus, "Xen and the owner disagree");

    let (ours, theirs) = counters(region.base);
    let before = hypervisor.now();
    for round in 1..=ROUNDS {
        ours.store(round, Ordering::Release);
        hypervisor.notify(port).expect("notify");
        wait_for(machine, theirs, round);
    }
    let time = hypervisor.now().since(before).as_nanos() as u64;
    log::info!("{ROUNDS} round trips, {} ns each", time / ROUNDS);

    copy(machine, peer);
    map_many(machine, peer, address + PAGE_SIZE as u64);
    refused(machine, peer, address + PAGE_SIZE as u64);

    ours.store(u64::MAX, Ordering::Release);
    let mut one = [UnmapGrantRef::new(address, one[0].handle)];
    // SAFETY: the counters are not used any more.
    unsafe { hypervisor.unmap_grants(&mut one).expect("unmap") };
    assert!(one[0].status.is_okay(), "{}", one[0].status);
    hypervisor.notify(port).expect("notify");
    hypervisor.close_port(port).expect("close");
}

fn copy(machine: &Machine, peer: DomId) {
    let page = memory::allocate_pages(1).expect("a page");
    let frame = machine
        .hypervisor
        .frame_of(page.as_ptr())
        .expect("an own page");
    let mut batch = [GrantCopy {
        source: CopyEnd::granted(GREF, peer, 512),
        dest: CopyEnd::own(frame, 0),
        len: 1024,
        flags: CopyFlags::SOURCE_GREF.bits(),
        status: GrantStatus::GENERAL_ERROR,
    }];
    // SAFETY: a fresh page.
    unsafe {
        page.write_bytes(0, PAGE_SIZE);
        machine.hypervisor.copy_grants(&mut batch).expect("copy");
        let copied = (0..PAGE_SIZE)
            .filter(|n| page.add(*n).read_volatile() == PATTERN)
            .count();
        log::info!("copied {copied} bytes: {}", batch[0].status);
        assert_eq!(copied, 1024);
        memory::free_pages(page, 1);
    }
}

fn map_many(machine: &Machine, peer: DomId, address: u64) {
    let hypervisor = machine.hypervisor;
    let place = |n: usize| address + (n * PAGE_SIZE) as u64;
    let mut maps: Vec<_> = (0..BATCH)
        .map(|n| MapGrantRef::new(place(n), MapFlags::HOST_MAP, GREF, peer))
        .collect();
    let before = hypervisor.now();
    for _ in 0..SWEEPS {
        // SAFETY: the region is unused from `address` on, again after each round.
        unsafe {
            hypervisor.map_grants(&mut maps).expect("map");
            assert!(maps.iter().all(|map| map.status.is_okay()));
            let last = place(BATCH - 1) as *const u8;
            assert_eq!(last.add(4095).read_volatile(), PATTERN);
            let mut unmaps: Vec<_> = maps
                .iter()
                .map(|map| UnmapGrantRef::new(map.host_addr, map.handle))
                .collect();
            hypervisor.unmap_grants(&mut unmaps).expect("unmap");
            assert!(unmaps.iter().all(|unmap| unmap.status.is_okay()));
        }
    }
    let time = hypervisor.now().since(before).as_nanos() as u64;
    log::info!(
        "map and unmap: {} ns a page",
        time / u64::from(SWEEPS) / BATCH as u64
    );
}

fn refused(machine: &Machine, peer: DomId, address: u64) {
    let mut batch = [
        MapGrantRef::new(address, MapFlags::HOST_MAP, GrantRef(9), peer),
        MapGrantRef::new(address, MapFlags::HOST_MAP, GrantRef(1 << 30), peer),
        MapGrantRef::new(address, MapFlags::HOST_MAP, GREF, DomId(0x7000)),
    ];
    // SAFETY: the region is unused there.
    unsafe { machine.hypervisor.map_grants(&mut batch).expect("map") };
    for map in &batch {
        log::info!("gref {} of domain {}: {}", map.gref, map.domain, map.status);
        assert!(!map.status.is_okay());
    }
}
