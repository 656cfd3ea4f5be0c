//! The data path takes no memory: all of it was taken when pools, batches and caches were made.

mod pair;

use bulkhead_grant::{
    CopyBatch, Direction, GrantAccess, GrantTable, GrantedBytes, PersistentCache,
};
use bulkhead_xen::{GrantRef, Hypervisor};
use pair::Pair;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;

/// Counts the allocations of the thread that asks.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // A thread that ends has no counter any more.
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs sweeps until the simulated Xen itself has all it needs; returns what the last ones took.
fn allocations(mut sweep: impl FnMut()) -> u64 {
    (0..50).for_each(|_| sweep());
    let before = ALLOCATIONS.get();
    (0..50).for_each(|_| sweep());
    ALLOCATIONS.get() - before
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| drop(black_box(Box::new(1)))), 50);
}

#[test]
fn pools_take_nothing() {
    let pair = Pair::new();
    (8..40).for_each(|gref| _ = pair.grant(gref));
    let mut pool = pair.region.map_pool(pair.guest(), 32).unwrap();
    let mut mappings = Vec::with_capacity(32);
    let taken = allocations(|| {
        for gref in 8..40 {
            let mapping = pool.queue_map(GrantRef(gref), GrantAccess::ReadWrite);
            mappings.push(mapping.unwrap());
        }
        pool.map_queued();
        for mapping in mappings.drain(..) {
            assert!(pool.address(&mapping).is_ok());
            pool.queue_unmap(mapping);
        }
        pool.unmap_queued();
    });
    assert_eq!(taken, 0);
    assert_eq!(pair.backend.stats().maps, 100 * 32);
}

#[test]
fn copies_take_nothing() {
    let pair = Pair::new();
    pair.grant(8);
    let own = pair.backend.alloc_page();
    let mut batch = CopyBatch::new(pair.backend.hypervisor(), pair.guest(), 32).unwrap();
    let granted = GrantedBytes {
        gref: GrantRef(8),
        offset: 0,
        len: 4096,
    };
    let taken = allocations(|| {
        for _ in 0..32 {
            // SAFETY: own memory of the backend, into which no reference points.
            let copied = unsafe { batch.queue(Direction::FromGranted, granted, own) };
            assert!(copied.is_ok());
        }
        batch.run();
        batch.clear();
    });
    assert_eq!(taken, 0);
    assert_eq!(pair.backend.stats().copies, 100 * 32);
}

#[test]
fn caches_take_nothing_even_when_pages_come_and_go() {
    let pair = Pair::new();
    (8..138).for_each(|gref| _ = pair.grant(gref));
    let mut cache = PersistentCache::new(&pair.region, pair.guest(), 100, 11).unwrap();
    let mut cached = Vec::with_capacity(11);
    let mut next = 0;
    let taken = allocations(|| {
        for _ in 0..11 {
            let gref = GrantRef(8 + next % 130);
            next += 7;
            cached.push(cache.hold(gref, GrantAccess::ReadOnly).unwrap());
        }
        cache.map_queued();
        for cached in cached.drain(..) {
            assert!(cache.address(&cached).is_ok());
            cache.release(cached);
        }
    });
    assert_eq!(taken, 0);
    assert!(cache.misses() > 1000, "pages came and went");
}

#[test]
fn granting_with_an_entry_takes_nothing() {
    let pair = Pair::new();
    let table = GrantTable::new(pair.frontend.hypervisor()).unwrap();
    let page = pair.frontend.alloc_page();
    let frame = pair.frontend.hypervisor().frame_of(page.as_ptr()).unwrap();
    let mut entry = Some(table.entry().unwrap());
    let taken = allocations(|| {
        let idle = entry.take().unwrap();
        // SAFETY: the page is never accessed.
        let grant = unsafe { idle.grant(pair.backend.id(), frame, GrantAccess::ReadOnly) };
        entry = grant.end().ok();
    });
    assert_eq!(taken, 0);
}
