//! The trait that a store implements to be a block device.

use crate::io::Sector;
use crate::queue::{OpenQueue, QueueContext};
use core::fmt;
use core::task::Waker;

/// An open device: has properties, and opens the queues with which I/O is done.
///
/// The device is shared; each of its users' rings has a queue of its own, so that vCPUs share
/// nothing while they serve. Whatever the device was opened with (the image's claim above all)
/// stays until the device and all its queues are dropped.
///
/// # Write your first store
/// A store that need not pick up its requests itself writes one `async` function, which
/// [`AsyncQueue`](crate::AsyncQueue) calls for each of them. This one keeps its bytes in memory that it has
/// to wait for:
///
/// ```
/// use bulkhead_images::testing::OpenNow;
/// use bulkhead_images::{
///     AsyncIo, AsyncQueue, BlockDevice, Caps, Geometry, Io, IoError, Op, OpenQueue, QueueContext, Sector,
///     SectorSize, Submitted, Tag, not_opened, opened,
/// };
/// use std::sync::{Arc, Mutex};
///
/// struct Slow(Arc<Mutex<Vec<u8>>>);
///
/// async fn serve(memory: Arc<Mutex<Vec<u8>>>, io: AsyncIo) -> Result<(), IoError> {
///     core::future::ready(()).await; // whatever it waits for
///     let mut memory = memory.lock().unwrap();
///     let place = |sector: Sector| {
///         let start = sector.bytes().ok_or(IoError::OutOfRange)? as usize;
///         let end = start.checked_add(io.len()).ok_or(IoError::OutOfRange)?;
///         (end <= 4096).then_some(start..end).ok_or(IoError::OutOfRange)
///     };
///     match io.op {
///         Op::Read { sector } => io.copy_from(0, &memory[place(sector)?]),
///         Op::Write { sector, .. } => io.copy_to(0, &mut memory[place(sector)?]),
///         Op::Flush => {}
///         Op::Discard { .. } => return Err(IoError::NotSupported),
///     }
///     Ok(())
/// }
///
/// impl BlockDevice for Slow {
///     fn geometry(&self) -> Geometry {
///         Geometry {
///             sectors: Sector(8),
///             sector_size: SectorSize::B512,
///             physical_sector_size: SectorSize::B512,
///             read_only: false,
///             flush: true,
///             discard: None,
///         }
///     }
///
///     fn open_queue<'a>(&'a self, context: &QueueContext) -> OpenQueue<'a> {
///         let memory = self.0.clone();
///         let caps = Caps { depth: 8, ..Caps::UNLIMITED };
///         match AsyncQueue::new(caps, context.depth, move |io| serve(memory.clone(), io)) {
///             Ok(queue) => opened(queue),
///             Err(error) => not_opened(error),
///         }
///     }
/// }
///
/// let device = Slow(Arc::new(Mutex::new(vec![0; 4096])));
/// let flush = Io { op: Op::Flush, segments: &[] };
/// assert_eq!(device.queue().submit(Tag(1), flush), Submitted::Done(Ok(())));
/// ```
///
/// A store that keeps its own list of requests implements [`IoQueue`](crate::IoQueue) itself, as `ram:` and `null:` do.
/// A store that targets name is registered ([`Store`](crate::Store)).
pub trait BlockDevice: Send + Sync {
    /// Returns the device's present geometry.
    fn geometry(&self) -> Geometry;

    /// Opens a queue, on the vCPU that is going to serve with it: the queue never leaves that vCPU. May
    /// allocate, may wait (the caller gives it up after a time, by dropping the future), and may fail.
    fn open_queue<'a>(&'a self, context: &QueueContext) -> OpenQueue<'a>;

    /// Returns whether the device's queues have [`DataAccess::Dma`](crate::DataAccess::Dma). A layer asks the device
    /// below, unless its own queues are of another kind.
    fn uses_dma(&self) -> bool {
        false
    }

    /// Returns a number that tells where the first `sectors` lie from where they lay under the same target at another time,
    /// and the device from another one that guests could take it for; 0 if the target alone says that. A layer has the
    /// numbers of the devices below in its own.
    fn identity(&self, _sectors: Sector) -> u32 {
        0
    }

    /// Notes that a frontend that can write goes on with the device, which a boot before this one has served: what it has
    /// written and not flushed is not known here. A layer tells the devices below.
    fn resumed(&self) {}

    /// Wakes `waker` when the geometry changes next; the caller asks again after each wake-up. A device wakes one
    /// waker, the one that it was given last, and keeps none when it is dropped. Before a caller sleeps, it first calls
    /// this, then looks at the geometry once more.
    fn on_change(&self, _waker: &Waker) {}
}

/// The size, the sector sizes and the features of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Its size, in units of 512 bytes.
    pub sectors: Sector,
    /// The unit of addressing: requests start and end on its multiples.
    pub sector_size: SectorSize,
    /// The unit that the store handles best; a multiple of `sector_size`.
    pub physical_sector_size: SectorSize,
    /// True if writes and discards are refused.
    pub read_only: bool,
    /// True if [`Flush`](crate::Op::Flush) is supported.
    pub flush: bool,
    /// The limits of [`Discard`](crate::Op::Discard), if it is supported.
    pub discard: Option<DiscardLimits>,
}

/// The units in which a device discards data best.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiscardLimits {
    /// The unit that the store prefers (`discard-granularity`, there in bytes). It is also the smallest unit
    /// of memory that is given back, by stores that give memory back. Less than a unit can be discarded too,
    /// and reads as zeros.
    pub granularity: Sector,
    /// The start of the first such unit, counted from the start of the device (`discard-alignment`, there in
    /// bytes); less than the granularity.
    pub alignment: Sector,
    /// True if secure discards are possible (`discard-secure`).
    pub secure: bool,
}

/// The most bytes that a store has a device or a server discard with one command. All of them do that in good time;
/// with a guest's whole discard of terabytes, one could be taken for dead.
pub const MOST_FORGOTTEN: u64 = 1 << 30;

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
    /// Returns the size in units of 512 bytes.
    pub const fn sectors(self) -> Sector {
        Sector((self.bytes() / Sector::SIZE) as u64)
    }

    /// Returns the size in bytes.
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
