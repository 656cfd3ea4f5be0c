//! Mapping in batches: what is mapped, what it costs, and that nothing is left.

mod pair;

use bulkhead_grant::{GrantAccess, MapPool, MapPoolFull, Mapping, NoRoom, OutOfSpace};
use bulkhead_xen::{Errno, GrantRef, GrantStatus};
use bulkhead_xen_sim::{DomainKind, GrantUse, Hypercall, SimVcpu};
use pair::{Pair, peek, poke};

type SimMapPool = MapPool<SimVcpu>;

fn queue(pool: &mut SimMapPool, gref: u32) -> Mapping {
    pool.queue_map(GrantRef(gref), GrantAccess::ReadWrite)
        .unwrap()
}

#[test]
fn a_sweep_costs_two_hypercalls() {
    let pair = Pair::new();
    let mut pool = pair.region.map_pool(pair.guest(), 32).unwrap();
    let pages: Vec<_> = (8..40).map(|gref| pair.grant(gref)).collect();
    for round in 0..3 {
        let before = pair.backend.stats();
        let mappings: Vec<Mapping> = (8..40).map(|gref| queue(&mut pool, gref)).collect();
        pool.map_queued();
        for (mapping, page) in mappings.iter().zip(&pages) {
            poke(pool.address(mapping).unwrap(), round);
            assert_eq!(peek(*page), round);
        }
        assert_eq!(pair.backend.live_mappings(), 32);
        for mapping in mappings {
            pool.queue_unmap(mapping);
        }
        pool.unmap_queued();
        let cost = pair.backend.stats() - before;
        assert_eq!((cost.map_calls, cost.maps), (1, 32));
        assert_eq!((cost.unmap_calls, cost.unmaps), (1, 32));
        assert_eq!(cost.hypercalls(), 2);
        assert!(pool.is_unused());
    }
    pair.assert_clean();
}

#[test]
fn nothing_queued_costs_nothing() {
    let pair = Pair::new();
    let mut pool = pair.region.map_pool(pair.guest(), 4).unwrap();
    pool.map_queued();
    pool.unmap_queued();
    assert_eq!(pair.backend.stats().hypercalls(), 0);
}

#[test]
fn each_page_has_its_own_status() {
    let pair = Pair::new();
    pair.grant(8);
    pair.grant_read_only(9);
    let mut pool = pair.region.map_pool(pair.guest(), 8).unwrap();
    let good = queue(&mut pool, 8);
    let read_only = queue(&mut pool, 9);
    let readable = pool.queue_map(GrantRef(9), GrantAccess::ReadOnly).unwrap();
    let empty = queue(&mut pool, 10);
    let beyond = queue(&mut pool, u32::MAX);
    pool.map_queued();
    assert!(pool.address(&good).is_ok());
    assert!(pool.address(&readable).is_ok());
    let general = Err(GrantStatus::GENERAL_ERROR);
    assert_eq!(pool.address(&read_only), general);
    assert_eq!(pool.address(&empty), general);
    assert_eq!(pool.address(&beyond), Err(GrantStatus::BAD_GNTREF));

    let before = pair.backend.stats();
    for mapping in [good, read_only, readable, empty, beyond] {
        pool.queue_unmap(mapping);
    }
    pool.unmap_queued();
    assert_eq!((pair.backend.stats() - before).unmaps, 2);
    assert!(pool.is_unused());
    pair.assert_clean();
}

#[test]
fn a_full_pool_says_so() {
    let pair = Pair::new();
    pair.grant(8);
    let mut pool = pair.region.map_pool(pair.guest(), 2).unwrap();
    let first = queue(&mut pool, 8);
    let second = queue(&mut pool, 8);
    let refused = pool.queue_map(GrantRef(8), GrantAccess::ReadOnly);
    assert_eq!(refused, Err(MapPoolFull));
    pool.map_queued();
    pool.queue_unmap(first);
    // Its page is free once it is unmapped.
    assert_eq!(pool.free_pages(), 0);
    pool.unmap_queued();
    assert_eq!(pool.free_pages(), 1);
    pool.queue_unmap(second);
    drop(pool);
    pair.assert_clean();
}

#[test]
fn pages_given_back_before_they_are_mapped_are_not_mapped() {
    let pair = Pair::new();
    pair.grant(8);
    pair.grant(9);
    let mut pool = pair.region.map_pool(pair.guest(), 4).unwrap();
    let given_back = queue(&mut pool, 8);
    let kept = queue(&mut pool, 9);
    pool.queue_unmap(given_back);
    pool.map_queued();
    assert!(pool.address(&kept).is_ok());
    assert_eq!(pair.backend.stats().maps, 1);
    pool.queue_unmap(kept);
    pool.unmap_queued();
    pair.assert_clean();
}

#[test]
fn dropping_a_pool_unmaps_what_is_left() {
    let pair = Pair::new();
    let free = pair.region.free_pages();
    let mut pool = pair.region.map_pool(pair.guest(), 8).unwrap();
    for gref in 8..12 {
        pair.grant(gref);
        // Given up without a word.
        let _ = queue(&mut pool, gref);
    }
    pool.map_queued();
    let queued = queue(&mut pool, 8);
    assert_eq!(pair.backend.live_mappings(), 4);
    drop(pool);
    drop(queued);
    assert_eq!(pair.region.free_pages(), free);
    pair.assert_clean();
}

#[test]
fn pages_that_are_away_are_asked_for_again_alone() {
    let pair = Pair::new();
    for gref in 8..12 {
        pair.grant(gref);
    }
    let away = (pair.guest(), GrantRef(9));
    pair.sim
        .fail_grant(GrantUse::Map, away, GrantStatus::EAGAIN, 3);
    let mut pool = pair.region.map_pool(pair.guest(), 8).unwrap();
    let mappings: Vec<Mapping> = (8..12).map(|gref| queue(&mut pool, gref)).collect();
    pool.map_queued();
    assert!(mappings.iter().all(|mapping| pool.address(mapping).is_ok()));
    let stats = pair.backend.stats();
    assert_eq!((stats.map_calls, stats.maps), (4, 4));
    assert_eq!(stats.maps_refused, 3);
    drop(pool);
    pair.assert_clean();
}

#[test]
fn pages_that_stay_away_are_given_up() {
    let pair = Pair::new();
    pair.grant(8);
    pair.grant(9);
    let away = (pair.guest(), GrantRef(9));
    pair.sim
        .fail_grant(GrantUse::Map, away, GrantStatus::EAGAIN, u32::MAX);
    let mut pool = pair.region.map_pool(pair.guest(), 8).unwrap();
    let (here, gone) = (queue(&mut pool, 8), queue(&mut pool, 9));
    pool.map_queued();
    assert!(pool.address(&here).is_ok());
    assert_eq!(pool.address(&gone), Err(GrantStatus::EAGAIN));
    // It is not noted any more, either.
    let before = pair.backend.stats();
    pool.map_queued();
    assert_eq!(pair.backend.stats(), before);
    drop(pool);
    pair.assert_clean();
}

#[test]
fn a_refused_hypercall_maps_nothing() {
    let pair = Pair::new();
    pair.grant(8);
    pair.backend
        .fail_call(Hypercall::MapGrants, Errno::NOSYS, 1);
    let mut pool = pair.region.map_pool(pair.guest(), 8).unwrap();
    let mapping = queue(&mut pool, 8);
    pool.map_queued();
    let general = Err(GrantStatus::GENERAL_ERROR);
    assert_eq!(pool.address(&mapping), general);
    pool.queue_unmap(mapping);
    let again = queue(&mut pool, 8);
    pool.map_queued();
    assert!(pool.address(&again).is_ok());
    drop(pool);
    pair.assert_clean();
}

#[test]
fn a_refused_unmap_is_made_up_for() {
    let pair = Pair::new();
    let free = pair.region.free_pages();
    pair.grant(8);
    pair.backend
        .fail_call(Hypercall::UnmapGrants, Errno::FAULT, 1);
    let mut pool = pair.region.map_pool(pair.guest(), 8).unwrap();
    let mapping = queue(&mut pool, 8);
    pool.map_queued();
    pool.queue_unmap(mapping);
    pool.unmap_queued();
    assert_eq!((pair.backend.live_mappings(), pool.free_pages()), (1, 7));
    pool.unmap_queued();
    assert_eq!((pair.backend.live_mappings(), pool.free_pages()), (0, 8));
    drop(pool);
    assert_eq!(pair.region.free_pages(), free);
    pair.assert_clean();
}

#[test]
fn addresses_where_something_may_be_left_are_not_used_again() {
    let pair = Pair::new();
    let free = pair.region.free_pages();
    pair.grant(8);
    let grant = (pair.guest(), GrantRef(8));
    let status = GrantStatus::GENERAL_ERROR;
    pair.sim.fail_grant(GrantUse::Unmap, grant, status, 1);
    let mut pool = pair.region.map_pool(pair.guest(), 8).unwrap();
    let mapping = queue(&mut pool, 8);
    pool.map_queued();
    pool.queue_unmap(mapping);
    pool.unmap_queued();
    assert_eq!(pool.free_pages(), 7);
    drop(pool);
    assert_eq!(pair.region.free_pages(), free - 8);
    pair.sim.assert_no_violations();
}

#[test]
#[should_panic = "a mapping is used with the pool that gave it out"]
fn mappings_belong_to_their_pool() {
    let pair = Pair::new();
    pair.grant(8);
    let mut first = pair.region.map_pool(pair.guest(), 8).unwrap();
    let second = pair.region.map_pool(pair.guest(), 8).unwrap();
    let mapping = queue(&mut first, 8);
    let _ = second.address(&mapping);
}

#[test]
fn a_frontend_that_dies_while_its_pages_are_mapped() {
    let pair = Pair::new();
    let guest = pair.guest();
    pair.grant(8);
    let mut pool = pair.region.map_pool(guest, 8).unwrap();
    let mapping = queue(&mut pool, 8);
    pool.map_queued();
    let page = pool.address(&mapping).unwrap();
    poke(page, 1);
    pair.sim.destroy_domain(guest);
    assert_eq!(peek(page), 1);
    assert!(!pair.sim.is_fully_gone(guest));
    pool.queue_unmap(mapping);
    pool.unmap_queued();
    assert!(pair.sim.is_fully_gone(guest));
    let late = queue(&mut pool, 8);
    pool.map_queued();
    assert_eq!(pool.address(&late), Err(GrantStatus::BAD_DOMAIN));
    drop(pool);
    assert_eq!(pair.backend.live_mappings(), 0);
    pair.sim.assert_no_violations();
}

#[test]
fn the_region_can_be_used_up() {
    let pair = Pair::new();
    let all = pair.region.free_pages();
    let pool = pair.region.map_pool(pair.guest(), all - 1).unwrap();
    let refused = pair.region.map_pool(pair.guest(), 2).unwrap_err();
    let full = OutOfSpace { wanted: 2, free: 1 };
    assert_eq!(refused, NoRoom::Space(full));
    drop(pool);
    assert!(pair.region.map_pool(pair.guest(), all).is_ok());
}

#[test]
fn a_device_finds_the_mapped_pages() {
    let pair = Pair::of(DomainKind::Pv);
    let device = pair.backend.add_device();
    let pages: Vec<_> = (8..12).map(|gref| pair.grant(gref)).collect();
    let mut pool = pair.region.map_pool(pair.guest(), 4).unwrap();
    pool.keep_dma_addrs().unwrap();
    for round in 0..3 {
        // The pages of the pool have other grants each time.
        let mappings: Vec<Mapping> = (0..4)
            .map(|page| queue(&mut pool, 8 + (page + round) % 4))
            .collect();
        assert_eq!(pool.dma_addr(&mappings[0]), None, "not mapped yet");
        pool.map_queued();
        for (page, mapping) in (0..).zip(&mappings) {
            let address = pool.dma_addr(mapping).expect("mapped");
            let value = (round * 4 + page) as u8;
            device.write(address.offset(5), &[value]).unwrap();
            let granted = pages[(page + round) as usize % 4];
            // SAFETY: within the page.
            assert_eq!(peek(unsafe { granted.add(5) }), value);
        }
        for mapping in mappings {
            pool.queue_unmap(mapping);
        }
        pool.unmap_queued();
    }
    let refused = queue(&mut pool, 100);
    pool.map_queued();
    assert_eq!(pool.dma_addr(&refused), None);
    pool.queue_unmap(refused);
    pair.assert_clean();
}

#[test]
fn where_devices_find_pages_is_kept_only_if_asked_for() {
    let pair = Pair::of(DomainKind::Pv);
    pair.grant(8);
    let mut pool = pair.region.map_pool(pair.guest(), 4).unwrap();
    let mapping = queue(&mut pool, 8);
    pool.map_queued();
    assert_eq!(pool.dma_addr(&mapping), None);
    pool.queue_unmap(mapping);
    pool.unmap_queued();
    pair.assert_clean();
}
