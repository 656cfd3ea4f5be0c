//! A device whose sectors lie in extents of other devices: a partition, a logical volume.

mod below;
mod extents;
mod queue;
#[allow(unsafe_code, reason = "keeps segments of requests that are cut")]
mod splits;

pub use extents::{ExtentError, ExtentMap, Leg};

use crate::claim::Access;
use crate::device::{BlockDevice, DiscardLimits, Geometry, SectorSize};
use crate::io::Sector;
use crate::layers::shared::{Held, SharedDevice, Watcher, for_access};
use crate::queue::{OpenQueue, QueueContext};
use alloc::boxed::Box;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicUsize, Ordering};
use core::task::Waker;
use queue::MappedQueue;
use spin::Mutex;

/// A device that consists of extents of others.
///
/// A request that lies in a row on one device below is passed on as it is: its data is copied no more
/// often than without this layer. Others are cut at the ends of extents, and their parts are served at the same
/// time. A flush goes to every device below that can be flushed, a discard to those that have some of it.
///
/// The device can grow while it is in use ([`extend`](Self::extend)); its users are told.
#[derive(Clone)]
pub struct MappedDevice(Arc<Shared>);

struct Shared {
    below: Vec<Watcher>,
    sector_size: SectorSize,
    access: Access,
    /// The map, which changes rarely: queues have copies of their own, and look at the number of changes alone.
    map: Mutex<Arc<ExtentMap>>,
    changes: AtomicUsize,
    waiting: Mutex<Option<Waker>>,
    _held: Held,
}

/// The reason why a device cannot be made of those extents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MappingError {
    /// There are no sectors, or no device.
    Empty,
    /// The devices below have sectors of different sizes.
    SectorSizes(SectorSize, SectorSize),
    /// An extent is not in whole sectors of the device below.
    Misaligned(SectorSize),
    /// An extent names a device that is not there, or sectors past its end.
    OutOfRange,
    /// The sectors that the device has would change their place.
    Moved,
}

impl fmt::Display for MappingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MappingError::Empty => f.write_str("it has no sectors"),
            MappingError::SectorSizes(one, other) => {
                write!(f, "its disks have sectors of {one} and of {other} bytes")
            }
            MappingError::Misaligned(size) => {
                write!(f, "a part of it is not in whole sectors of {size} bytes")
            }
            MappingError::OutOfRange => f.write_str("a part of it is past the end of its disk"),
            MappingError::Moved => f.write_str("a part of it lies elsewhere now"),
        }
    }
}

impl core::error::Error for MappingError {}

impl MappedDevice {
    /// Returns the device whose sectors lie on `below` as `map` says. `held` is kept as long as the device and its
    /// queues.
    pub fn new(
        below: &[SharedDevice],
        map: ExtentMap,
        access: Access,
        held: Held,
    ) -> Result<MappedDevice, MappingError> {
        let mut sizes = below
            .iter()
            .map(|device| device.device().geometry().sector_size);
        let sector_size = sizes.next().ok_or(MappingError::Empty)?;
        if let Some(other) = sizes.find(|other| *other != sector_size) {
            return Err(MappingError::SectorSizes(sector_size, other));
        }
        if map.sectors() == Sector(0) {
            return Err(MappingError::Empty);
        }
        let below: Vec<Watcher> = below.iter().map(Watcher::new).collect();
        check(&below, sector_size, &map)?;
        Ok(MappedDevice(Arc::new(Shared {
            below,
            sector_size,
            access,
            map: Mutex::new(Arc::new(map)),
            changes: AtomicUsize::new(0),
            waiting: Mutex::new(None),
            _held: held,
        })))
    }

    /// Returns the present places of its sectors.
    pub fn map(&self) -> Arc<ExtentMap> {
        self.0.map.lock().clone()
    }

    /// Returns a reference to the same device that does not keep it.
    pub fn downgrade(&self) -> WeakMappedDevice {
        WeakMappedDevice(Arc::downgrade(&self.0))
    }

    /// Makes the device larger, and tells its users. `map` has all of its sectors at their present places, and more
    /// behind them. Nothing changes on an error.
    pub fn extend(&self, map: ExtentMap) -> Result<(), MappingError> {
        check(&self.0.below, self.0.sector_size, &map)?;
        let mut current = self.0.map.lock();
        if !current.is_start_of(&map) {
            return Err(MappingError::Moved);
        }
        *current = Arc::new(map);
        self.0.changes.fetch_add(1, Ordering::Release);
        drop(current);
        let waiting = self.0.waiting.lock().take();
        waiting.into_iter().for_each(Waker::wake);
        Ok(())
    }
}

/// A reference to a device that may be in use, or no longer.
#[derive(Clone)]
pub struct WeakMappedDevice(Weak<Shared>);

impl WeakMappedDevice {
    /// Returns the device, as long as it is in use.
    pub fn upgrade(&self) -> Option<MappedDevice> {
        self.0.upgrade().map(MappedDevice)
    }
}

/// Checks that the map consists of whole sectors that exist on the devices below.
fn check(below: &[Watcher], size: SectorSize, map: &ExtentMap) -> Result<(), MappingError> {
    let unit = size.sectors().0;
    for (device, start, len) in map.ranges() {
        let below = below.get(device).ok_or(MappingError::OutOfRange)?;
        if !start.0.is_multiple_of(unit) || !len.0.is_multiple_of(unit) {
            return Err(MappingError::Misaligned(size));
        }
        if start.0 + len.0 > below.device.device().geometry().sectors.0 {
            return Err(MappingError::OutOfRange);
        }
    }
    Ok(())
}

impl BlockDevice for MappedDevice {
    fn geometry(&self) -> Geometry {
        let map = self.map();
        let below = self.0.below.iter();
        let below = below.map(|below| below.device.device().geometry());
        let all = below.reduce(|one, other| Geometry {
            physical_sector_size: one.physical_sector_size.max(other.physical_sector_size),
            read_only: one.read_only || other.read_only,
            flush: one.flush || other.flush,
            discard: one
                .discard
                .zip(other.discard)
                .map(|(one, other)| DiscardLimits {
                    secure: one.secure && other.secure,
                    ..match one.granularity < other.granularity {
                        true => other,
                        false => one,
                    }
                }),
            ..one
        });
        let all = all.expect("there is a device below");
        let first = map.ranges().next().map_or(0, |(_, start, _)| start.0);
        let geometry = Geometry {
            sectors: map.sectors(),
            sector_size: self.0.sector_size,
            discard: all.discard.map(|limits| DiscardLimits {
                alignment: moved(limits, first),
                ..limits
            }),
            ..all
        };
        for_access(geometry, self.0.access)
    }

    fn identity(&self, sectors: Sector) -> u32 {
        let below = self.0.below.iter().map(|below| {
            let device = below.device.device();
            device.identity(device.geometry().sectors)
        });
        let below = below.fold(0, |all: u32, one| all.rotate_left(1) ^ one);
        self.map().identity(sectors) ^ below
    }

    fn resumed(&self) {
        let below = self.0.below.iter();
        below.for_each(|below| below.device.device().resumed());
    }

    fn uses_dma(&self) -> bool {
        let mut below = self.0.below.iter();
        below.any(|below| below.device.device().uses_dma())
    }

    fn open_queue<'a>(&'a self, context: &QueueContext) -> OpenQueue<'a> {
        let context = *context;
        Box::pin(async move {
            let mut queues = Vec::new();
            for below in &self.0.below {
                queues.push(below.device.device().open_queue(&context).await?);
            }
            let queue: Box<dyn crate::IoQueue> =
                Box::new(MappedQueue::new(self.0.clone(), queues, context.depth)?);
            Ok(queue)
        })
    }

    fn on_change(&self, waker: &Waker) {
        *self.0.waiting.lock() = Some(waker.clone());
        self.0.below.iter().for_each(|below| below.watch(waker));
    }
}

/// Returns the start of the first discard unit, counted from sector `first` of the device.
fn moved(limits: DiscardLimits, first: u64) -> Sector {
    let unit = limits.granularity.0.max(1);
    Sector((limits.alignment.0 % unit + unit - first % unit) % unit)
}
