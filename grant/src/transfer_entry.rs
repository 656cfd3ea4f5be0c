//! The protocol of an entry that accepts a frame, as `grant_table.h` has it for version 1 entries.
//!
//! ```text
//!   0 ──accept──► ACCEPT_TRANSFER ──Xen──► COMMITTED ──Xen──► COMMITTED | COMPLETED ──end──► 0
//!   ▲                    │                     (Xen's alone)      (frame is written)
//!   └───────end──────────┘
//! ```

use crate::sync::{AtomicU16, AtomicU32, Ordering, relax};
use bulkhead_xen::abi::grant_table::{TYPE_MASK, TransferFlags};

/// An entry of the table.
pub(crate) struct TransferEntry<'e> {
    pub flags: &'e AtomicU16,
    pub domain: &'e AtomicU16,
    pub frame: &'e AtomicU32,
}

/// Progress of the transfer into an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransferProgress {
    /// The other domain has not begun.
    Open,
    /// Xen has begun: the transfer will be completed.
    Committed,
    /// The frame belongs to this domain.
    Completed,
}

impl TransferEntry<'_> {
    /// Lets `domain` transfer a frame, to be behind the page frame `place`.
    pub fn accept(&self, domain: u16, place: u32) {
        self.frame.store(place, Ordering::Relaxed);
        self.domain.store(domain, Ordering::Relaxed);
        // Xen may read both from here on.
        let flags = TransferFlags::ACCEPT_TRANSFER.bits();
        self.flags.store(flags, Ordering::Release);
    }

    /// Returns whether flags are those of an entry that accepts a frame, or has.
    pub fn accepts(flags: u16) -> bool {
        flags & TYPE_MASK == TransferFlags::ACCEPT_TRANSFER.bits()
    }

    /// Returns the progress of the transfer.
    pub fn progress(&self) -> TransferProgress {
        // Acquire: the frame was written before the entry was marked as completed.
        let flags = TransferFlags::from_bits_retain(self.flags.load(Ordering::Acquire));
        if flags.contains(TransferFlags::COMPLETED) {
            TransferProgress::Completed
        } else if flags.contains(TransferFlags::COMMITTED) {
            TransferProgress::Committed
        } else {
            TransferProgress::Open
        }
    }

    /// Empties the entry. Returns the frame if one was transferred. A transfer that Xen has begun cannot be
    /// stopped, and is waited for: Xen completes it within the hypercall of the other domain in which it began.
    pub fn end(&self) -> Option<u32> {
        let open = TransferFlags::ACCEPT_TRANSFER.bits();
        let stopped = self
            .flags
            .compare_exchange(open, 0, Ordering::AcqRel, Ordering::Acquire);
        if stopped.is_ok() {
            return None;
        }
        while self.progress() != TransferProgress::Completed {
            relax();
        }
        let frame = self.frame.load(Ordering::Relaxed);
        // The frame is read before the entry can be used for anything else.
        self.flags.store(0, Ordering::Release);
        Some(frame)
    }
}
