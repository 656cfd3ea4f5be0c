//! What a store has to do to be a block device.

use crate::io::Sector;
use crate::queue::{OpenQueue, QueueContext};
use core::fmt;
use core::task::Waker;

/// An open device: says what it is, and gives queues to do I/O with.
///
/// The device is shared; each of its users' rings has a queue of its own, so that vCPUs share
/// nothing while they serve. Whatever the device was opened with (the image's lease above all)
/// stays until the device and all its queues are dropped.
pub trait BlockDevice: Send + Sync {
    /// What the device looks like now.
    fn geometry(&self) -> Geometry;

    /// Opens a queue, on the vCPU that is going to serve with it: the queue never leaves that vCPU. May
    /// allocate, may wait (the caller gives it up after a time, by dropping the future), and may fail.
    fn open_queue<'a>(&'a self, context: &QueueContext) -> OpenQueue<'a>;

    /// Wakes `waker` when the geometry changes next; to be asked again after each wake-up. A device
    /// wakes one waker, the one it was given last, and keeps none when it is dropped. Whoever sleeps on it first asks, then looks at the geometry once more.
    fn on_change(&self, _waker: &Waker) {}
}

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
