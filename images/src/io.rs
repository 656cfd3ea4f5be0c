//! A request to a store, and its outcome.

use crate::segment::IoSegment;
use core::fmt;

/// A position on a device, or a number of sectors: always in units of 512 bytes, whatever the
/// device's own sector size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Sector(pub u64);

impl Sector {
    /// Bytes of a sector.
    pub const SIZE: usize = 512;

    /// Returns the byte at which it starts; `None` past 2^64 bytes.
    pub const fn bytes(self) -> Option<u64> {
        self.0.checked_mul(Self::SIZE as u64)
    }
}

impl fmt::Display for Sector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The caller's name for a request: it comes back with its completion, and means nothing to the store. It is less than
/// 2^32: layers name their own requests with the other bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Tag(pub usize);

/// A request.
#[derive(Clone, Copy, Debug)]
pub struct Io<'a> {
    /// The operation.
    pub op: Op,
    /// The memory to read into or write from, in the order of the device; empty for other operations.
    pub segments: &'a [IoSegment],
}

/// The operation of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Fills the segments from the device.
    Read {
        /// The first sector to read.
        sector: Sector,
    },
    /// Stores the segments' bytes.
    Write {
        /// The first sector to write.
        sector: Sector,
        /// The bytes are durable when the write completes (force unit access). Only for queues that can do that
        /// ([`Caps::fua`](crate::Caps::fua)).
        fua: bool,
    },
    /// Makes durable all data that was written by completed writes.
    Flush,
    /// Discards data.
    Discard {
        /// The first sector to discard.
        sector: Sector,
        /// The number of sectors.
        count: Sector,
        /// True if no copy may stay readable by any means.
        secure: bool,
    },
}

impl Op {
    /// Returns a write whose bytes a later flush makes durable.
    #[inline]
    pub const fn write(sector: Sector) -> Op {
        Op::Write { sector, fua: false }
    }
}

/// The result of a submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a request that is done has no other completion"]
pub enum Submitted {
    /// The request is complete already.
    Done(Result<(), IoError>),
    /// The completion will come from the queue, with the request's tag.
    Pending,
    /// The request was not taken: the caller submits it again once [`poll_complete`](crate::IoQueue::poll_complete) is
    /// ready.
    Busy,
}

/// The reason why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoError {
    /// The request reaches past the end of the device.
    OutOfRange,
    /// The request's position or length is not in whole sectors of the device.
    Misaligned,
    /// The request would change a device that is open for reading only.
    ReadOnly,
    /// The device cannot do this.
    NotSupported,
    /// There is no memory left for the data that it would store.
    NoMemory,
    /// The store failed.
    Medium,
    /// The request was given up before it was done ([`IoQueue::cancel`](crate::IoQueue::cancel)).
    Cancelled,
}

impl fmt::Display for IoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            IoError::OutOfRange => "past the end of the device",
            IoError::Misaligned => "not in whole sectors",
            IoError::ReadOnly => "the device is read-only",
            IoError::NotSupported => "not supported by the device",
            IoError::NoMemory => "no memory is left for the data",
            IoError::Medium => "the store failed",
            IoError::Cancelled => "given up",
        })
    }
}

impl core::error::Error for IoError {}
