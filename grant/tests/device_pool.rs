//! Mapping for a device alone: what the device reaches, and as long as it may.

mod pair;

use bulkhead_grant::{DeviceMapping, DevicePool, GrantAccess, MapPoolFull};
use bulkhead_xen::{Errno, GrantRef, GrantStatus};
use bulkhead_xen_sim::{DomainKind, GrantUse, Hypercall, SimDevice, SimVcpu, Violation};
use pair::{Pair, peek, poke};
use proptest::prelude::*;

type SimPool = DevicePool<SimVcpu>;

const READ: GrantAccess = GrantAccess::ReadOnly;
const WRITE: GrantAccess = GrantAccess::ReadWrite;

fn pair() -> (Pair, SimDevice) {
    let pair = Pair::of(DomainKind::Pv);
    let device = pair.backend.add_device();
    (pair, device)
}

fn queue(pool: &mut SimPool, gref: u32, access: GrantAccess) -> DeviceMapping {
    pool.queue_map(GrantRef(gref), access).unwrap()
}

#[test]
fn a_sweep_costs_two_hypercalls_and_no_address_space() {
    let (pair, device) = pair();
    let free = pair.region.free_pages();
    let mut pool = pair.region.device_pool(pair.guest(), 32).unwrap();
    let pages: Vec<_> = (8..40).map(|gref| pair.grant(gref)).collect();
    for round in 0..3 {
        let before = pair.backend.stats();
        let mappings: Vec<_> = (8..40).map(|gref| queue(&mut pool, gref, WRITE)).collect();
        pool.map_queued();
        for (mapping, page) in mappings.iter().zip(&pages) {
            let address = pool.dma_addr(mapping).unwrap();
            device.write(address, &[round]).unwrap();
            assert_eq!(peek(*page), round);
        }
        let addresses: Vec<_> = mappings
            .iter()
            .map(|mapping| pool.dma_addr(mapping).unwrap())
            .collect();
        for mapping in mappings {
            pool.queue_unmap(mapping);
        }
        assert_eq!(pool.unmap_queued(), 32);
        let cost = pair.backend.stats() - before;
        assert_eq!((cost.map_calls, cost.maps), (1, 32));
        assert_eq!((cost.unmap_calls, cost.unmaps), (1, 32));
        assert_eq!(cost.hypercalls(), 2);
        assert!(pool.is_unused());
        if round == 2 {
            for address in addresses {
                assert!(device.read(address, &mut [0]).is_err(), "its owner has it");
            }
        }
    }
    assert_eq!(pair.region.free_pages(), free);
    assert_eq!(pair.backend.live_mappings(), 0);
    assert_eq!(pair.frontend.grants_in_use(), 0);
}

#[test]
fn what_the_device_may_only_read_it_cannot_write() {
    let (pair, device) = pair();
    let page = pair.grant(8);
    pair.grant_read_only(9);
    let mut pool = pair.region.device_pool(pair.guest(), 4).unwrap();
    let readable = queue(&mut pool, 8, READ);
    let read_only = queue(&mut pool, 9, READ);
    let refused = queue(&mut pool, 9, WRITE);
    pool.map_queued();
    poke(page, 5);
    for mapping in [&readable, &read_only] {
        let address = pool.dma_addr(mapping).unwrap();
        assert!(device.read(address, &mut [0]).is_ok());
        assert!(device.write(address, &[1]).is_err());
    }
    assert_eq!(peek(page), 5);
    assert_eq!(pool.dma_addr(&refused), Err(GrantStatus::GENERAL_ERROR));
    for mapping in [readable, read_only, refused] {
        pool.queue_unmap(mapping);
    }
    assert_eq!(pool.unmap_queued(), 2);
    assert!(pool.is_unused());
}

#[test]
fn a_page_that_is_given_back_before_it_is_mapped_is_not_mapped() {
    let (pair, _) = pair();
    let grefs = 8..12;
    let _pages: Vec<_> = grefs.clone().map(|gref| pair.grant(gref)).collect();
    let mut pool = pair.region.device_pool(pair.guest(), 4).unwrap();
    let mut mappings: Vec<_> = grefs.map(|gref| queue(&mut pool, gref, READ)).collect();
    let full = pool.queue_map(GrantRef(8), READ);
    assert_eq!(full, Err(MapPoolFull));
    pool.queue_unmap(mappings.remove(1));
    pool.map_queued();
    assert_eq!(pair.backend.stats().maps, 3);
    assert!(
        mappings
            .iter()
            .all(|mapping| pool.dma_addr(mapping).is_ok())
    );
    mappings.into_iter().for_each(|one| pool.queue_unmap(one));
    pool.unmap_queued();
    pair.assert_clean();
}

#[test]
fn a_page_that_is_away_for_a_moment_is_asked_for_again() {
    let (pair, _) = pair();
    let (grant, _pages) = ((pair.guest(), GrantRef(9)), [pair.grant(8), pair.grant(9)]);
    pair.sim
        .fail_grant(GrantUse::Map, grant, GrantStatus::EAGAIN, 3);
    let mut pool = pair.region.device_pool(pair.guest(), 4).unwrap();
    let mappings = [8, 9].map(|gref| queue(&mut pool, gref, READ));
    pool.map_queued();
    assert_eq!(pool.calls().maps, 4);
    let [one, two] = mappings.each_ref().map(|one| pool.dma_addr(one).unwrap());
    assert_ne!(one, two);
    mappings.into_iter().for_each(|one| pool.queue_unmap(one));
    pool.unmap_queued();
    pair.assert_clean();
}

#[test]
fn without_map_slots_nothing_is_mapped_and_all_is_told() {
    let (pair, _) = pair();
    let _pages = [pair.grant(8), pair.grant(9)];
    pair.backend.set_maptrack_limit(1);
    let mut pool = pair.region.device_pool(pair.guest(), 4).unwrap();
    let mappings = [8, 9].map(|gref| queue(&mut pool, gref, READ));
    pool.map_queued();
    assert!(pool.dma_addr(&mappings[0]).is_ok());
    assert_eq!(pool.dma_addr(&mappings[1]), Err(GrantStatus::NO_SPACE));
    assert_eq!((pool.take_slotless(), pool.take_slotless()), (1, 0));
    mappings.into_iter().for_each(|one| pool.queue_unmap(one));
    pool.unmap_queued();
    pair.assert_clean();
}

#[test]
fn a_hypercall_that_is_refused_is_not_believed_to_have_done_anything() {
    let (pair, device) = pair();
    let _page = pair.grant(8);
    let mut pool = pair.region.device_pool(pair.guest(), 4).unwrap();
    pair.backend
        .fail_call(Hypercall::MapGrants, Errno::FAULT, 1);
    let mapping = queue(&mut pool, 8, WRITE);
    pool.map_queued();
    assert_eq!(pool.dma_addr(&mapping), Err(GrantStatus::GENERAL_ERROR));
    pool.queue_unmap(mapping);
    let mapping = queue(&mut pool, 8, WRITE);
    pool.map_queued();
    let address = pool.dma_addr(&mapping).unwrap();
    pair.backend
        .fail_call(Hypercall::UnmapGrants, Errno::FAULT, 1);
    pool.queue_unmap(mapping);
    assert_eq!(pool.unmap_queued(), 0);
    assert!(device.read(address, &mut [0]).is_ok(), "mapped still");
    assert_eq!(pool.free_pages(), 3);
    assert_eq!(pool.unmap_queued(), 1);
    assert!(pool.is_unused());
    pair.assert_clean();
}

#[test]
fn dropping_a_pool_unmaps_what_is_left_unless_the_device_still_has_it() {
    let (pair, device) = pair();
    let page = pair.grant(8);
    let mut pool = pair.region.device_pool(pair.guest(), 4).unwrap();
    let forgotten = queue(&mut pool, 8, WRITE);
    pool.map_queued();
    drop((forgotten, pool));
    pair.assert_clean();

    let mut pool = pair.region.device_pool(pair.guest(), 4).unwrap();
    let (held, given_up) = (queue(&mut pool, 8, WRITE), queue(&mut pool, 8, WRITE));
    pool.map_queued();
    let address = pool.dma_addr(&held).unwrap();
    pool.queue_unmap(given_up);
    assert_eq!(pool.leave_mapped(), 1);
    drop((held, pool));
    assert_eq!(pair.backend.live_mappings(), 1);
    device.write(address, &[9]).unwrap();
    assert_eq!(peek(page), 9);
    pair.sim.assert_no_violations();
}

#[test]
#[should_panic(expected = "the pool that gave it out")]
fn a_mapping_is_of_no_use_in_another_pool() {
    let (pair, _) = pair();
    let _page = pair.grant(8);
    let mut pools = [(); 2].map(|()| pair.region.device_pool(pair.guest(), 4).unwrap());
    let mapping = queue(&mut pools[0], 8, WRITE);
    let _ = pools[1].dma_addr(&mapping);
}

#[test]
fn a_domain_that_is_not_paravirtualized_is_refused() {
    let pair = Pair::new();
    let _page = pair.grant(8);
    let mut pool = pair.region.device_pool(pair.guest(), 4).unwrap();
    let mapping = queue(&mut pool, 8, WRITE);
    pool.map_queued();
    assert_eq!(pool.dma_addr(&mapping), Err(GrantStatus::GENERAL_ERROR));
    pool.queue_unmap(mapping);
    assert!(pool.is_unused());
    let refused = pair.sim.violations();
    assert!(
        matches!(refused[..], [Violation::MapFlags { .. }]),
        "{refused:?}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Whatever the order: the device reaches what is mapped, as it may, and nothing else.
    #[test]
    fn the_device_reaches_what_the_model_says(
        steps in prop::collection::vec((0..4u8, 8..12u32, any::<bool>()), 1..80)
    ) {
        let (pair, device) = pair();
        let pages: Vec<_> = (8..12).map(|gref| pair.grant(gref)).collect();
        let mut pool = pair.region.device_pool(pair.guest(), 6).unwrap();
        // Each with what it was queued for, and whether it is mapped.
        let mut known: Vec<(DeviceMapping, u32, bool, bool)> = Vec::new();
        let mut leaving: Vec<(u32, bool)> = Vec::new();
        for (step, gref, writes) in steps {
            let access = if writes { WRITE } else { READ };
            match step {
                0 => match pool.queue_map(GrantRef(gref), access) {
                    Ok(mapping) => known.push((mapping, gref, writes, false)),
                    Err(MapPoolFull) => prop_assert_eq!(known.len() + leaving.len(), 6),
                },
                1 => {
                    pool.map_queued();
                    known.iter_mut().for_each(|known| known.3 = true);
                }
                2 if !known.is_empty() => {
                    let (mapping, gref, writes, mapped) = known.swap_remove(gref as usize % known.len());
                    pool.queue_unmap(mapping);
                    if mapped {
                        leaving.push((gref, writes));
                    }
                }
                _ => {
                    prop_assert_eq!(pool.unmap_queued(), leaving.len());
                    leaving.clear();
                }
            }
            let mapped = known.iter().filter(|known| known.3);
            for (mapping, gref, writes, _) in mapped.clone() {
                let address = pool.dma_addr(mapping).unwrap();
                let page = pages[*gref as usize - 8];
                poke(page, *gref as u8);
                let mut byte = [0];
                device.read(address, &mut byte).unwrap();
                prop_assert_eq!(byte[0], *gref as u8);
                if *writes {
                    device.write(address, &[0]).unwrap();
                    prop_assert_eq!(peek(page), 0);
                }
            }
            prop_assert_eq!(pair.backend.live_mappings(), mapped.count() + leaving.len());
        }
        drop(pool);
        pair.assert_clean();
    }
}
