//! Accepting frames that another domain gives away, and ending that.

use bulkhead_grant::{AcceptedTransfer, Entry, GrantTable, TransferEnd, TransferProgress};
use bulkhead_xen::{FrameTransfer, Gfn, GrantStatus, Pfn, Reservation, TransferRequest};
use bulkhead_xen_sim::{DomainConfig, DomainKind, Sim, SimDomain, SimVcpu};
use core::ptr::NonNull;
use std::thread;

/// Two PV domains: one that gives frames away, and one with a table and a page for them.
struct Pair {
    sim: Sim,
    giver: SimDomain,
    taker: SimDomain,
    table: GrantTable<SimVcpu>,
    hole: NonNull<u8>,
    place: Pfn,
}

impl Pair {
    fn new() -> Pair {
        let sim = Sim::new();
        let config = || DomainConfig {
            kind: DomainKind::Pv,
            ..DomainConfig::default()
        };
        let (giver, taker) = (sim.add_domain_with(config()), sim.add_domain_with(config()));
        let vcpu = taker.hypervisor();
        let table = GrantTable::new(vcpu.clone()).unwrap();
        let hole = vcpu.allocate(1).unwrap();
        // SAFETY: an own page that nothing uses.
        assert_eq!(unsafe { vcpu.release(hole, 1) }, 1);
        let place = vcpu.page_frame(hole).unwrap();
        Pair {
            sim,
            giver,
            taker,
            table,
            hole,
            place,
        }
    }

    fn accept(&self) -> AcceptedTransfer<SimVcpu> {
        // SAFETY: the page was released, and nothing is put there but the frame that comes.
        unsafe { self.table.accept_transfer(self.giver.id(), self.place) }.unwrap()
    }

    /// Gives a new page with this byte in it to the taker; returns its frame.
    fn give(&self, to: &AcceptedTransfer<SimVcpu>, content: u8) -> Result<Gfn, GrantStatus> {
        let page = self.giver.alloc_page();
        let frame = self.giver.frame_of(page);
        let mut batch = [TransferRequest::new(page, self.taker.id(), to.gref())];
        // SAFETY: a new page, which is not used any more.
        unsafe {
            page.write_volatile(content);
            self.giver.hypervisor().give_frames(&mut batch).unwrap();
        }
        match batch[0].status {
            GrantStatus::OKAY => Ok(frame),
            status => Err(status),
        }
    }
}

fn transferred(end: TransferEnd<SimVcpu>) -> (Entry<SimVcpu>, Gfn) {
    match end {
        TransferEnd::Transferred(entry, frame) => (entry, frame),
        TransferEnd::Unused(entry) => panic!("{entry:?} was not used"),
    }
}

#[test]
fn one_frame_after_another_comes_through_an_entry() {
    let pair = Pair::new();
    let vcpu = pair.taker.hypervisor();
    let mut accepted = pair.accept();
    let gref = accepted.gref();
    for content in 1..4 {
        assert_eq!(accepted.progress(), TransferProgress::Open);
        let given = pair.give(&accepted, content).unwrap();
        assert_eq!(accepted.progress(), TransferProgress::Completed);
        let (entry, frame) = transferred(accepted.end());
        assert_eq!((entry.gref(), frame), (gref, given));
        // SAFETY: the frame was transferred for this page; it is released when it was looked at.
        unsafe {
            vcpu.adopt_frame(pair.hole, frame);
            assert_eq!(pair.hole.read_volatile(), content);
            assert_eq!(vcpu.release(pair.hole, 1), 1);
            accepted = entry.accept_transfer(pair.giver.id(), pair.place);
        }
    }
    assert!(matches!(accepted.end(), TransferEnd::Unused(_)));
    pair.sim.assert_no_violations();
}

#[test]
fn an_ended_entry_accepts_nothing() {
    let pair = Pair::new();
    let free = pair.table.free_entries();
    let accepted = pair.accept();
    let gref = accepted.gref();
    drop(accepted);
    assert_eq!(pair.table.free_entries(), free);
    assert!(pair.taker.grant_flags(gref).is_empty());
    let later = pair.accept();
    assert_eq!(later.gref(), gref);
    let TransferEnd::Unused(entry) = later.end() else {
        panic!("nobody gave a frame");
    };
    let other = pair.accept();
    let page = pair.giver.alloc_page();
    let mut batch = [TransferRequest::new(page, pair.taker.id(), entry.gref())];
    // SAFETY: a new page, which is not used any more.
    unsafe { pair.giver.hypervisor().give_frames(&mut batch) }.unwrap();
    assert_eq!(batch[0].status, GrantStatus::GENERAL_ERROR);
    assert_eq!(other.progress(), TransferProgress::Open);
    pair.sim.assert_no_violations();
}

#[test]
fn what_is_committed_cannot_be_stopped_and_is_waited_for() {
    let pair = Pair::new();
    let accepted = pair.accept();
    pair.sim.hold_transfers();
    let given = pair.give(&accepted, 9).unwrap();
    assert_eq!(accepted.progress(), TransferProgress::Committed);
    let ending = thread::spawn(move || transferred(accepted.end()));
    // It cannot end: nothing but Xen completes the transfer.
    for _ in 0..1000 {
        thread::yield_now();
        assert!(!ending.is_finished());
    }
    assert_eq!(pair.sim.complete_transfers(), 1);
    let (entry, frame) = ending.join().unwrap();
    assert_eq!(frame, given);
    assert!(pair.taker.grant_flags(entry.gref()).is_empty());
    // SAFETY: the frame was transferred for this page.
    unsafe {
        pair.taker.hypervisor().adopt_frame(pair.hole, frame);
        assert_eq!(pair.hole.read_volatile(), 9);
    }
    pair.sim.assert_no_violations();
}

#[test]
fn a_frame_that_nobody_takes_keeps_no_entry() {
    let pair = Pair::new();
    let free = pair.table.free_entries();
    let accepted = pair.accept();
    let gref = accepted.gref();
    pair.give(&accepted, 1).unwrap();
    drop(accepted);
    assert!(pair.taker.grant_flags(gref).is_empty());
    assert_eq!(pair.table.free_entries(), free);
}

#[test]
fn ending_races_with_the_transfer() {
    let pair = Pair::new();
    let vcpu = pair.taker.hypervisor();
    let mut came = 0;
    for round in 0..200u8 {
        let accepted = pair.accept();
        let page = pair.giver.alloc_page();
        let frame = pair.giver.frame_of(page);
        // SAFETY: a new page.
        unsafe { page.write_volatile(round) };
        let request = (page.as_ptr().addr(), pair.taker.id(), accepted.gref());
        let giver = pair.giver.hypervisor();
        let giving = thread::spawn(move || {
            let page = NonNull::new(core::ptr::with_exposed_provenance_mut(request.0)).unwrap();
            let mut batch = [TransferRequest::new(page, request.1, request.2)];
            // SAFETY: the page is no longer used by other code.
            unsafe { giver.give_frames(&mut batch) }.unwrap();
            batch[0].status.is_okay()
        });
        // Now early, now late.
        for _ in 0..round {
            thread::yield_now();
        }
        let end = accepted.end();
        let given = giving.join().unwrap();
        match end {
            TransferEnd::Transferred(_, arrived) => {
                assert!(given && arrived == frame);
                came += 1;
                // SAFETY: the frame was transferred for this page, and is not used after this.
                unsafe {
                    vcpu.adopt_frame(pair.hole, arrived);
                    assert_eq!(pair.hole.read_volatile(), round);
                    assert_eq!(vcpu.release(pair.hole, 1), 1);
                }
            }
            TransferEnd::Unused(_) => assert!(!given),
        }
    }
    assert_eq!(pair.giver.stats().transfers, came);
    pair.sim.assert_no_violations();
}
