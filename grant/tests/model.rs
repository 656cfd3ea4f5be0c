//! Random sequences of what a backend and a hostile frontend do, against plain models.

mod pair;

use bulkhead_grant::{
    CacheFull, CachedMapping, GrantAccess, MapPoolFull, Mapping, PersistentCache,
};
use bulkhead_xen::abi::grant_table::EntryFlags;
use bulkhead_xen::{GrantRef, GrantStatus};
use bulkhead_xen_sim::GrantUse;
use core::ptr::NonNull;
use pair::{Pair, peek, poke};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const PAGES: usize = 6;
const GREFS: std::ops::Range<u32> = 8..14;

#[derive(Clone, Debug)]
enum Step {
    /// The frontend grants a page, for writing or not.
    Grant(u32, bool),
    /// The frontend ends a grant, whether it is in use or not.
    Revoke(u32),
    /// The frontend makes the page unavailable for the next few times.
    Away(u32, u32),
    /// The backend queues a page.
    QueueMap(u32, bool),
    Map,
    /// The backend gives back one of its mappings.
    QueueUnmap(usize),
    /// The backend forgets one of its mappings.
    Forget(usize),
    Unmap,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (GREFS, any::<bool>()).prop_map(|(gref, write)| Step::Grant(gref, write)),
        1 => GREFS.prop_map(Step::Revoke),
        1 => (GREFS, 1..4u32).prop_map(|(gref, times)| Step::Away(gref, times)),
        6 => (GREFS, any::<bool>()).prop_map(|(gref, write)| Step::QueueMap(gref, write)),
        3 => Just(Step::Map),
        5 => (0..PAGES).prop_map(Step::QueueUnmap),
        1 => (0..PAGES).prop_map(Step::Forget),
        3 => Just(Step::Unmap),
    ]
}

fn access(write: bool) -> GrantAccess {
    if write {
        GrantAccess::ReadWrite
    } else {
        GrantAccess::ReadOnly
    }
}

/// The frontend's pages, and its grants at the moment.
struct Frontend {
    pages: BTreeMap<u32, NonNull<u8>>,
    granted: BTreeMap<u32, bool>,
}

impl Frontend {
    fn new(pair: &Pair) -> Frontend {
        let pages = GREFS.map(|gref| {
            let page = pair.frontend.alloc_page();
            poke(page, gref as u8);
            (gref, page)
        });
        Frontend {
            pages: pages.collect(),
            granted: BTreeMap::new(),
        }
    }

    fn grant(&mut self, pair: &Pair, gref: u32, write: bool) {
        let mut flags = EntryFlags::PERMIT_ACCESS;
        flags.set(EntryFlags::READONLY, !write);
        let frame = pair.frontend.frame_of(self.pages[&gref]);
        pair.frontend
            .grant(GrantRef(gref), pair.backend.id(), frame, flags);
        self.granted.insert(gref, write);
    }

    fn revoke(&mut self, pair: &Pair, gref: u32) {
        pair.frontend.revoke(GrantRef(gref));
        self.granted.remove(&gref);
    }

    /// Returns whether Xen maps a page at this moment, if `writers` and `users` of it are mapped already: Xen
    /// looks at the entry only for the first use, and for the first one that writes.
    fn allows(&self, gref: u32, write: bool, users: usize, writers: usize) -> bool {
        if users > 0 && (!write || writers > 0) {
            return true;
        }
        match self.granted.get(&gref) {
            Some(writable) => *writable || !write,
            // Revoked, and mapped before: the entry's read-only bit is gone too.
            None => users > 0,
        }
    }
}

/// The model's record of one mapping.
struct Known {
    mapping: Mapping,
    gref: u32,
    write: bool,
    /// `None` while it is queued.
    mapped: Option<bool>,
}

fn count(mappings: &[Known], leaving: &[(u32, bool)], gref: u32) -> (usize, usize) {
    let cached = mappings
        .iter()
        .filter(|known| known.mapped == Some(true))
        .map(|known| (known.gref, known.write));
    let all = cached.chain(leaving.iter().copied());
    let users: Vec<bool> = all
        .filter(|(other, _)| *other == gref)
        .map(|(_, write)| write)
        .collect();
    let writers = users.iter().filter(|write| **write).count();
    (users.len(), writers)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Whatever the order: what is mapped is what Xen allows at that moment, each page is the
    /// right one, and in the end nothing is left.
    #[test]
    fn pools_agree_with_the_model(steps in prop::collection::vec(step(), 1..120)) {
        let pair = Pair::new();
        let free = pair.region.free_pages();
        let mut frontend = Frontend::new(&pair);
        let mut pool = pair.region.map_pool(pair.guest(), PAGES).unwrap();
        let mut mappings: Vec<Known> = Vec::new();
        // Mapped pages that were given back or forgotten: they are mapped still.
        let mut leaving: Vec<(u32, bool)> = Vec::new();
        let mut forgotten: Vec<(u32, bool)> = Vec::new();
        let mut lost = 0;
        for step in steps {
            match step {
                Step::Grant(gref, write) => frontend.grant(&pair, gref, write),
                Step::Revoke(gref) => frontend.revoke(&pair, gref),
                Step::Away(gref, times) => {
                    let grant = (pair.guest(), GrantRef(gref));
                    pair.sim.fail_grant(GrantUse::Map, grant, GrantStatus::EAGAIN, times);
                }
                Step::QueueMap(gref, write) => {
                    let queued = pool.queue_map(GrantRef(gref), access(write));
                    let used = mappings.len() + leaving.len() + lost;
                    if used == PAGES {
                        prop_assert_eq!(queued, Err(MapPoolFull));
                    } else {
                        let mapping = queued.unwrap();
                        mappings.push(Known { mapping, gref, write, mapped: None });
                    }
                }
                Step::Map => {
                    pool.map_queued();
                    // Pages that are away come back within one call, after the others: so the
                    // order of entries decides nothing that the model would have to know, except
                    // who is first for one grant. Ask for consistency there, not for a winner.
                    let queued: Vec<usize> = (0..mappings.len())
                        .filter(|at| mappings[*at].mapped.is_none())
                        .collect();
                    let mut elsewhere = leaving.clone();
                    elsewhere.extend(&forgotten);
                    let before: BTreeMap<u32, (usize, usize)> = GREFS
                        .map(|gref| (gref, count(&mappings, &elsewhere, gref)))
                        .collect();
                    for &at in &queued {
                        let known = &mappings[at];
                        let address = pool.address(&known.mapping);
                        let (users, writers) = before[&known.gref];
                        let alone = frontend.allows(known.gref, known.write, users, writers);
                        let others = queued.iter().filter(|&&other| other != at
                            && mappings[other].gref == known.gref
                            && pool.address(&mappings[other].mapping).is_ok());
                        let with_others = frontend.allows(
                            known.gref,
                            known.write,
                            users + others.clone().count(),
                            writers + others.filter(|&&other| mappings[other].write).count(),
                        );
                        match address {
                            Ok(_) => prop_assert!(alone || with_others),
                            Err(status) => {
                                prop_assert!(!alone);
                                prop_assert_eq!(status, GrantStatus::GENERAL_ERROR);
                            }
                        }
                    }
                    for at in queued {
                        mappings[at].mapped = Some(pool.address(&mappings[at].mapping).is_ok());
                    }
                }
                Step::QueueUnmap(at) => {
                    if at < mappings.len() {
                        let known = mappings.swap_remove(at);
                        if known.mapped == Some(true) {
                            leaving.push((known.gref, known.write));
                        }
                        pool.queue_unmap(known.mapping);
                    }
                }
                Step::Forget(at) => {
                    if at < mappings.len() && mappings[at].mapped.is_some() {
                        let known = mappings.swap_remove(at);
                        if known.mapped == Some(true) {
                            forgotten.push((known.gref, known.write));
                        }
                        lost += 1;
                    }
                }
                Step::Unmap => {
                    pool.unmap_queued();
                    leaving.clear();
                }
            }
            for known in &mappings {
                if known.mapped == Some(true) {
                    let page = pool.address(&known.mapping).unwrap();
                    prop_assert_eq!(u32::from(peek(page)), known.gref);
                }
            }
            let mapped = mappings.iter().filter(|known| known.mapped == Some(true)).count();
            let live = mapped + leaving.len() + forgotten.len();
            prop_assert_eq!(pair.backend.live_mappings(), live);
            prop_assert_eq!(pool.free_pages(), PAGES - mappings.len() - leaving.len() - lost);
        }
        drop(pool);
        prop_assert_eq!(pair.region.free_pages(), free);
        pair.assert_clean();
    }

    /// A cache of any size gives up the page that became idle first. Pages that were held or revisited since then get a
    /// second chance.
    #[test]
    fn caches_agree_with_the_model(
        capacity in 1..5usize,
        steps in prop::collection::vec((GREFS, 0..3usize, any::<bool>(), any::<bool>()), 1..100),
    ) {
        let pair = Pair::new();
        let mut frontend = Frontend::new(&pair);
        GREFS.for_each(|gref| frontend.grant(&pair, gref, true));
        let mut cache = PersistentCache::new(&pair.region, pair.guest(), capacity, 2).unwrap();
        let mut cached: Vec<(u32, CachedMapping)> = Vec::new();
        // The pages that became idle, in that order. Some may be held again.
        let mut idle: Vec<u32> = Vec::new();
        let mut revisited = BTreeSet::new();
        for (gref, release, write, revisit) in steps {
            let in_use = |cached: &[(u32, CachedMapping)], gref| cached.iter().any(|(other, _)| *other == gref);
            let known = in_use(&cached, gref) || idle.contains(&gref);
            let mut busy: Vec<u32> = cached.iter().map(|(gref, _)| *gref).collect();
            busy.sort();
            busy.dedup();
            let before = pair.backend.stats();
            if revisit {
                let found = cache.revisit(GrantRef(gref), access(write));
                prop_assert_eq!(found.map(|(page, _)| u32::from(peek(page))), known.then_some(gref));
                prop_assert_eq!((pair.backend.stats() - before).hypercalls(), 0);
                if known {
                    revisited.insert(gref);
                }
                continue;
            }
            let all = busy.len() + idle.iter().filter(|gref| !busy.contains(gref)).count();
            if known {
                revisited.insert(gref);
            } else if all == capacity {
                while let Some(oldest) = idle.first() {
                    if busy.contains(oldest) {
                        idle.remove(0);
                    } else if revisited.remove(oldest) {
                        idle.rotate_left(1);
                    } else {
                        idle.remove(0);
                        break;
                    }
                }
            }
            match cache.hold(GrantRef(gref), access(write)) {
                Ok(page) => {
                    cache.map_queued();
                    let address = cache.address(&page).unwrap();
                    prop_assert_eq!(u32::from(peek(address)), gref);
                    cached.push((gref, page));
                }
                Err(CacheFull) => prop_assert!(!known && busy.len() == capacity),
            }
            if known {
                prop_assert_eq!((pair.backend.stats() - before).hypercalls(), 0);
            }
            for _ in 0..release.min(cached.len()) {
                let (gref, page) = cached.remove(0);
                cache.release(page);
                if !in_use(&cached, gref) && !idle.contains(&gref) {
                    idle.push(gref);
                    revisited.remove(&gref);
                }
            }
            busy = cached.iter().map(|(gref, _)| *gref).collect();
            busy.sort();
            busy.dedup();
            let all = busy.len() + idle.iter().filter(|gref| !busy.contains(gref)).count();
            prop_assert_eq!(cache.len(), all);
            prop_assert_eq!(pair.backend.live_mappings(), cache.len());
        }
        drop(cache);
        pair.assert_clean();
    }
}
