//! Frames that are given away and accepted.

use super::grants::{FREE, GREF, peek, poke};
use crate::{DomainConfig, DomainKind, Hypercall, Sim, SimDomain, Violation};
use bulkhead_xen::abi::grant_table::{EntryFlags, TransferFlags};
use bulkhead_xen::{
    DomId, Errno, FrameTransfer, Gfn, GrantRef, GrantStatus, Hypervisor, Pfn, Reservation,
    TransferRequest,
};
use std::ptr::NonNull;
use std::sync::atomic::Ordering;

const ACCEPT: TransferFlags = TransferFlags::ACCEPT_TRANSFER;

/// One domain that gives and one that takes, which has released a page for it.
struct Pair {
    sim: Sim,
    giver: SimDomain,
    taker: SimDomain,
    page: NonNull<u8>,
    hole: NonNull<u8>,
}

fn domain(sim: &Sim, kind: DomainKind) -> SimDomain {
    sim.add_domain_with(DomainConfig {
        kind,
        ..DomainConfig::default()
    })
}

impl Pair {
    fn new(giving: DomainKind, taking: DomainKind) -> Pair {
        let sim = Sim::new();
        let (giver, taker) = (domain(&sim, giving), domain(&sim, taking));
        let (page, hole) = (giver.alloc_page(), taker.alloc_page());
        poke(page, 7);
        // SAFETY: an own page that nothing uses.
        assert_eq!(unsafe { taker.hypervisor().release(hole, 1) }, 1);
        let pair = Pair {
            sim,
            giver,
            taker,
            page,
            hole,
        };
        pair.accept(pair.giver.id(), ACCEPT);
        pair
    }

    fn place(&self) -> Pfn {
        self.taker.hypervisor().page_frame(self.hole).unwrap()
    }

    fn accept(&self, from: DomId, flags: TransferFlags) {
        let flags = EntryFlags::from_bits_retain(flags.bits());
        self.taker.grant(GREF, from, Gfn(self.place().0), flags);
    }

    fn give_to(&self, domain: DomId, gref: GrantRef) -> (GrantStatus, bool) {
        let mut batch = [TransferRequest::new(self.page, domain, gref)];
        // SAFETY: the tests do not use a page that they gave away.
        unsafe { self.giver.hypervisor().give_frames(&mut batch) }.unwrap();
        (batch[0].status, batch[0].kept)
    }

    fn give(&self) -> (GrantStatus, bool) {
        self.give_to(self.taker.id(), GREF)
    }

    /// The taker's entry: its flags, and its frame.
    fn entry(&self) -> (TransferFlags, Gfn) {
        let table = self.taker.hypervisor().grant_entries().unwrap();
        let frame = table[GREF.0 as usize].frame.load(Ordering::Relaxed);
        let flags = self.taker.grant_flags(GREF);
        let flags = TransferFlags::from_bits_retain(flags.bits());
        (flags, Gfn(frame.into()))
    }

    fn adopt(&self, frame: Gfn) {
        // SAFETY: the simulated Xen refuses what was not transferred.
        unsafe { self.taker.hypervisor().adopt_frame(self.hole, frame) };
    }
}

#[test]
fn a_frame_goes_over_with_what_is_in_it() {
    let pair = Pair::new(DomainKind::Pv, DomainKind::Pv);
    let frame = pair.giver.frame_of(pair.page);
    let (giver, taker) = (pair.giver.memory_pages(), pair.taker.memory_pages());
    assert_eq!(pair.give(), (GrantStatus::OKAY, false));
    assert_eq!(pair.giver.memory_pages(), giver - 1);
    assert_eq!(pair.taker.memory_pages(), taker + 1);
    assert_eq!(super::grants::access(pair.page), "---");
    assert_eq!(super::grants::access(pair.hole), "---");
    let done = ACCEPT | TransferFlags::COMMITTED | TransferFlags::COMPLETED;
    assert_eq!(pair.entry(), (done, frame));

    pair.adopt(frame);
    assert_eq!(peek(pair.hole), 7);
    assert_eq!(pair.taker.frame_of(pair.hole), frame);
    let hypervisor = pair.giver.hypervisor();
    assert_eq!(hypervisor.frame_of(pair.page.as_ptr()), None);
    // SAFETY: nothing is behind it.
    assert_eq!(unsafe { hypervisor.populate(pair.page, 1) }, 1);
    assert_ne!(pair.giver.frame_of(pair.page), frame);
    poke(pair.page, 8);
    assert_eq!((peek(pair.page), peek(pair.hole)), (8, 7));
    pair.sim.assert_no_violations();

    pair.sim.destroy_domain(pair.giver.id());
    assert_eq!(peek(pair.hole), 7, "it is not the dead domain's any more");
}

#[test]
fn a_translated_domain_finds_the_frame_in_its_place() {
    let pair = Pair::new(DomainKind::Pv, DomainKind::Pvh);
    let place = Gfn(pair.place().0);
    assert_eq!(pair.give(), (GrantStatus::OKAY, false));
    assert_eq!(pair.entry().1, place);
    pair.adopt(place);
    assert_eq!(peek(pair.hole), 7);
    pair.sim.assert_no_violations();
}

#[test]
fn only_paravirtualized_domains_give_frames_away() {
    let pair = Pair::new(DomainKind::Pvh, DomainKind::Pv);
    let mut batch = [TransferRequest::new(pair.page, pair.taker.id(), GREF)];
    // SAFETY: an own page.
    let refused = unsafe { pair.giver.hypervisor().give_frames(&mut batch) };
    assert_eq!((refused, batch[0].kept), (Err(Errno::NOSYS), true));
    assert_eq!(peek(pair.page), 7);
    assert_eq!(pair.entry().0, ACCEPT);
    pair.sim.assert_no_violations();
}

#[test]
fn a_page_in_use_is_kept() {
    let pair = Pair::new(DomainKind::Pv, DomainKind::Pv);
    let user = pair.sim.add_domain();
    let frame = pair.giver.frame_of(pair.page);
    pair.giver.grant(GREF, user.id(), frame, FREE);
    let region = user.hypervisor().foreign_region().unwrap().base;
    let mut op = [bulkhead_xen::abi::grant_table::MapGrantRef::new(
        region.as_ptr() as u64,
        super::grants::READ,
        GREF,
        pair.giver.id(),
    )];
    // SAFETY: the first page of an unused region.
    unsafe { user.hypervisor().map_grants(&mut op) }.unwrap();
    assert_eq!(pair.give(), (GrantStatus::BAD_PAGE, true));
    assert_eq!(peek(pair.page), 7);
    pair.sim.assert_no_violations();
}

/// Gives a frame that the taker does not get after all. It is lost for both.
fn lost(prepare: impl FnOnce(&Pair) -> (DomId, GrantRef), status: GrantStatus) {
    let pair = Pair::new(DomainKind::Pv, DomainKind::Pv);
    let (domain, gref) = prepare(&pair);
    let owned = (pair.giver.memory_pages(), pair.taker.memory_pages());
    assert_eq!(pair.give_to(domain, gref), (status, false));
    let left = (owned.0 - 1, owned.1);
    assert_eq!((pair.giver.memory_pages(), pair.taker.memory_pages()), left);
    assert_eq!(super::grants::access(pair.page), "---");
    pair.sim.assert_no_violations();
}

#[test]
fn a_frame_that_is_not_accepted_is_lost() {
    let general = GrantStatus::GENERAL_ERROR;
    lost(|_| (DomId(99), GREF), GrantStatus::BAD_DOMAIN);
    lost(|pair| (pair.taker.id(), GrantRef(9)), general);
    lost(|pair| (pair.taker.id(), GrantRef(1 << 20)), general);
    let other = |pair: &Pair| {
        pair.accept(DomId(0), ACCEPT);
        (pair.taker.id(), GREF)
    };
    lost(other, general);
    let used = |pair: &Pair| {
        pair.accept(pair.giver.id(), ACCEPT | TransferFlags::COMMITTED);
        (pair.taker.id(), GREF)
    };
    lost(used, general);
    let full = |pair: &Pair| {
        pair.taker.set_memory_limit(pair.taker.memory_pages());
        (pair.taker.id(), GREF)
    };
    lost(full, general);
}

#[test]
fn a_hypercall_that_is_refused_takes_nothing() {
    let pair = Pair::new(DomainKind::Pv, DomainKind::Pv);
    pair.giver
        .fail_call(Hypercall::TransferFrames, Errno::OPNOTSUPP, 1);
    let mut batch = [TransferRequest::new(pair.page, pair.taker.id(), GREF)];
    // SAFETY: an own page.
    let refused = unsafe { pair.giver.hypervisor().give_frames(&mut batch) };
    assert_eq!(refused, Err(Errno::OPNOTSUPP));
    assert_eq!((peek(pair.page), batch[0].kept), (7, true));
}

#[test]
fn mistakes_are_kept() {
    let pair = Pair::new(DomainKind::Pv, DomainKind::Pv);
    let (giver, taker) = (pair.giver.id(), pair.taker.id());
    pair.adopt(Gfn(1));
    let mut expected = vec![Violation::AdoptedNothing {
        domain: taker,
        address: pair.hole.as_ptr() as u64,
    }];
    // SAFETY: nothing is behind it.
    assert_eq!(unsafe { pair.taker.hypervisor().populate(pair.hole, 1) }, 1);
    pair.taker.set_memory_limit(1 << 20);
    assert_eq!(pair.give(), (GrantStatus::GENERAL_ERROR, false));
    let (domain, place) = (taker, pair.place());
    expected.push(Violation::AcceptedOccupied { domain, place });
    assert_eq!(pair.give(), (GrantStatus::BAD_PAGE, true));
    expected.push(Violation::ReleasedNothing {
        domain: giver,
        address: pair.page.as_ptr() as u64,
    });
    assert_eq!(pair.sim.violations(), expected);
}

#[test]
fn frames_go_to_and_fro() {
    let sim = Sim::new();
    let (one, other) = (domain(&sim, DomainKind::Pv), domain(&sim, DomainKind::Pv));
    let (page, hole) = (one.alloc_page(), other.alloc_page());
    // SAFETY: an own page that nothing uses.
    unsafe { other.hypervisor().release(hole, 1) };
    let mut sides = [(one, page), (other, hole)];
    poke(page, 0);
    for round in 0..50 {
        let [(giver, from), (taker, to)] = &sides;
        assert_eq!(peek(*from), round);
        poke(*from, round + 1);
        let hypervisor = taker.hypervisor();
        let place = hypervisor.page_frame(*to).unwrap();
        let flags = EntryFlags::from_bits_retain(ACCEPT.bits());
        taker.grant(GREF, giver.id(), Gfn(place.0), flags);
        let frame = giver.frame_of(*from);
        let mut batch = [TransferRequest::new(*from, taker.id(), GREF)];
        // SAFETY: the page is not used until a frame comes back; the frame was transferred.
        unsafe {
            giver.hypervisor().give_frames(&mut batch).unwrap();
            assert_eq!(batch[0].status, GrantStatus::OKAY);
            hypervisor.adopt_frame(*to, frame);
        }
        sides.swap(0, 1);
    }
    assert_eq!(sides[0].0.stats().transfers, 25);
    sim.assert_no_violations();
}
