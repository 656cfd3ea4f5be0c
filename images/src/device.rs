//! What a store has to do to be a block device.

use crate::io::{Io, IoError, Op, Sector, Submitted, Tag};
use alloc::boxed::Box;
use core::fmt;
use core::ptr::NonNull;
use core::task::Waker;

/// An open device: says what it is, and gives queues to do I/O with.
///
/// The device is shared; each of its users' rings has a queue of its own, so that vCPUs share
/// nothing while they serve. Whatever the device was opened with (the image's lease above all)
/// stays until the device and all its queues are dropped.
pub trait BlockDevice: Send + Sync {
    /// What the device looks like now.
    fn geometry(&self) -> Geometry;

    /// A new queue. May allocate; reading and writing with the queue does not.
    fn queue(&self) -> Box<dyn IoQueue>;

    /// Wakes `waker` when the geometry changes next; to be asked again after each wake-up. A device
    /// wakes one waker, the one it was given last, and keeps none when it is dropped. Whoever sleeps on it first asks, then looks at the geometry once more.
    fn on_change(&self, _waker: &Waker) {}
}

/// One user's way to do I/O on a device.
///
/// A request completes once: at once by [`Submitted::Done`], or later through
/// [`complete`](Self::complete), in any order. Dropping a queue abandons its pending requests:
/// when the drop returns, the store no longer touches their segments.
pub trait IoQueue: Send {
    /// Takes the memory that this many requests at a time need. After it, [`submit`](Self::submit) takes
    /// none as long as no more than `depth` requests are pending.
    fn reserve(&mut self, depth: usize) -> Result<(), OutOfMemory> {
        let _ = depth;
        Ok(())
    }

    /// Starts a request. A store that answers [`Submitted::Pending`] has made itself a copy of the
    /// segments' addresses; the slice is only lent for the call.
    ///
    /// The store checks range, alignment and access by itself. A failed read may have filled some
    /// of the segments, a failed write stored some of them.
    fn submit(&mut self, tag: Tag, io: Io<'_>) -> Submitted;

    /// Tells all completions that have come in. Returns at once if there are none.
    fn complete(&mut self, sink: &mut dyn FnMut(Tag, Result<(), IoError>));

    /// Gives up pending requests whose work a store can leave undone, because nobody waits for it any
    /// more: they complete with [`IoError::Cancelled`] in the next call of [`complete`](Self::complete).
    /// Requests that are not given up complete as usual.
    fn cancel_pending(&mut self) {}

    /// Lends memory of the device's own that holds the bytes of a read or write: whoever can copy
    /// them by other means, as the hypervisor can, does that instead of submitting the request.
    /// The bytes are neighbours. Until [`end_loans`](Self::end_loans) they stay there, and a write
    /// to them is a write to the device.
    ///
    /// `None` where there is no such memory, and for every request that
    /// [`submit`](Self::submit) would refuse: it is to be submitted.
    fn lend(&mut self, op: Op, len: usize) -> Option<NonNull<u8>> {
        let _ = (op, len);
        None
    }

    /// Nobody uses what was lent any more.
    fn end_loans(&mut self) {}

    /// Wakes `waker` when the next completion comes in; to be asked again after each wake-up.
    /// Whoever sleeps on it first asks, then looks for completions once more.
    fn wake_on_completion(&mut self, waker: &Waker);
}

/// There is no memory for what a store was to keep ([`IoQueue::reserve`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory {
    /// The bytes that were asked for.
    pub bytes: usize,
}

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no {} bytes of memory for requests", self.bytes)
    }
}

impl core::error::Error for OutOfMemory {}

/// What a device looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Its size, in units of 512 bytes.
    pub sectors: Sector,
    /// The unit of addressing: requests start and end on its multiples.
    pub sector_size: SectorSize,
    /// The unit that the store handles best; a multiple of `sector_size`.
    pub physical_sector_size: SectorSize,
    /// Writes and discards are refused.
    pub read_only: bool,
    /// [`Flush`](crate::Op::Flush) is understood.
    pub flush: bool,
    /// [`Discard`](crate::Op::Discard) is understood, within these limits.
    pub discard: Option<DiscardLimits>,
}

/// How a device wants to be asked to forget data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiscardLimits {
    /// The unit that a store likes to be asked for (`discard-granularity`, there in bytes), which is also
    /// the smallest that is given back where memory is given back. Less than that can be discarded too,
    /// and reads as zeros.
    pub granularity: Sector,
    /// Where the first such unit starts, counted from the start of the device
    /// (`discard-alignment`, there in bytes); less than the granularity.
    pub alignment: Sector,
    /// Secure discards are possible (`discard-secure`).
    pub secure: bool,
}

/// The unit in which a device is addressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum SectorSize {
    /// 512 bytes.
    #[default]
    B512,
    /// 4096 bytes.
    B4096,
}

impl SectorSize {
    /// In units of 512 bytes.
    pub const fn sectors(self) -> Sector {
        Sector((self.bytes() / Sector::SIZE) as u64)
    }

    /// In bytes.
    pub const fn bytes(self) -> usize {
        match self {
            SectorSize::B512 => 512,
            SectorSize::B4096 => 4096,
        }
    }
}

impl fmt::Display for SectorSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bytes().fmt(f)
    }
}
