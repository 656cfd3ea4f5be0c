//! Mapping in batches: what is mapped, what it costs, and that nothing is left.

mod pair;

use bulkhead_grant::{Access, NoRoom, OutOfSpace, Slot, Window, WindowFull};
use bulkhead_xen::{Errno, GrantRef, GrantStatus};
use bulkhead_xen_sim::{DomainKind, GrantUse, Hypercall, SimVcpu};
use pair::{Pair, peek, poke};

type SimWindow = Window<SimVcpu>;

fn queue(window: &mut SimWindow, gref: u32) -> Slot {
    window.queue_map(GrantRef(gref), Access::ReadWrite).unwrap()
}

#[test]
fn a_sweep_costs_two_hypercalls() {
    let pair = Pair::new();
    let mut window = pair.region.window(pair.guest(), 32).unwrap();
    let pages: Vec<_> = (8..40).map(|gref| pair.grant(gref)).collect();
    for round in 0..3 {
        let before = pair.backend.stats();
        let slots: Vec<Slot> = (8..40).map(|gref| queue(&mut window, gref)).collect();
        window.map_queued();
        for (slot, page) in slots.iter().zip(&pages) {
            poke(window.address(slot).unwrap(), round);
            assert_eq!(peek(*page), round);
        }
        assert_eq!(pair.backend.live_mappings(), 32);
        for slot in slots {
            window.queue_unmap(slot);
        }
        window.unmap_queued();
        let cost = pair.backend.stats() - before;
        assert_eq!((cost.map_calls, cost.maps), (1, 32));
        assert_eq!((cost.unmap_calls, cost.unmaps), (1, 32));
        assert_eq!(cost.hypercalls(), 2);
        assert!(window.is_unused());
    }
    pair.assert_clean();
}

#[test]
fn nothing_queued_costs_nothing() {
    let pair = Pair::new();
    let mut window = pair.region.window(pair.guest(), 4).unwrap();
    window.map_queued();
    window.unmap_queued();
    assert_eq!(pair.backend.stats().hypercalls(), 0);
}

#[test]
fn each_page_has_its_own_status() {
    let pair = Pair::new();
    pair.grant(8);
    pair.grant_read_only(9);
    let mut window = pair.region.window(pair.guest(), 8).unwrap();
    let good = queue(&mut window, 8);
    let read_only = queue(&mut window, 9);
    let readable = window.queue_map(GrantRef(9), Access::ReadOnly).unwrap();
    let empty = queue(&mut window, 10);
    let beyond = queue(&mut window, u32::MAX);
    window.map_queued();
    assert!(window.address(&good).is_ok());
    assert!(window.address(&readable).is_ok());
    let general = Err(GrantStatus::GENERAL_ERROR);
    assert_eq!(window.address(&read_only), general);
    assert_eq!(window.address(&empty), general);
    assert_eq!(window.address(&beyond), Err(GrantStatus::BAD_GNTREF));

    let before = pair.backend.stats();
    for slot in [good, read_only, readable, empty, beyond] {
        window.queue_unmap(slot);
    }
    window.unmap_queued();
    assert_eq!((pair.backend.stats() - before).unmaps, 2);
    assert!(window.is_unused());
    pair.assert_clean();
}

#[test]
fn a_full_window_says_so() {
    let pair = Pair::new();
    pair.grant(8);
    let mut window = pair.region.window(pair.guest(), 2).unwrap();
    let first = queue(&mut window, 8);
    let second = queue(&mut window, 8);
    let refused = window.queue_map(GrantRef(8), Access::ReadOnly);
    assert_eq!(refused, Err(WindowFull));
    window.map_queued();
    window.queue_unmap(first);
    // Its page is free once it is unmapped.
    assert_eq!(window.free_slots(), 0);
    window.unmap_queued();
    assert_eq!(window.free_slots(), 1);
    window.queue_unmap(second);
    drop(window);
    pair.assert_clean();
}

#[test]
fn pages_given_back_before_they_are_mapped_are_not_mapped() {
    let pair = Pair::new();
    pair.grant(8);
    pair.grant(9);
    let mut window = pair.region.window(pair.guest(), 4).unwrap();
    let given_back = queue(&mut window, 8);
    let kept = queue(&mut window, 9);
    window.queue_unmap(given_back);
    window.map_queued();
    assert!(window.address(&kept).is_ok());
    assert_eq!(pair.backend.stats().maps, 1);
    window.queue_unmap(kept);
    window.unmap_queued();
    pair.assert_clean();
}

#[test]
fn dropping_a_window_unmaps_what_is_left() {
    let pair = Pair::new();
    let free = pair.region.free_pages();
    let mut window = pair.region.window(pair.guest(), 8).unwrap();
    for gref in 8..12 {
        pair.grant(gref);
        // Given up without a word.
        let _ = queue(&mut window, gref);
    }
    window.map_queued();
    let queued = queue(&mut window, 8);
    assert_eq!(pair.backend.live_mappings(), 4);
    drop(window);
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
    let mut window = pair.region.window(pair.guest(), 8).unwrap();
    let slots: Vec<Slot> = (8..12).map(|gref| queue(&mut window, gref)).collect();
    window.map_queued();
    assert!(slots.iter().all(|slot| window.address(slot).is_ok()));
    let stats = pair.backend.stats();
    assert_eq!((stats.map_calls, stats.maps), (4, 4));
    assert_eq!(stats.maps_refused, 3);
    drop(window);
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
    let mut window = pair.region.window(pair.guest(), 8).unwrap();
    let (here, gone) = (queue(&mut window, 8), queue(&mut window, 9));
    window.map_queued();
    assert!(window.address(&here).is_ok());
    assert_eq!(window.address(&gone), Err(GrantStatus::EAGAIN));
    // It is not noted any more, either.
    let before = pair.backend.stats();
    window.map_queued();
    assert_eq!(pair.backend.stats(), before);
    drop(window);
    pair.assert_clean();
}

#[test]
fn a_refused_hypercall_maps_nothing() {
    let pair = Pair::new();
    pair.grant(8);
    pair.backend
        .fail_call(Hypercall::MapGrants, Errno::NOSYS, 1);
    let mut window = pair.region.window(pair.guest(), 8).unwrap();
    let slot = queue(&mut window, 8);
    window.map_queued();
    let general = Err(GrantStatus::GENERAL_ERROR);
    assert_eq!(window.address(&slot), general);
    window.queue_unmap(slot);
    let again = queue(&mut window, 8);
    window.map_queued();
    assert!(window.address(&again).is_ok());
    drop(window);
    pair.assert_clean();
}

#[test]
fn a_refused_unmap_is_made_up_for() {
    let pair = Pair::new();
    let free = pair.region.free_pages();
    pair.grant(8);
    pair.backend
        .fail_call(Hypercall::UnmapGrants, Errno::FAULT, 1);
    let mut window = pair.region.window(pair.guest(), 8).unwrap();
    let slot = queue(&mut window, 8);
    window.map_queued();
    window.queue_unmap(slot);
    window.unmap_queued();
    assert_eq!((pair.backend.live_mappings(), window.free_slots()), (1, 7));
    window.unmap_queued();
    assert_eq!((pair.backend.live_mappings(), window.free_slots()), (0, 8));
    drop(window);
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
    let mut window = pair.region.window(pair.guest(), 8).unwrap();
    let slot = queue(&mut window, 8);
    window.map_queued();
    window.queue_unmap(slot);
    window.unmap_queued();
    assert_eq!(window.free_slots(), 7);
    drop(window);
    assert_eq!(pair.region.free_pages(), free - 8);
    pair.sim.assert_no_violations();
}

#[test]
#[should_panic = "a slot is used with the window that gave it out"]
fn slots_belong_to_their_window() {
    let pair = Pair::new();
    pair.grant(8);
    let mut first = pair.region.window(pair.guest(), 8).unwrap();
    let second = pair.region.window(pair.guest(), 8).unwrap();
    let slot = queue(&mut first, 8);
    let _ = second.address(&slot);
}

#[test]
fn a_frontend_that_dies_while_its_pages_are_mapped() {
    let pair = Pair::new();
    let guest = pair.guest();
    pair.grant(8);
    let mut window = pair.region.window(guest, 8).unwrap();
    let slot = queue(&mut window, 8);
    window.map_queued();
    let page = window.address(&slot).unwrap();
    poke(page, 1);
    pair.sim.destroy_domain(guest);
    assert_eq!(peek(page), 1);
    assert!(!pair.sim.is_fully_gone(guest));
    window.queue_unmap(slot);
    window.unmap_queued();
    assert!(pair.sim.is_fully_gone(guest));
    let late = queue(&mut window, 8);
    window.map_queued();
    assert_eq!(window.address(&late), Err(GrantStatus::BAD_DOMAIN));
    drop(window);
    assert_eq!(pair.backend.live_mappings(), 0);
    pair.sim.assert_no_violations();
}

#[test]
fn the_region_can_be_used_up() {
    let pair = Pair::new();
    let all = pair.region.free_pages();
    let window = pair.region.window(pair.guest(), all - 1).unwrap();
    let refused = pair.region.window(pair.guest(), 2).unwrap_err();
    let full = OutOfSpace { wanted: 2, free: 1 };
    assert_eq!(refused, NoRoom::Space(full));
    drop(window);
    assert!(pair.region.window(pair.guest(), all).is_ok());
}

#[test]
fn a_device_finds_the_mapped_pages() {
    let pair = Pair::of(DomainKind::Pv);
    let device = pair.backend.add_device();
    let pages: Vec<_> = (8..12).map(|gref| pair.grant(gref)).collect();
    let mut window = pair.region.window(pair.guest(), 4).unwrap();
    window.keep_dma_addrs().unwrap();
    for round in 0..3 {
        // The pages of the window have other grants each time.
        let slots: Vec<Slot> = (0..4)
            .map(|page| queue(&mut window, 8 + (page + round) % 4))
            .collect();
        assert_eq!(window.dma_addr(&slots[0]), None, "not mapped yet");
        window.map_queued();
        for (page, slot) in (0..).zip(&slots) {
            let address = window.dma_addr(slot).expect("mapped");
            let value = (round * 4 + page) as u8;
            device.write(address.offset(5), &[value]).unwrap();
            let granted = pages[(page + round) as usize % 4];
            // SAFETY: within the page.
            assert_eq!(peek(unsafe { granted.add(5) }), value);
        }
        for slot in slots {
            window.queue_unmap(slot);
        }
        window.unmap_queued();
    }
    let refused = queue(&mut window, 100);
    window.map_queued();
    assert_eq!(window.dma_addr(&refused), None);
    window.queue_unmap(refused);
    pair.assert_clean();
}

#[test]
fn where_devices_find_pages_is_kept_only_if_asked_for() {
    let pair = Pair::of(DomainKind::Pv);
    pair.grant(8);
    let mut window = pair.region.window(pair.guest(), 4).unwrap();
    let slot = queue(&mut window, 8);
    window.map_queued();
    assert_eq!(window.dma_addr(&slot), None);
    window.queue_unmap(slot);
    window.unmap_queued();
    pair.assert_clean();
}
