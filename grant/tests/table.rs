//! Granting own pages: what the other domain may do, and when a grant can end.

mod pair;

use bulkhead_grant::{Grant, GrantAccess, GrantTable, PagePool, SharedMemory, TableFull};
use bulkhead_xen::{GrantRef, GrantStatus, PAGE_SIZE};
use bulkhead_xen_sim::{DomainConfig, Sim, SimDomain, SimVcpu};
use core::ptr::NonNull;
use pair::{Pair, peek, poke};
use std::sync::Arc;

fn grant(
    table: &GrantTable<SimVcpu>,
    pair: &Pair,
    page: NonNull<u8>,
    access: GrantAccess,
) -> Grant<SimVcpu> {
    let frame = pair.frontend.frame_of(page);
    // SAFETY: the tests access the page by volatile accesses alone, and never free it.
    unsafe { table.grant(pair.backend.id(), frame, access) }.unwrap()
}

fn table(domain: &SimDomain) -> GrantTable<SimVcpu> {
    GrantTable::new(domain.hypervisor()).unwrap()
}

#[test]
fn a_granted_page_can_be_mapped_until_the_grant_ends() {
    let pair = Pair::new();
    let table = table(&pair.frontend);
    let free = table.free_entries();
    let page = pair.frontend.alloc_page();
    let grant = grant(&table, &pair, page, GrantAccess::ReadWrite);
    assert!(grant.gref() >= GrantRef(8), "the first are the toolstack's");
    assert!(!grant.is_in_use());

    let mut pool = pair.region.map_pool(pair.guest(), 4).unwrap();
    let gref = grant.gref();
    let mapping = pool.queue_map(gref, GrantAccess::ReadWrite).unwrap();
    pool.map_queued();
    poke(pool.address(&mapping).unwrap(), 5);
    assert_eq!(peek(page), 5);

    assert!(grant.is_in_use());
    let refused = grant.end().unwrap_err();
    assert_eq!(refused.to_string(), format!("grant {gref} is still in use"));
    pool.queue_unmap(mapping);
    pool.unmap_queued();
    let entry = refused.0.end().unwrap();
    assert_eq!((entry.gref(), table.free_entries()), (gref, free - 1));
    drop(entry);
    assert_eq!(table.free_entries(), free);

    let late = pool.queue_map(gref, GrantAccess::ReadOnly).unwrap();
    pool.map_queued();
    let general = Err(GrantStatus::GENERAL_ERROR);
    assert_eq!(pool.address(&late), general);
    drop(pool);
    pair.assert_clean();
}

#[test]
fn a_page_granted_for_reading_cannot_be_written() {
    let pair = Pair::new();
    let table = table(&pair.frontend);
    let page = pair.frontend.alloc_page();
    let grant = grant(&table, &pair, page, GrantAccess::ReadOnly);
    let mut pool = pair.region.map_pool(pair.guest(), 4).unwrap();
    let read = pool.queue_map(grant.gref(), GrantAccess::ReadOnly).unwrap();
    let write = pool
        .queue_map(grant.gref(), GrantAccess::ReadWrite)
        .unwrap();
    pool.map_queued();
    assert!(pool.address(&read).is_ok());
    assert!(pool.address(&write).is_err());
    drop(pool);
    assert!(grant.end().is_ok());
    pair.assert_clean();
}

#[test]
fn a_suspended_grant_keeps_the_other_domain_off_until_it_is_resumed() {
    let pair = Pair::new();
    let table = table(&pair.frontend);
    let page = pair.frontend.alloc_page();
    let grant = grant(&table, &pair, page, GrantAccess::ReadWrite);
    let mut pool = pair.region.map_pool(pair.guest(), 4).unwrap();
    let mut can_map = || {
        let mapping = pool
            .queue_map(grant.gref(), GrantAccess::ReadWrite)
            .unwrap();
        pool.map_queued();
        let mapped = pool.address(&mapping).is_ok();
        assert_eq!(grant.suspend(), !mapped, "not while it is mapped");
        pool.queue_unmap(mapping);
        pool.unmap_queued();
        mapped
    };
    assert!(can_map());
    assert!(grant.suspend());
    assert!(!can_map());
    // SAFETY: as in `grant`.
    unsafe { grant.resume(GrantAccess::ReadWrite) };
    assert!(can_map());
    drop(pool);
    assert!(grant.suspend());
    assert!(grant.end().is_ok());
    pair.assert_clean();
}

#[test]
fn memory_is_seen_by_reference_only_while_the_other_domain_cannot_write_to_it() {
    let pair = Pair::new();
    let table = table(&pair.frontend);
    let pages = PagePool::new(Arc::new(pair.frontend.hypervisor()));
    let hypervisor = pair.frontend.hypervisor();
    let mut read = SharedMemory::new(&pages, &table, 2).unwrap();
    let mut written = SharedMemory::new(&pages, &table, 3).unwrap();
    written
        .bytes(0, 3 * PAGE_SIZE)
        .expect("not granted yet")
        .fill(1);
    read.grant_for_reading(&hypervisor, pair.backend.id())
        .unwrap();
    written.grant(&hypervisor, pair.backend.id()).unwrap();
    assert!(read.bytes(0, 2 * PAGE_SIZE).is_some());
    assert!(written.bytes(0, 1).is_none());

    let mut pool = pair.region.map_pool(pair.guest(), 4).unwrap();
    let mapping = pool
        .queue_map(written.gref(1).unwrap(), GrantAccess::ReadWrite)
        .unwrap();
    pool.map_queued();
    assert!(!written.withdraw(1), "it is mapped");
    assert!(written.bytes(PAGE_SIZE, 1).is_none());
    poke(pool.address(&mapping).unwrap(), 5);
    pool.queue_unmap(mapping);
    pool.unmap_queued();

    assert!(written.withdraw(1) && written.withdraw(1));
    assert_eq!(written.bytes(PAGE_SIZE, PAGE_SIZE).unwrap()[..2], [5, 1]);
    for (offset, len) in [
        (PAGE_SIZE - 1, 2),
        (PAGE_SIZE, PAGE_SIZE + 1),
        (0, 3 * PAGE_SIZE),
    ] {
        assert!(
            written.bytes(offset, len).is_none(),
            "the page beside it is granted"
        );
    }
    assert!(written.withdraw(2));
    assert!(written.bytes(PAGE_SIZE, 2 * PAGE_SIZE).is_some());
    written.give(1);
    assert!(written.bytes(PAGE_SIZE, 1).is_none());
    let mapping = pool
        .queue_map(written.gref(1).unwrap(), GrantAccess::ReadWrite)
        .unwrap();
    pool.map_queued();
    assert!(pool.address(&mapping).is_ok());
    drop(pool);

    // Nothing is left of it for the next backend.
    assert!(written.revoke());
    assert!(written.bytes(0, 3 * PAGE_SIZE).is_some());
    written.grant(&hypervisor, pair.backend.id()).unwrap();
    assert!(written.bytes(2 * PAGE_SIZE, 1).is_none());
    drop((read, written));
    pair.assert_clean();
}

#[test]
fn an_entry_grants_one_page_after_another() {
    let pair = Pair::new();
    let table = table(&pair.frontend);
    let mut entry = table.entry().unwrap();
    let gref = entry.gref();
    let mut pool = pair.region.map_pool(pair.guest(), 4).unwrap();
    for value in 1..4 {
        let page = pair.frontend.alloc_page();
        poke(page, value);
        let frame = pair.frontend.frame_of(page);
        // SAFETY: as in `grant`.
        let grant = unsafe { entry.grant(pair.backend.id(), frame, GrantAccess::ReadOnly) };
        let mapping = pool.queue_map(gref, GrantAccess::ReadOnly).unwrap();
        pool.map_queued();
        assert_eq!(peek(pool.address(&mapping).unwrap()), value);
        pool.queue_unmap(mapping);
        pool.unmap_queued();
        entry = grant.end().unwrap();
    }
    pair.assert_clean();
}

#[test]
fn a_grant_given_up_in_use_is_free_when_the_other_domain_stops() {
    let sim = Sim::new();
    let backend = sim.add_domain();
    let frontend = sim.add_domain_with(DomainConfig {
        grant_entries: 10,
        ..DomainConfig::default()
    });
    let region = bulkhead_grant::Region::new(backend.hypervisor()).unwrap();
    let pair = Pair {
        sim,
        backend,
        frontend,
        region,
    };
    let table = table(&pair.frontend);
    let page = pair.frontend.alloc_page();
    let first = grant(&table, &pair, page, GrantAccess::ReadOnly);
    let mut pool = pair.region.map_pool(pair.guest(), 4).unwrap();
    let mapping = pool.queue_map(first.gref(), GrantAccess::ReadOnly).unwrap();
    pool.map_queued();

    let gref = first.gref();
    drop(first);
    assert!(!pair.frontend.grant_flags(gref).is_empty());
    let other = table.entry().unwrap();
    assert_eq!(table.entry().unwrap_err(), TableFull);
    pool.queue_unmap(mapping);
    pool.unmap_queued();
    assert_eq!(table.free_entries(), 1);
    assert_eq!(table.entry().unwrap().gref(), gref);
    assert!(pair.frontend.grant_flags(gref).is_empty());
    drop(other);
    pair.assert_clean();
}

#[test]
fn all_entries_can_be_taken_and_given_back() {
    let pair = Pair::new();
    let table = table(&pair.frontend);
    let all = table.free_entries();
    assert_eq!(all, 2048 - 8);
    for _ in 0..2 {
        let entries: Vec<_> = std::iter::from_fn(|| table.entry().ok()).collect();
        assert_eq!(entries.len(), all);
        let mut grefs: Vec<_> = entries.iter().map(|entry| entry.gref()).collect();
        grefs.sort();
        grefs.dedup();
        assert_eq!(grefs.len(), all);
        assert_eq!(table.free_entries(), 0);
    }
    assert_eq!(table.free_entries(), all);
}

#[test]
fn the_table_has_one_owner() {
    let pair = Pair::new();
    let table = table(&pair.frontend);
    assert!(GrantTable::new(pair.frontend.hypervisor()).is_none());
    assert_eq!(table.clone().free_entries(), table.free_entries());
}
