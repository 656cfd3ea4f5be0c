//! Copies by the hypervisor, between granted and own pages.

mod pair;

use bulkhead_grant::{Copied, CopyBatch, CopyRefused, Direction, GrantedBytes};
use bulkhead_xen::{Errno, GrantRef, GrantStatus};
use bulkhead_xen_sim::{GrantUse, Hypercall, SimVcpu};
use core::ptr::NonNull;
use pair::{Pair, peek, poke};

fn batch(pair: &Pair, capacity: usize) -> CopyBatch<SimVcpu> {
    CopyBatch::new(pair.backend.hypervisor(), pair.guest(), capacity).unwrap()
}

fn bytes(gref: u32, offset: usize, len: usize) -> GrantedBytes {
    let gref = GrantRef(gref);
    GrantedBytes { gref, offset, len }
}

fn queue(
    batch: &mut CopyBatch<SimVcpu>,
    direction: Direction,
    granted: GrantedBytes,
    own: NonNull<u8>,
) -> Result<Copied, CopyRefused> {
    // SAFETY: own memory of the backend, into which no reference points.
    unsafe { batch.queue(direction, granted, own) }
}

fn at(page: NonNull<u8>, offset: usize) -> NonNull<u8> {
    // SAFETY: the tests stay within what they allocated.
    unsafe { page.add(offset) }
}

#[test]
fn both_directions_in_one_hypercall() {
    let pair = Pair::new();
    let (source, dest) = (pair.grant_read_only(8), pair.grant(9));
    let own = pair.backend.alloc_page();
    poke(at(source, 512), 1);
    poke(at(own, 100), 2);
    let mut batch = batch(&pair, 4);
    let read = queue(
        &mut batch,
        Direction::FromGranted,
        bytes(8, 512, 512),
        at(own, 1024),
    );
    let written = queue(
        &mut batch,
        Direction::ToGranted,
        bytes(9, 4095, 1),
        at(own, 100),
    );
    batch.run();
    assert_eq!(batch.status(&read.unwrap()), Ok(()));
    assert_eq!(batch.status(&written.unwrap()), Ok(()));
    assert_eq!(peek(at(own, 1024)), 1);
    assert_eq!(peek(at(dest, 4095)), 2);
    let stats = pair.backend.stats();
    assert_eq!((stats.hypercalls(), stats.copies), (1, 2));
    assert_eq!(stats.bytes_copied, 513);
    pair.assert_clean();
}

#[test]
fn own_memory_may_cross_a_page() {
    let pair = Pair::new();
    let source = pair.grant(8);
    for offset in 0..4096 {
        poke(at(source, offset), offset as u8);
    }
    let own = pair.backend.alloc_pages(2);
    let mut batch = batch(&pair, 4);
    let copied = queue(
        &mut batch,
        Direction::FromGranted,
        bytes(8, 0, 4096),
        at(own, 1000),
    );
    batch.run();
    assert_eq!(batch.status(&copied.unwrap()), Ok(()));
    for offset in 0..4096 {
        assert_eq!(peek(at(own, 1000 + offset)), offset as u8);
    }
    let stats = pair.backend.stats();
    assert_eq!((stats.hypercalls(), stats.copies), (1, 2));
    pair.assert_clean();
}

#[test]
fn what_cannot_be_copied_is_refused_before_the_hypercall() {
    let pair = Pair::new();
    pair.grant(8);
    let own = pair.backend.alloc_page();
    let mut batch = batch(&pair, 2);
    let from = Direction::FromGranted;
    for bytes in [
        bytes(8, 1, 4096),
        bytes(8, 4097, 0),
        bytes(8, usize::MAX, 2),
    ] {
        let refused = queue(&mut batch, from, bytes, own);
        assert_eq!(refused, Err(CopyRefused::BeyondPage { bytes }));
    }
    let foreign = pair.frontend.alloc_page();
    let address = foreign.as_ptr().addr();
    let refused = queue(&mut batch, from, bytes(8, 0, 1), foreign);
    assert_eq!(refused, Err(CopyRefused::NotOwnMemory { address }));

    let one = queue(&mut batch, from, bytes(8, 0, 1), own);
    // Two pieces, and room for one: none is queued.
    let two = pair.backend.alloc_pages(2);
    let refused = queue(&mut batch, from, bytes(8, 0, 4096), at(two, 1));
    assert_eq!(refused, Err(CopyRefused::Full));
    batch.run();
    assert_eq!(batch.status(&one.unwrap()), Ok(()));
    assert_eq!(pair.backend.stats().copies, 1);
    batch.clear();
    batch.run();
    assert_eq!(pair.backend.stats().copy_calls, 1);
    pair.assert_clean();
}

#[test]
fn each_copy_has_its_own_status() {
    let pair = Pair::new();
    pair.grant_read_only(8);
    pair.grant(9);
    let own = pair.backend.alloc_page();
    let mut batch = batch(&pair, 8);
    let to = Direction::ToGranted;
    let read_only = queue(&mut batch, to, bytes(8, 0, 8), own).unwrap();
    let good = queue(&mut batch, to, bytes(9, 0, 8), own).unwrap();
    let nothing = queue(&mut batch, to, bytes(9, 0, 0), own).unwrap();
    let beyond = queue(&mut batch, to, bytes(u32::MAX, 0, 8), own).unwrap();
    batch.run();
    let general = Err(GrantStatus::GENERAL_ERROR);
    assert_eq!(batch.status(&read_only), general);
    assert_eq!(batch.status(&good), Ok(()));
    assert_eq!(batch.status(&nothing), Ok(()));
    assert_eq!(batch.status(&beyond), Err(GrantStatus::BAD_GNTREF));
    pair.assert_clean();
}

#[test]
fn pages_that_are_away_are_asked_for_again() {
    let pair = Pair::new();
    let page = pair.grant(8);
    pair.grant(9);
    poke(page, 7);
    let own = pair.backend.alloc_page();
    let (guest, again) = (pair.guest(), GrantStatus::EAGAIN);
    let fail = |gref, times| {
        let grant = (guest, GrantRef(gref));
        pair.sim.fail_grant(GrantUse::Copy, grant, again, times);
    };
    fail(8, 2);
    fail(9, u32::MAX);
    let mut batch = batch(&pair, 8);
    let from = Direction::FromGranted;
    let soon = queue(&mut batch, from, bytes(8, 0, 8), own).unwrap();
    let never = queue(&mut batch, from, bytes(9, 0, 8), own).unwrap();
    batch.run();
    assert_eq!(batch.status(&soon), Ok(()));
    assert_eq!(batch.status(&never), Err(again));
    assert_eq!(peek(own), 7);
    pair.assert_clean();
}

#[test]
fn a_refused_hypercall_copies_nothing() {
    let pair = Pair::new();
    pair.grant(8);
    let own = pair.backend.alloc_page();
    pair.backend
        .fail_call(Hypercall::CopyGrants, Errno::NOSYS, 1);
    let mut batch = batch(&pair, 8);
    let copied = queue(&mut batch, Direction::FromGranted, bytes(8, 0, 8), own);
    batch.run();
    let general = Err(GrantStatus::GENERAL_ERROR);
    assert_eq!(batch.status(&copied.unwrap()), general);
}

#[test]
#[should_panic = "a copy is asked about too late"]
fn a_copy_of_an_earlier_batch_has_no_status() {
    let pair = Pair::new();
    pair.grant(8);
    let own = pair.backend.alloc_page();
    let mut batch = batch(&pair, 8);
    let copied = queue(&mut batch, Direction::FromGranted, bytes(8, 0, 8), own);
    batch.run();
    batch.clear();
    let _ = batch.status(&copied.unwrap());
}

#[test]
fn what_was_made_is_not_made_again_and_what_was_taken_back_is_not_made() {
    let pair = Pair::new();
    let source = pair.grant(8);
    let own = pair.backend.alloc_page();
    let mut batch = batch(&pair, 4);
    let copy = |batch: &mut CopyBatch<SimVcpu>, to| {
        queue(batch, Direction::FromGranted, bytes(8, 0, 1), at(own, to)).unwrap()
    };
    poke(at(source, 0), 1);
    let first = copy(&mut batch, 0);
    batch.run();
    // The caller has the memory back, and the guest its page.
    poke(at(source, 0), 2);
    let second = copy(&mut batch, 1);
    let third = copy(&mut batch, 2);
    batch.unqueue(third);
    batch.run();
    batch.run();
    assert_eq!([0, 1, 2].map(|byte| peek(at(own, byte))), [1, 2, 0]);
    assert_eq!(
        (batch.status(&first), batch.status(&second)),
        (Ok(()), Ok(()))
    );
    let stats = pair.backend.stats();
    assert_eq!((stats.hypercalls(), stats.copies), (2, 2));
    pair.assert_clean();
}
