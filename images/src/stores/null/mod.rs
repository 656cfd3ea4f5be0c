//! The null store: completes every request and touches no data, to measure the cost of everything else.

mod target;

pub(crate) use target::NullStore;
pub use target::NullTarget;

use crate::claim::Access;
use crate::device::{BlockDevice, Geometry, SectorSize};
use crate::io::{Io, IoError, Op, Sector, Submitted, Tag};
use crate::queue::{Caps, IoQueue, OpenQueue, QueueContext, opened};
use core::task::{Context, Poll};

/// A device without data (`null:SIZE`), of any size up to 2^64 bytes whatever memory there is.
///
/// The device completes every request that a device of its size could do, and touches neither memory of its own nor the
/// segments, so that only the protocol is measured. Reads leave the segments as they are: code that puts a buffer of
/// its own between this device and a guest clears that buffer first.
#[derive(Clone, Copy, Debug)]
pub struct NullDevice {
    sectors: Sector,
    sector_size: SectorSize,
    physical_sector_size: SectorSize,
    access: Access,
}

impl NullDevice {
    /// Returns a device of that size.
    pub fn new(sectors: Sector, sector_size: SectorSize, access: Access) -> NullDevice {
        NullDevice {
            sectors,
            sector_size,
            physical_sector_size: sector_size,
            access,
        }
    }

    /// Returns the same device, with larger sectors underneath.
    pub(crate) fn with_physical_sectors(self, physical_sector_size: SectorSize) -> NullDevice {
        NullDevice {
            physical_sector_size,
            ..self
        }
    }

    fn check(&self, sector: Sector, count: Sector) -> Result<(), IoError> {
        let unit = self.sector_size.sectors().0;
        match sector.0.checked_add(count.0) {
            Some(end) if end <= self.sectors.0 => {}
            _ => return Err(IoError::OutOfRange),
        }
        if !sector.0.is_multiple_of(unit) || !count.0.is_multiple_of(unit) {
            return Err(IoError::Misaligned);
        }
        Ok(())
    }
}

impl BlockDevice for NullDevice {
    fn geometry(&self) -> Geometry {
        Geometry {
            sectors: self.sectors,
            sector_size: self.sector_size,
            physical_sector_size: self.physical_sector_size,
            read_only: self.access == Access::ReadOnly,
            flush: true,
            discard: None,
        }
    }

    fn open_queue<'a>(&'a self, _context: &QueueContext) -> OpenQueue<'a> {
        opened(*self)
    }
}

impl IoQueue for NullDevice {
    fn caps(&self) -> Caps {
        Caps {
            at_once: true,
            ..Caps::UNLIMITED
        }
    }

    fn submit(&mut self, _tag: Tag, io: Io<'_>) -> Submitted {
        let bytes = io
            .segments
            .iter()
            .map(|segment| segment.len())
            .sum::<usize>();
        let count = Sector((bytes / Sector::SIZE) as u64);
        Submitted::Done(match io.op {
            _ if !bytes.is_multiple_of(Sector::SIZE) => Err(IoError::Misaligned),
            Op::Write { .. } if self.access == Access::ReadOnly => Err(IoError::ReadOnly),
            Op::Read { sector } | Op::Write { sector, .. } => self.check(sector, count),
            Op::Flush => Ok(()),
            Op::Discard { .. } => Err(IoError::NotSupported),
        })
    }

    fn poll_complete(
        &mut self,
        _context: &mut Context<'_>,
        _sink: &mut dyn FnMut(Tag, Result<(), IoError>),
    ) -> Poll<()> {
        Poll::Pending
    }

    fn cancel(&mut self, _tag: Tag) {}

    fn cancel_all(&mut self) {}

    fn poll_close(&mut self, _context: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }
}
