//! Rings of several pages, mapped next to each other.

mod pair;

use bulkhead_xen::{Errno, GrantRef, GrantStatus, PAGE_SIZE};
use bulkhead_xen_sim::Hypercall;
use pair::{Pair, peek, poke};

#[test]
fn pages_lie_next_to_each_other_in_the_order_asked_for() {
    for count in [1, 2, 3, 7, 16] {
        let pair = Pair::new();
        let free = pair.region.free_pages();
        let grefs: Vec<GrantRef> = (8..8 + count).rev().map(GrantRef).collect();
        let theirs: Vec<_> = grefs.iter().map(|gref| pair.grant(gref.0)).collect();
        let pages = pair.region.map_pages(pair.guest(), &grefs);
        let pages = pages.unwrap().unwrap();
        assert_eq!(pages.pages(), count as usize);
        assert_eq!(pair.backend.stats().hypercalls(), 1);
        for (index, page) in theirs.iter().enumerate() {
            // SAFETY: a page of those mapped.
            let ours = unsafe { pages.base().add(index * PAGE_SIZE) };
            poke(ours, index as u8 + 1);
            assert_eq!(peek(*page), index as u8 + 1);
        }
        drop(pages);
        assert_eq!(pair.backend.stats().hypercalls(), 2);
        assert_eq!(pair.region.free_pages(), free);
        pair.assert_clean();
    }
}

#[test]
fn one_bad_grant_leaves_none_mapped() {
    let pair = Pair::new();
    let free = pair.region.free_pages();
    pair.grant(8);
    pair.grant_read_only(9);
    let grefs = [GrantRef(8), GrantRef(9), GrantRef(8)];
    let refused = pair.region.map_pages(pair.guest(), &grefs).unwrap();
    let expected = (GrantRef(9), GrantStatus::GENERAL_ERROR);
    assert_eq!(refused.unwrap_err(), expected);
    assert_eq!(pair.region.free_pages(), free);
    pair.assert_clean();
}

#[test]
fn a_refused_hypercall_leaves_none_mapped() {
    let pair = Pair::new();
    pair.grant(8);
    pair.backend
        .fail_call(Hypercall::MapGrants, Errno::NOSYS, 1);
    let refused = pair.region.map_pages(pair.guest(), &[GrantRef(8)]);
    let expected = (GrantRef(8), GrantStatus::GENERAL_ERROR);
    assert_eq!(refused.unwrap().unwrap_err(), expected);
    pair.assert_clean();
}

#[test]
fn more_pages_than_the_region_has() {
    let pair = Pair::new();
    let grefs = vec![GrantRef(8); pair.region.free_pages() + 1];
    assert!(pair.region.map_pages(pair.guest(), &grefs).is_err());
    assert_eq!(pair.backend.stats().hypercalls(), 0);
}
