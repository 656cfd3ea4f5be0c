//! Grants that a boot before this one has left, in a domain that has started again in place.

mod pair;

use bulkhead_grant::{GrantAccess, GrantTable, PagePool, SharedMemory, TableOnDemand};
use bulkhead_xen::{GrantRef, Hypervisor, Reservation};
use bulkhead_xen_sim::SimVcpu;
use core::ptr::NonNull;
use pair::Pair;
use std::sync::Arc;

fn grant(table: &GrantTable<SimVcpu>, pair: &Pair, page: NonNull<u8>) -> GrantRef {
    let frame = pair.frontend.hypervisor().frame_of(page.as_ptr()).unwrap();
    // SAFETY: nothing accesses the page.
    let grant = unsafe { table.grant(pair.backend.id(), frame, GrantAccess::ReadWrite) };
    let grant = grant.unwrap();
    let gref = grant.gref();
    // The crash.
    std::mem::forget(grant);
    gref
}

/// Crashes the frontend's domain and starts it again in place. Returns the grant table and the memory of the next boot.
fn next_boot(pair: &Pair, table: GrantTable<SimVcpu>) -> (GrantTable<SimVcpu>, PagePool) {
    std::mem::forget(table);
    pair.frontend.restart(&[]);
    let hypervisor = pair.frontend.hypervisor();
    let left = TableOnDemand::left(hypervisor.clone(), Arc::new(hypervisor.clone()));
    assert!(left.was_left());
    let memory = PagePool::new(Arc::new(hypervisor.clone()));
    (left.get().unwrap(), memory)
}

#[test]
fn pages_are_free_again_once_nobody_uses_them_and_their_entries_then_too() {
    let pair = Pair::new();
    let hypervisor = pair.frontend.hypervisor();
    let before = pair.frontend.pages_in_use();
    let table = GrantTable::new(hypervisor.clone()).unwrap();
    let free = table.free_entries();
    let pages = hypervisor.allocate_to_grant(3).unwrap();
    // SAFETY: within the pages.
    let page = |number: usize| unsafe { pages.add(number * 4096) };
    // The first page is granted twice, the second once, and the third not at all.
    let [first, again, second] = [page(0), page(0), page(1)].map(|page| grant(&table, &pair, page));
    let mut pool = pair.region.map_pool(pair.guest(), 4).unwrap();
    let mut map = |gref| pool.queue_map(gref, GrantAccess::ReadWrite).unwrap();
    let (used, other) = (map(again), map(second));
    pool.map_queued();
    let (table, _) = next_boot(&pair, table);
    assert_eq!(pair.frontend.pages_in_use(), before + 2);
    assert_eq!(table.end_left(None), 2);
    assert_eq!(table.end_left(Some(pair.backend.id())), 2);
    assert_eq!(table.end_left(Some(pair.guest())), 0);
    let backend = pair.backend.id();
    assert!(table.is_left(backend, &[first, second]));
    assert!(!table.is_left(pair.guest(), &[second]));
    assert!(!table.is_left(backend, &[first]));
    assert_eq!(pair.frontend.pages_in_use(), before + 2);
    // New grants get other entries than those in use.
    let page = hypervisor.allocate_to_grant(1).unwrap();
    for _ in 0..3 {
        let new = grant(&table, &pair, page);
        assert!(new != again && new != second, "{new}");
    }
    pool.queue_unmap(other);
    pool.unmap_queued();
    assert!(!table.is_left(backend, &[first, second]));
    assert!(table.is_left(backend, &[again]));
    assert_eq!(table.end_left(None), 1);
    assert_eq!(pair.frontend.pages_in_use(), before + 2);
    pool.queue_unmap(used);
    pool.unmap_queued();
    assert_eq!(table.end_left(None), 0);
    assert_eq!(pair.frontend.pages_in_use(), before + 1);
    assert_eq!(table.free_entries(), free - 3);
    assert!(first < again);
    drop(pool);
    pair.assert_clean();
}

/// A backend that is at work on messages of before the crash uses the numbers in them, whatever they are granted for now.
#[test]
fn numbers_of_before_are_not_given_out_while_anything_of_before_is_in_use() {
    let pair = Pair::new();
    let hypervisor = pair.frontend.hypervisor();
    let table = GrantTable::new(hypervisor.clone()).unwrap();
    let page = hypervisor.allocate_to_grant(1).unwrap();
    let before: Vec<_> = (0..4).map(|_| grant(&table, &pair, page)).collect();
    let frame = hypervisor.frame_of(page.as_ptr()).unwrap();
    // SAFETY: nothing accesses the page.
    let suspended = unsafe { table.grant(pair.backend.id(), frame, GrantAccess::ReadWrite) };
    let suspended = suspended.unwrap();
    assert!(suspended.suspend());
    let numbers: Vec<_> = before.iter().copied().chain([suspended.gref()]).collect();
    std::mem::forget(suspended);
    let mut pool = pair.region.map_pool(pair.guest(), 1).unwrap();
    let used = pool.queue_map(before[1], GrantAccess::ReadWrite).unwrap();
    pool.map_queued();
    let (table, _) = next_boot(&pair, table);
    assert_eq!(table.end_left(None), 1);
    let page = hypervisor.allocate_to_grant(1).unwrap();
    for _ in 0..20 {
        let new = grant(&table, &pair, page);
        assert!(!numbers.contains(&new), "{new}");
    }
    pool.queue_unmap(used);
    pool.unmap_queued();
    assert_eq!(table.end_left(None), 0);
    let mut again: Vec<_> = (0..5).map(|_| grant(&table, &pair, page)).collect();
    again.sort();
    assert_eq!(again, numbers);
    drop(pool);
    pair.assert_clean();
}

#[test]
fn a_page_that_is_shared_on_is_this_boots_and_not_waited_for() {
    let pair = Pair::new();
    let hypervisor = pair.frontend.hypervisor();
    let before = pair.frontend.pages_in_use();
    let table = GrantTable::new(hypervisor.clone()).unwrap();
    let pages = hypervisor.allocate_to_grant(3).unwrap();
    // SAFETY: within the pages.
    let page = |number: usize| unsafe { pages.add(number * 4096) };
    let [used, unused, twice, again] =
        [page(0), page(1), page(2), page(2)].map(|page| grant(&table, &pair, page));
    let mut pool = pair.region.map_pool(pair.guest(), 4).unwrap();
    let mut map = |gref| pool.queue_map(gref, GrantAccess::ReadWrite).unwrap();
    let (mapped, others) = (map(used), [map(twice), map(again)]);
    pool.map_queued();
    let (table, memory) = next_boot(&pair, table);
    let take_up =
        |domain, gref| SharedMemory::left(&memory, &table, domain, &[gref]).map(|page| page.base());
    let backend = pair.backend.id();
    // Another domain's, one that is not in use, one whose page has two, and none at all.
    assert_eq!(take_up(pair.guest(), used), None);
    assert_eq!(take_up(backend, unused), None);
    assert_eq!(take_up(backend, twice), None);
    assert_eq!(take_up(backend, GrantRef(u32::MAX)), None);
    let mut shared = SharedMemory::left(&memory, &table, backend, &[used]).unwrap();
    assert_eq!((shared.base(), shared.gref(0)), (page(0), Some(used)));
    assert_eq!(table.end_left(None), 2, "it is none of these any more");
    assert!(!shared.revoke(), "the backend has it");
    others.into_iter().for_each(|other| pool.queue_unmap(other));
    pool.queue_unmap(mapped);
    pool.unmap_queued();
    assert_eq!(table.end_left(None), 0);
    assert_eq!(pair.frontend.pages_in_use(), before + 1);
    assert!(shared.revoke());
    drop(shared);
    // It serves the next who wants a page.
    let next = SharedMemory::new(&memory, &table, 1).unwrap();
    assert_eq!(next.base(), page(0));
    drop((next, pool));
    pair.assert_clean();
}

#[test]
fn pages_that_are_shared_on_lie_in_a_row_and_none_is_taken_up_else() {
    let pair = Pair::new();
    let hypervisor = pair.frontend.hypervisor();
    let table = GrantTable::new(hypervisor.clone()).unwrap();
    let pages = hypervisor.allocate_to_grant(3).unwrap();
    // SAFETY: within the pages.
    let page = |number: usize| unsafe { pages.add(number * 4096) };
    let [first, second, third] = [2, 0, 1].map(|number| grant(&table, &pair, page(number)));
    let mut pool = pair.region.map_pool(pair.guest(), 4).unwrap();
    let mut map = |gref| pool.queue_map(gref, GrantAccess::ReadWrite).unwrap();
    let mapped = [first, second, third].map(&mut map);
    pool.map_queued();
    let (table, memory) = next_boot(&pair, table);
    let backend = pair.backend.id();
    assert_eq!(table.found_left(), 3);
    let take_up = |grefs: &[GrantRef]| SharedMemory::left(&memory, &table, backend, grefs);
    assert!(take_up(&[]).is_none());
    assert!(take_up(&[GrantRef(9000)]).is_none());
    let mut shared = take_up(&[third, first]).unwrap();
    assert_eq!((shared.base(), shared.pages()), (page(1), 2));
    assert_eq!(
        [0, 1].map(|page| shared.gref(page)),
        [Some(third), Some(first)]
    );
    // Each that was not taken up is waited for.
    assert!(table.is_left(backend, &[second]));
    assert!(!table.is_left(backend, &[first, third]));
    mapped.into_iter().for_each(|page| pool.queue_unmap(page));
    pool.unmap_queued();
    assert_eq!((table.end_left(None), table.found_left()), (0, 3));
    assert!(shared.revoke());
    drop((shared, pool));
    pair.assert_clean();
}

#[test]
fn pages_in_another_order_are_not_taken_up_and_waited_for() {
    let pair = Pair::new();
    let hypervisor = pair.frontend.hypervisor();
    let table = GrantTable::new(hypervisor.clone()).unwrap();
    let pages = hypervisor.allocate_to_grant(2).unwrap();
    // SAFETY: within the pages.
    let page = |number: usize| unsafe { pages.add(number * 4096) };
    let grefs = [1, 0].map(|number| grant(&table, &pair, page(number)));
    let mut pool = pair.region.map_pool(pair.guest(), 4).unwrap();
    let mapped = grefs.map(|gref| pool.queue_map(gref, GrantAccess::ReadWrite).unwrap());
    pool.map_queued();
    let (table, memory) = next_boot(&pair, table);
    let backend = pair.backend.id();
    assert!(SharedMemory::left(&memory, &table, backend, &grefs).is_none());
    assert!(table.is_left(backend, &grefs[..1]) && table.is_left(backend, &grefs[1..]));
    mapped.into_iter().for_each(|page| pool.queue_unmap(page));
    pool.unmap_queued();
    assert_eq!(table.end_left(None), 0);
    drop(pool);
    pair.assert_clean();
}

/// A way in which a ring of before comes to its end. The second argument has the backend let go of it.
type End = fn(SharedMemory<SimVcpu>, &mut dyn FnMut());

/// A backend takes messages of before from a ring whose pages are this boot's already, and maps by the numbers in them.
#[test]
fn numbers_of_before_are_not_given_out_while_a_ring_that_was_taken_up_may_have_messages() {
    let over: [End; 3] = [
        // All were answered.
        |ring, _| {
            ring.drained();
            std::mem::forget(ring);
        },
        // The backend has let go of the ring.
        |mut ring, let_go| {
            assert!(!ring.revoke());
            let_go();
            assert!(ring.revoke());
        },
        // The same, of a ring that was given up before.
        |ring, let_go| {
            drop(ring);
            let_go();
        },
    ];
    for (number, over) in over.into_iter().enumerate() {
        let pair = Pair::new();
        let hypervisor = pair.frontend.hypervisor();
        let table = GrantTable::new(hypervisor.clone()).unwrap();
        let pages = hypervisor.allocate_to_grant(4).unwrap();
        // SAFETY: within the pages.
        let page = |number: usize| unsafe { pages.add(number * 4096) };
        let rings = [0, 1, 2].map(|number| grant(&table, &pair, page(number)));
        let numbers = [(); 3].map(|()| grant(&table, &pair, page(3)));
        let mut pool = pair.region.map_pool(pair.guest(), 3).unwrap();
        let mapped = rings.map(|ring| pool.queue_map(ring, GrantAccess::ReadWrite).unwrap());
        pool.map_queued();
        let (table, memory) = next_boot(&pair, table);
        // Two rings, one of two pages.
        let take_up = |grefs: &[GrantRef]| {
            SharedMemory::left(&memory, &table, pair.backend.id(), grefs).unwrap()
        };
        let (first, second) = (take_up(&rings[..2]), take_up(&rings[2..]));
        assert_eq!(table.end_left(None), 0, "nothing else is in use");
        let own = hypervisor.allocate_to_grant(1).unwrap();
        let none_is_given_out = || {
            for _ in 0..20 {
                let new = grant(&table, &pair, own);
                assert!(!numbers.contains(&new), "{number}: {new}");
            }
        };
        none_is_given_out();
        first.drained();
        none_is_given_out();
        let free = table.free_entries();
        let mut mapped = Some(mapped);
        over(second, &mut || {
            let mapped = mapped.take().into_iter().flatten();
            mapped.for_each(|page| pool.queue_unmap(page));
            pool.unmap_queued();
        });
        // Each of the three, and the ring's one where it has ended.
        assert_eq!(table.free_entries(), free + 3 + usize::from(number > 0));
        let again: Vec<_> = (0..3).map(|_| grant(&table, &pair, own)).collect();
        assert!(
            numbers.iter().all(|number| again.contains(number)),
            "{number}: {again:?}"
        );
        std::mem::forget(first);
        mapped
            .take()
            .into_iter()
            .flatten()
            .for_each(|page| pool.queue_unmap(page));
        pool.unmap_queued();
        drop(pool);
        pair.assert_clean();
    }
}

/// While something of before is in use, each boot uses other numbers than those before it. That must not cost the ones that
/// come once nothing is.
#[test]
fn numbers_are_unused_again_for_later_boots_too() {
    let pair = Pair::new();
    let hypervisor = pair.frontend.hypervisor();
    let mut table = GrantTable::new(hypervisor.clone()).unwrap();
    let free = table.free_entries();
    let page = hypervisor.allocate_to_grant(1).unwrap();
    let in_use = grant(&table, &pair, page);
    let mut pool = pair.region.map_pool(pair.guest(), 1).unwrap();
    let used = pool.queue_map(in_use, GrantAccess::ReadWrite).unwrap();
    pool.map_queued();
    let shares = |table: &GrantTable<SimVcpu>| {
        let page = hypervisor.allocate_to_grant(1).unwrap();
        (0..20).for_each(|_| _ = grant(table, &pair, page));
    };
    for boots in 1..4 {
        (table, _) = next_boot(&pair, table);
        assert_eq!(table.end_left(None), 1);
        shares(&table);
        assert_eq!(table.free_entries(), free - 1 - boots * 20);
    }
    pool.queue_unmap(used);
    pool.unmap_queued();
    (table, _) = next_boot(&pair, table);
    assert_eq!(table.end_left(None), 0);
    assert_eq!(table.free_entries(), free);
    shares(&table);
    (table, _) = next_boot(&pair, table);
    assert_eq!(table.free_entries(), free - 20, "what one boot has used");
    assert_eq!(table.end_left(None), 0);
    drop(pool);
    pair.assert_clean();
}
