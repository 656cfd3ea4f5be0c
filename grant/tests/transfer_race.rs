//! No interleaving of Xen's transfer with the end of the entry loses a frame, or mistakes another for it.
//!
//! loom runs the crate's own `transfer_entry` module on its own atomics, against a thread that does what Xen's
//! `gnttab_transfer` does to the entry, and tries all interleavings and all stale values that the memory model
//! allows. The tests that must panic break one rule each, to show that the search would find out.

#[allow(dead_code, reason = "the test uses a part of it")]
#[path = "../src/transfer_entry.rs"]
mod transfer_entry;

/// The atomics of `transfer_entry` in this test.
mod sync {
    pub(crate) use loom::sync::atomic::{AtomicU16, AtomicU32, Ordering};

    /// Xen goes on.
    pub(crate) fn relax() {
        loom::thread::yield_now();
    }
}

use bulkhead_xen::abi::grant_table::TransferFlags;
use loom::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use loom::thread;
// Not loom's, so that a failed search can be told from a leak.
use std::sync::Arc;
use transfer_entry::TransferEntry;

/// A rule that a test breaks.
#[derive(Clone, Copy, PartialEq)]
enum Broken {
    Nothing,
    /// The entry is valid before its frame and its domain are written.
    Valid,
    /// Xen marks the transfer as completed before it writes the frame.
    Completed,
    /// The entry is emptied although Xen has begun.
    Stopped,
    /// The frame is read although the transfer is only committed.
    Early,
}

/// The domain that gives, the page frame that is accepted for, and the frame that comes.
const GIVER: u16 = 5;
const PLACE: u32 = 77;
const FRAME: u32 = 1234;

struct Shared {
    flags: AtomicU16,
    domain: AtomicU16,
    frame: AtomicU32,
}

impl Shared {
    fn entry(&self) -> TransferEntry<'_> {
        TransferEntry {
            flags: &self.flags,
            domain: &self.domain,
            frame: &self.frame,
        }
    }

    fn accept(&self, broken: Broken) {
        if broken == Broken::Valid {
            let flags = TransferFlags::ACCEPT_TRANSFER.bits();
            self.flags.store(flags, Ordering::Relaxed);
        }
        self.entry().accept(GIVER, PLACE);
    }

    fn end(&self, broken: Broken) -> Option<u32> {
        match broken {
            Broken::Stopped => {
                self.flags.store(0, Ordering::Release);
                None
            }
            Broken::Early => {
                let open = TransferFlags::ACCEPT_TRANSFER.bits();
                let stopped =
                    self.flags
                        .compare_exchange(open, 0, Ordering::AcqRel, Ordering::Acquire);
                (stopped.is_err()).then(|| self.frame.load(Ordering::Relaxed))
            }
            _ => self.entry().end(),
        }
    }

    /// Does what Xen does for the giving domain. Returns whether the frame was transferred.
    fn transfer(&self, broken: Broken) -> bool {
        let open = TransferFlags::ACCEPT_TRANSFER.bits();
        if self.flags.load(Ordering::Acquire) != open
            || self.domain.load(Ordering::Relaxed) != GIVER
        {
            return false;
        }
        let committed = open | TransferFlags::COMMITTED.bits();
        let swapped =
            self.flags
                .compare_exchange(open, committed, Ordering::AcqRel, Ordering::Acquire);
        if swapped.is_err() {
            return false;
        }
        let place = self.frame.load(Ordering::Relaxed);
        assert_eq!(place, PLACE, "the frame is behind another page");
        let completed = committed | TransferFlags::COMPLETED.bits();
        if broken == Broken::Completed {
            self.flags.store(completed, Ordering::Release);
            self.frame.store(FRAME, Ordering::Relaxed);
        } else {
            self.frame.store(FRAME, Ordering::Relaxed);
            self.flags.store(completed, Ordering::Release);
        }
        true
    }
}

fn search(broken: Broken) {
    loom::model(move || {
        let shared = Arc::new(Shared {
            flags: AtomicU16::new(0),
            domain: AtomicU16::new(0),
            frame: AtomicU32::new(0),
        });
        let xen = {
            let shared = shared.clone();
            thread::spawn(move || shared.transfer(broken))
        };
        shared.accept(broken);
        let frame = shared.end(broken);
        let transferred = xen.join().unwrap();
        assert_eq!(frame, transferred.then_some(FRAME));
        assert_eq!(shared.flags.load(Ordering::Relaxed), 0);
    });
}

#[test]
fn every_frame_that_is_transferred_is_found() {
    search(Broken::Nothing);
}

#[test]
#[should_panic(expected = "left == right")]
fn an_entry_that_is_valid_too_early_is_found() {
    search(Broken::Valid);
}

#[test]
#[should_panic(expected = "left == right")]
fn a_frame_that_is_written_too_late_is_found() {
    search(Broken::Completed);
}

#[test]
#[should_panic(expected = "left == right")]
fn a_transfer_that_is_stopped_after_it_began_is_found() {
    search(Broken::Stopped);
}

#[test]
#[should_panic(expected = "left == right")]
fn a_frame_that_is_read_too_early_is_found() {
    search(Broken::Early);
}
