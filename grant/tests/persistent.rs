//! Persistently mapped grants: what stays, what goes, and what it costs.

mod pair;

use bulkhead_grant::{CacheFull, CachedMapping, GrantAccess, PersistentCache};
use bulkhead_xen::{GrantRef, GrantStatus};
use bulkhead_xen_sim::{DomainKind, SimVcpu, Stats};
use pair::{Pair, peek, poke};

const READ: GrantAccess = GrantAccess::ReadOnly;
const WRITE: GrantAccess = GrantAccess::ReadWrite;

fn cache(pair: &Pair, capacity: usize) -> PersistentCache<SimVcpu> {
    PersistentCache::new(&pair.region, pair.guest(), capacity, 8).unwrap()
}

/// Makes one request after another that uses one page each. Returns their cost.
fn use_pages(
    pair: &Pair,
    cache: &mut PersistentCache<SimVcpu>,
    grefs: impl IntoIterator<Item = u32>,
) -> Stats {
    let before = pair.backend.stats();
    for gref in grefs {
        let cached = cache.hold(GrantRef(gref), WRITE).unwrap();
        cache.map_queued();
        poke(cache.address(&cached).unwrap(), gref as u8);
        cache.release(cached);
    }
    pair.backend.stats() - before
}

#[test]
fn known_pages_cost_no_hypercall() {
    let pair = Pair::new();
    let pages: Vec<_> = (8..16).map(|gref| pair.grant(gref)).collect();
    let mut cache = cache(&pair, 8);
    assert_eq!(use_pages(&pair, &mut cache, 8..16).maps, 8);
    for _ in 0..5 {
        assert_eq!(use_pages(&pair, &mut cache, 8..16).hypercalls(), 0);
    }
    for (page, gref) in pages.iter().zip(8..) {
        assert_eq!(peek(*page), gref);
    }
    assert_eq!((cache.len(), cache.hits(), cache.misses()), (8, 40, 8));
    drop(cache);
    pair.assert_clean();
}

#[test]
fn a_sweep_of_new_pages_is_one_hypercall() {
    let pair = Pair::new();
    let mut cache = cache(&pair, 16);
    let mut cached: Vec<CachedMapping> = Vec::new();
    for gref in 8..16 {
        pair.grant(gref);
        cached.push(cache.hold(GrantRef(gref), WRITE).unwrap());
        // The same page twice in one sweep is mapped once.
        cached.push(cache.hold(GrantRef(gref), READ).unwrap());
    }
    cache.map_queued();
    assert!(cached.iter().all(|cached| cache.address(cached).is_ok()));
    let stats = pair.backend.stats();
    assert_eq!((stats.hypercalls(), stats.maps), (1, 8));
    cached.into_iter().for_each(|cached| cache.release(cached));
    cache.discard_idle();
    assert!(cache.is_empty());
    assert_eq!(pair.backend.stats().unmap_calls, 1);
    pair.assert_clean();
}

#[test]
fn the_page_goes_that_was_not_used_since_it_became_idle() {
    let pair = Pair::new();
    for gref in 8..13 {
        pair.grant(gref);
    }
    let mut cache = cache(&pair, 4);
    use_pages(&pair, &mut cache, [8, 9, 10, 11, 8]);
    // 9 makes room for 12, and 8 for 9.
    assert_eq!(use_pages(&pair, &mut cache, [12]).maps, 1);
    assert_eq!(use_pages(&pair, &mut cache, [10, 11, 12]).hypercalls(), 0);
    let cost = use_pages(&pair, &mut cache, [9]);
    assert_eq!((cost.maps, cost.unmaps), (1, 1));
    assert_eq!(
        use_pages(&pair, &mut cache, [10, 11, 12, 9]).hypercalls(),
        0
    );
    assert_eq!((cache.len(), pair.backend.live_mappings()), (4, 4));
    drop(cache);
    pair.assert_clean();
}

#[test]
fn a_page_that_is_used_without_being_held_is_used_recently_too() {
    let pair = Pair::new();
    for gref in 8..13 {
        pair.grant(gref);
    }
    let mut cache = cache(&pair, 4);
    assert_eq!(cache.revisit(GrantRef(8), READ), None, "not mapped yet");
    use_pages(&pair, &mut cache, 8..12);
    for _ in 0..3 {
        assert!(cache.revisit(GrantRef(8), WRITE).is_some());
    }
    // 9 makes room for 12, and 10 for 9.
    assert_eq!(use_pages(&pair, &mut cache, [12]).maps, 1);
    assert!(cache.revisit(GrantRef(8), WRITE).is_some());
    assert_eq!(cache.revisit(GrantRef(9), WRITE), None);
    assert_eq!(use_pages(&pair, &mut cache, [9]).maps, 1);
    assert_eq!(cache.revisit(GrantRef(10), WRITE), None);
    // One that is held is found as well.
    let held = cache.hold(GrantRef(11), WRITE).unwrap();
    let address = cache.address(&held).unwrap();
    assert_eq!(
        cache.revisit(GrantRef(11), WRITE).map(|(page, _)| page),
        Some(address)
    );
    cache.release(held);
    drop(cache);
    pair.assert_clean();
}

#[test]
fn more_grants_than_fit_are_exchanged_a_sweep_at_a_time() {
    let pair = Pair::new();
    for gref in 8..40 {
        pair.grant(gref);
    }
    let mut cache = cache(&pair, 8);
    for sweep in 0..16 {
        let before = pair.backend.stats();
        let first = 8 + sweep % 8 * 4;
        let cached: Vec<CachedMapping> = (first..first + 4)
            .map(|gref| cache.hold(GrantRef(gref), WRITE).unwrap())
            .collect();
        cache.map_queued();
        for cached in cached {
            assert!(cache.address(&cached).is_ok());
            cache.release(cached);
        }
        let cost = pair.backend.stats() - before;
        assert!(cost.map_calls <= 1 && cost.unmap_calls <= 1);
        assert!(pair.backend.live_mappings() <= 8);
    }
    drop(cache);
    pair.assert_clean();
}

#[test]
fn held_pages_stay() {
    let pair = Pair::new();
    for gref in 8..12 {
        pair.grant(gref);
    }
    let mut cache = cache(&pair, 2);
    let first = cache.hold(GrantRef(8), WRITE).unwrap();
    let second = cache.hold(GrantRef(9), WRITE).unwrap();
    cache.map_queued();
    let address = cache.address(&first).unwrap();
    assert_eq!(cache.hold(GrantRef(10), WRITE), Err(CacheFull));
    cache.release(second);
    let third = cache.hold(GrantRef(10), WRITE).unwrap();
    cache.map_queued();
    assert_eq!(cache.address(&first), Ok(address));
    assert!(cache.address(&third).is_ok());
    drop(cache);
    pair.assert_clean();
}

#[test]
fn pages_for_reading_alone_are_never_written() {
    let pair = Pair::new();
    pair.grant_read_only(8);
    let mut cache = cache(&pair, 4);
    let read = cache.hold(GrantRef(8), READ).unwrap();
    cache.map_queued();
    assert!(cache.address(&read).is_ok());
    assert!(cache.revisit(GrantRef(8), READ).is_some());
    assert_eq!(cache.revisit(GrantRef(8), WRITE), None);
    // While one request reads it, another cannot have it for writing.
    let write = cache.hold(GrantRef(8), WRITE).unwrap();
    cache.map_queued();
    let general = Err(GrantStatus::GENERAL_ERROR);
    assert_eq!(cache.address(&write), general);
    cache.release(write);
    assert!(cache.address(&read).is_ok());
    cache.release(read);

    // Read again, it costs nothing; for writing, Xen is asked once more and refuses.
    let before = pair.backend.stats();
    let read = cache.hold(GrantRef(8), READ).unwrap();
    cache.map_queued();
    assert_eq!((pair.backend.stats() - before).hypercalls(), 0);
    cache.release(read);
    let write = cache.hold(GrantRef(8), WRITE).unwrap();
    cache.map_queued();
    assert_eq!(cache.address(&write), general);
    cache.release(write);
    assert!(cache.is_empty());

    // Granted for writing by now, it can be written.
    pair.grant(8);
    let write = cache.hold(GrantRef(8), WRITE).unwrap();
    cache.map_queued();
    assert!(cache.address(&write).is_ok());
    cache.release(write);
    drop(cache);
    pair.assert_clean();
}

#[test]
fn refused_pages_are_not_cached() {
    let pair = Pair::new();
    let mut cache = cache(&pair, 4);
    for _ in 0..10 {
        for access in [READ, WRITE] {
            let cached = cache.hold(GrantRef(100), access).unwrap();
            cache.map_queued();
            assert!(cache.address(&cached).is_err());
            cache.release(cached);
            assert!(cache.is_empty());
        }
    }
    // Held, and released before it was mapped.
    pair.grant(8);
    let cached = cache.hold(GrantRef(8), WRITE).unwrap();
    cache.release(cached);
    cache.map_queued();
    assert!(cache.is_empty());
    drop(cache);
    pair.assert_clean();
}

#[test]
fn where_xen_has_few_map_slots_fewer_pages_stay_mapped_and_more_are_tried_for_later() {
    let pair = Pair::new();
    (8..20).for_each(|gref| _ = pair.grant(gref));
    let mut cache = cache(&pair, 16);
    pair.backend.set_maptrack_limit(8);
    // Each page is mapped when it is used, and some slots are left to others.
    use_pages(&pair, &mut cache, (8..20).cycle().take(100));
    cache.trim();
    assert!(cache.len() < 8, "{} pages stay", cache.len());
    assert_eq!(pair.backend.live_mappings(), cache.len());
    pair.backend.set_maptrack_limit(1000);
    use_pages(&pair, &mut cache, (8..20).cycle().take(1500));
    assert_eq!(cache.len(), 12);
    assert_eq!(use_pages(&pair, &mut cache, 8..20).hypercalls(), 0);
    drop(cache);
    pair.assert_clean();
}

#[test]
fn pages_that_are_held_may_find_no_map_slot() {
    let pair = Pair::new();
    (8..20).for_each(|gref| _ = pair.grant(gref));
    let mut cache = cache(&pair, 16);
    pair.backend.set_maptrack_limit(5);
    let hold = |gref| cache.hold(GrantRef(gref), WRITE).unwrap();
    let cached: Vec<CachedMapping> = (8..20).map(hold).collect();
    cache.map_queued();
    let reached = |cached: &&CachedMapping| cache.address(cached).is_ok();
    assert_eq!(cached.iter().filter(reached).count(), 5);
    let refused = cached
        .iter()
        .filter_map(|cached| cache.address(cached).err());
    assert!(
        refused
            .into_iter()
            .all(|status| status == GrantStatus::NO_SPACE)
    );
    cached.into_iter().for_each(|cached| cache.release(cached));
    cache.trim();
    assert!(cache.len() < 5);
    drop(cache);
    pair.assert_clean();
}

#[test]
fn a_device_finds_the_cached_pages() {
    let pair = Pair::of(DomainKind::Pv);
    let device = pair.backend.add_device();
    let pages: Vec<_> = (8..20).map(|gref| pair.grant(gref)).collect();
    let read_only = pair.grant_read_only(20);
    let mut cache = cache(&pair, 8);
    cache.keep_dma_addrs().unwrap();
    // More than fit, so that pages of the region change hands.
    for round in 0..3 {
        for (gref, page) in (8..).zip(&pages) {
            let cached = cache.hold(GrantRef(gref), WRITE).unwrap();
            cache.map_queued();
            let address = cache.dma_addr(&cached).expect("mapped");
            let value = round * 16 + gref as u8;
            device.write(address, &[value]).unwrap();
            assert_eq!(peek(*page), value);
            // Known now, and still there.
            let again = cache.hold(GrantRef(gref), READ).unwrap();
            assert_eq!(cache.dma_addr(&again), Some(address));
            let found = cache.revisit(GrantRef(gref), READ).map(|(_, dma)| dma);
            assert_eq!(found, Some(Some(address)));
            cache.release(again);
            cache.release(cached);
        }
    }
    poke(read_only, 5);
    let cached = cache.hold(GrantRef(20), READ).unwrap();
    cache.map_queued();
    let address = cache.dma_addr(&cached).expect("mapped for reading");
    let mut byte = [0];
    device.read(address, &mut byte).unwrap();
    assert_eq!(byte, [5]);
    cache.release(cached);
    drop(cache);
    assert!(device.read(address, &mut byte).is_err(), "unmapped");
    assert_eq!(pair.backend.violations().len(), 1, "that");
    assert_eq!(pair.backend.live_mappings(), 0);
}
