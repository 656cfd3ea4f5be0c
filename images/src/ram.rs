//! RAM images: served in place from the memory they lie in.

use crate::device::{BlockDevice, Geometry, IoQueue, SectorSize};
use crate::io::{Io, IoError, Op, Sector, Submitted, Tag};
use crate::lease::{Access, Lease};
use crate::memory::ImageMemory;
use crate::segment::IoSegment;
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::task::Waker;

/// An image that lies in memory.
///
/// Reads and writes copy between that memory and the guest's pages and are done when submitted.
/// Requests that overlap in time, of several queues or several guests, are not ordered against
/// each other: as on any disk, such bytes are one or the other.
pub struct RamImage {
    image: Arc<Image>,
}

struct Image {
    memory: Arc<ImageMemory>,
    /// What is served of the memory: whole sectors.
    len: usize,
    sector_size: SectorSize,
    access: Access,
    _lease: Option<Lease>,
}

impl RamImage {
    /// The image in `memory`. Bytes after its last whole sector are not served.
    pub fn new(memory: ImageMemory, sector_size: SectorSize, access: Access) -> RamImage {
        Self::leased(Arc::new(memory), sector_size, access, None)
    }

    /// As [`new`](Self::new), with a lease that is kept as long as the image or a queue of it.
    pub(crate) fn leased(
        memory: Arc<ImageMemory>,
        sector_size: SectorSize,
        access: Access,
        lease: Option<Lease>,
    ) -> RamImage {
        RamImage {
            image: Arc::new(Image {
                len: memory.len() - memory.len() % sector_size.bytes(),
                memory,
                sector_size,
                access,
                _lease: lease,
            }),
        }
    }
}

impl BlockDevice for RamImage {
    fn geometry(&self) -> Geometry {
        Geometry {
            sectors: Sector((self.image.len / Sector::SIZE) as u64),
            sector_size: self.image.sector_size,
            physical_sector_size: self.image.sector_size,
            read_only: self.image.access == Access::ReadOnly,
            flush: true,
            discard: None,
        }
    }

    fn queue(&self) -> Box<dyn IoQueue> {
        Box::new(Queue {
            image: self.image.clone(),
        })
    }
}

struct Queue {
    image: Arc<Image>,
}

impl IoQueue for Queue {
    fn submit(&mut self, _tag: Tag, io: Io<'_>) -> Submitted {
        Submitted::Done(match io.op {
            Op::Read { sector } => self.image.read(sector, io.segments),
            Op::Write { sector } => self.image.write(sector, io.segments),
            Op::Flush => Ok(()),
            Op::Discard { .. } => Err(IoError::NotSupported),
        })
    }

    fn complete(&mut self, _sink: &mut dyn FnMut(Tag, Result<(), IoError>)) {}

    fn wake_on_completion(&mut self, _waker: &Waker) {}
}

impl Image {
    fn read(&self, sector: Sector, segments: &[IoSegment]) -> Result<(), IoError> {
        let mut offset = self.offset(sector, segments)?;
        for segment in segments {
            self.memory.copy_out(offset, segment);
            offset += segment.len();
        }
        Ok(())
    }

    fn write(&self, sector: Sector, segments: &[IoSegment]) -> Result<(), IoError> {
        if self.access == Access::ReadOnly {
            return Err(IoError::ReadOnly);
        }
        let mut offset = self.offset(sector, segments)?;
        for segment in segments {
            self.memory.copy_in(offset, segment);
            offset += segment.len();
        }
        Ok(())
    }

    /// The byte at which the data starts. All of it lies within the image.
    #[inline]
    fn offset(&self, sector: Sector, segments: &[IoSegment]) -> Result<usize, IoError> {
        let mut total = 0_usize;
        for segment in segments {
            total = total
                .checked_add(segment.len())
                .ok_or(IoError::OutOfRange)?;
        }
        let start = sector
            .bytes()
            .and_then(|start| usize::try_from(start).ok())
            .ok_or(IoError::OutOfRange)?;
        let end = start.checked_add(total).ok_or(IoError::OutOfRange)?;
        if end > self.len {
            return Err(IoError::OutOfRange);
        }
        let unit = self.sector_size.bytes();
        if !start.is_multiple_of(unit) || !total.is_multiple_of(unit) {
            return Err(IoError::Misaligned);
        }
        Ok(start)
    }
}
