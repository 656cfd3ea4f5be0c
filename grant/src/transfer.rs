//! Accepting frames that other domains give away.

use crate::table::{Entry, GrantTable};
use crate::transfer_entry::TransferProgress;
use bulkhead_xen::{Gfn, GrantRef, Hypervisor};
use core::fmt;

/// An entry into which another domain may transfer one frame.
///
/// Dropping it ends the transfer, as [`end`](Self::end) does; a frame that was transferred is lost then,
/// since no value names it.
#[must_use = "dropping it ends the transfer"]
pub struct AcceptedTransfer<H: Hypervisor> {
    /// Its drop ends the transfer, as it would any that is left in the entry.
    pub(crate) entry: Entry<H>,
}

/// The end of an [`AcceptedTransfer`]. Either way, the entry can be used again.
#[derive(Debug)]
pub enum TransferEnd<H: Hypervisor> {
    /// The other domain had not begun.
    Unused(Entry<H>),
    /// The frame belongs to this domain: [`adopt_frame`](bulkhead_xen::FrameTransfer::adopt_frame) puts it
    /// behind the page for which it was accepted.
    Transferred(Entry<H>, Gfn),
}

impl<H: Hypervisor> AcceptedTransfer<H> {
    /// Returns the entry's number, which the other domain needs.
    pub fn gref(&self) -> GrantRef {
        self.entry.gref()
    }

    /// Returns the progress of the transfer.
    pub fn progress(&self) -> TransferProgress {
        self.entry.transfer().progress()
    }

    /// Ends the transfer. If Xen has begun it, it cannot be stopped, and this waits until it is completed.
    pub fn end(self) -> TransferEnd<H> {
        match self.entry.transfer().end() {
            None => TransferEnd::Unused(self.entry),
            Some(frame) => TransferEnd::Transferred(self.entry, Gfn(frame.into())),
        }
    }
}

impl<H: Hypervisor> GrantTable<H> {
    /// Ends an abandoned transfer.
    pub(crate) fn end_transfer(&self, gref: GrantRef) {
        if let Some(frame) = self.transfer_entry(gref).end() {
            log::warn!(
                "grant {gref} was abandoned although frame {frame:#x} was transferred to it"
            );
        }
    }
}

impl<H: Hypervisor> fmt::Debug for AcceptedTransfer<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AcceptedTransfer({})", self.gref())
    }
}
