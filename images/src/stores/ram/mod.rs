//! RAM images: served in place from the memory in which they lie.

mod target;

pub(crate) use target::RamStore;
pub use target::RamTarget;

use crate::claim::{Access, Claim};
use crate::device::{BlockDevice, DiscardLimits, Geometry, SectorSize};
use crate::discard::DiscardMode;
use crate::discard_map::Reader;
use crate::io::{Io, IoError, Op, Sector, Submitted, Tag};
use crate::memory::ImageMemory;
use crate::memory_image::{DiscardStep, MemoryImage};
use crate::queue::{
    Caps, DataAccess, IoQueue, OpenQueue, OpenQueueError, QueueContext, Staging, StagingPhase,
    not_opened, opened,
};
use crate::segment::IoSegment;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use bulkhead_xen::PAGE_SIZE;
use core::task::{Context, Poll, Waker};

/// An image that lies in memory.
///
/// Reads and writes copy between that memory and the guest's pages and are done when submitted.
/// Requests that overlap in time, of several queues or several guests, are not ordered against
/// each other: as on any disk, such bytes are one or the other.
///
/// A discard clears the bytes, and the image keeps all of its memory. If an operator chose that
/// ([`DiscardMode::Release`]) and the image has a reservation
/// ([`Catalog::with_reservation`](crate::Catalog::with_reservation)), the whole pages within the range go back to Xen
/// instead. They read as zeros; the first write to one gets memory for it, or fails if there is none left.
///
/// A long discard is done in steps, and no more than one step of all discards of a queue between two calls of
/// [`IoQueue::poll_complete`].
#[derive(Clone)]
pub struct RamImage(Arc<Image>);

struct Image {
    memory: Arc<MemoryImage>,
    /// Its number among the watchers of the memory's growth.
    watcher: u64,
    sector_size: SectorSize,
    physical_sector_size: SectorSize,
    access: Access,
    discard: DiscardMode,
    _claim: Option<Claim>,
}

impl RamImage {
    /// Returns the image in `memory`. Bytes after its last whole sector are not served.
    pub fn new(memory: ImageMemory, sector_size: SectorSize, access: Access) -> RamImage {
        let memory = Arc::new(MemoryImage::new(memory));
        let sizes = (sector_size, sector_size);
        Self::claimed(memory, sizes, access, DiscardMode::Keep, None)
    }

    /// Returns an image with a claim that is kept as long as the image or a queue of it. The sizes are those of the
    /// sectors that are addressed and of the physical ones.
    pub(crate) fn claimed(
        memory: Arc<MemoryImage>,
        (sector_size, physical_sector_size): (SectorSize, SectorSize),
        access: Access,
        discard: DiscardMode,
        claim: Option<Claim>,
    ) -> RamImage {
        let watcher = memory.watchers.lock().number();
        RamImage(Arc::new(Image {
            watcher,
            sector_size,
            physical_sector_size,
            access,
            discard: match discard {
                DiscardMode::Release if memory.can_release() => DiscardMode::Release,
                _ => DiscardMode::Keep,
            },
            memory,
            _claim: claim,
        }))
    }
}

impl BlockDevice for RamImage {
    fn geometry(&self) -> Geometry {
        Geometry {
            sectors: Sector((self.0.len() / Sector::SIZE) as u64),
            sector_size: self.0.sector_size,
            physical_sector_size: self.0.physical_sector_size,
            read_only: self.0.access == Access::ReadOnly,
            flush: true,
            discard: self.0.discards().then(|| DiscardLimits {
                granularity: Sector((PAGE_SIZE / Sector::SIZE) as u64),
                // Whole sectors: members of an archive start at multiples of 512.
                alignment: Sector((self.0.memory.first_page() / Sector::SIZE) as u64),
                secure: true,
            }),
        }
    }

    fn open_queue<'a>(&'a self, context: &QueueContext) -> OpenQueue<'a> {
        let mut discards = VecDeque::new();
        if self.0.discards() && discards.try_reserve_exact(context.depth).is_err() {
            let bytes = context.depth.saturating_mul(size_of::<Discard>());
            return not_opened(OpenQueueError::NoMemory { bytes });
        }
        opened(Queue {
            // Only writers discard: readers find the image as it is. A writer that releases nothing may
            // have one beside it that does.
            reader: (self.0.discards() && self.0.memory.can_release())
                .then(|| self.0.memory.register_reader()),
            image: self.0.clone(),
            in_place: false,
            stepped: false,
            discards,
            releasing: None,
        })
    }

    fn on_change(&self, waker: &Waker) {
        self.0.memory.watchers.lock().wait(self.0.watcher, waker);
    }
}

struct Queue {
    image: Arc<Image>,
    reader: Option<Arc<Reader>>,
    /// True if the guard that is held protects staged memory.
    in_place: bool,
    /// True if a step was discarded since the last call of `complete`: no more of it until then.
    stepped: bool,
    /// The discards, in their order. Only the first one can have `releasing`.
    discards: VecDeque<Discard>,
    /// The part of the first one whose memory is being released.
    releasing: Option<DiscardStep>,
}

/// The part of a request that is still to be discarded.
#[derive(Clone, Copy)]
struct Discard {
    tag: Tag,
    offset: usize,
    /// The number of bytes that are left; none where the discard was given up.
    len: usize,
}

impl IoQueue for Queue {
    fn caps(&self) -> Caps {
        Caps {
            access: DataAccess::Direct,
            at_once: true,
            ..Caps::UNLIMITED
        }
    }

    fn submit(&mut self, tag: Tag, io: Io<'_>) -> Submitted {
        Submitted::Done(match io.op {
            Op::Read { sector } => self.read(sector, io.segments),
            Op::Write { sector, .. } => self.write(sector, io.segments),
            Op::Flush => Ok(()),
            // Secure or not: nothing of it is left, also where memory is given back.
            Op::Discard { sector, count, .. } => match self.image.discarded(sector, count) {
                Ok((_, 0)) => Ok(()),
                Ok((offset, len)) => {
                    let mut discard = Discard { tag, offset, len };
                    if self.discards.is_empty() && !self.stepped {
                        self.step(&mut discard);
                    }
                    if discard.len > 0 {
                        self.discards.push_back(discard);
                        return Submitted::Pending;
                    }
                    Ok(())
                }
                Err(error) => Err(error),
            },
        })
    }

    fn poll_complete(
        &mut self,
        context: &mut Context<'_>,
        sink: &mut dyn FnMut(Tag, Result<(), IoError>),
    ) -> Poll<()> {
        self.stepped = false;
        if self.discards.is_empty() {
            return Poll::Pending;
        }
        let mut told = Poll::Pending;
        self.discards.retain(|discard| {
            let cancelled = discard.len == 0;
            if cancelled {
                sink(discard.tag, Err(IoError::Cancelled));
                told = Poll::Ready(());
            }
            !cancelled
        });
        let Some(mut discard) = self.discards.front().copied() else {
            return told;
        };
        self.step(&mut discard);
        if discard.len > 0 {
            self.discards[0] = discard;
        } else {
            sink(discard.tag, Ok(()));
            told = Poll::Ready(());
            self.discards.pop_front();
        }
        if told.is_pending() {
            // There may be something to go on with at any time.
            context.waker().wake_by_ref();
        }
        told
    }

    fn cancel(&mut self, tag: Tag) {
        let first = self.discards.front().map(|discard| discard.tag);
        if first == Some(tag) {
            self.abandon_step();
        }
        let discard = self.discards.iter_mut().find(|other| other.tag == tag);
        if let Some(discard) = discard {
            discard.len = 0;
        }
    }

    fn cancel_all(&mut self) {
        self.abandon_step();
        for discard in &mut self.discards {
            discard.len = 0;
        }
    }

    fn poll_close(&mut self, _context: &mut Context<'_>) -> Poll<()> {
        // It copies in its own calls alone; a discard has no segments, and `drop` ends it.
        Poll::Ready(())
    }

    fn stage(&mut self, _tag: Tag, op: Op, len: usize) -> Option<Staging> {
        let sector = match op {
            Op::Read { sector } => sector,
            Op::Write { sector, .. } if self.image.access == Access::ReadWrite => sector,
            _ => return None,
        };
        let offset = self.image.range(sector, len).ok()?;
        let begin = !self.in_place;
        if begin && let Some(reader) = &self.reader {
            reader.enter();
        }
        self.in_place = true;
        let staged = self.image.memory.stage(offset, len);
        if staged.is_none() && begin {
            self.end_in_place();
        }
        staged.map(|memory| Staging {
            memory,
            phase: StagingPhase::InPlace,
        })
    }

    fn end_in_place(&mut self) {
        if core::mem::take(&mut self.in_place)
            && let Some(reader) = &self.reader
        {
            reader.leave();
        }
    }
}

impl Queue {
    /// Does one step of a discard, or nothing if another queue is in the way. There is no other step until completions
    /// are collected again.
    fn step(&mut self, discard: &mut Discard) {
        self.stepped = true;
        let memory = &self.image.memory;
        let done = match self.image.discard {
            DiscardMode::Keep => memory.clear(self.reader(), discard.offset, discard.len),
            DiscardMode::Release => {
                if self.releasing.is_none() {
                    self.releasing = memory.begin_release(discard.offset, discard.len);
                }
                let ended = self.releasing.take_if(|step| memory.finish_release(step));
                ended.map_or(0, |step| step.len())
            }
        };
        discard.offset += done;
        discard.len -= done;
    }

    /// Keeps the memory of the step that is being released, if one is.
    fn abandon_step(&mut self) {
        if let Some(step) = self.releasing.take() {
            self.image.memory.abandon_release(&step);
        }
    }

    /// Returns the mark to make for a request, unless it stands already.
    #[inline]
    fn reader(&self) -> Option<&Reader> {
        self.reader.as_deref().filter(|_| !self.in_place)
    }

    #[inline]
    fn read(&self, sector: Sector, segments: &[IoSegment]) -> Result<(), IoError> {
        let offset = self.image.offset(sector, segments)?;
        self.image.memory.read(self.reader(), offset, segments);
        Ok(())
    }

    #[inline]
    fn write(&self, sector: Sector, segments: &[IoSegment]) -> Result<(), IoError> {
        if self.image.access == Access::ReadOnly {
            return Err(IoError::ReadOnly);
        }
        let offset = self.image.offset(sector, segments)?;
        self.image.memory.write(self.reader(), offset, segments)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.end_in_place();
        self.abandon_step();
        if let Some(reader) = &self.reader {
            self.image.memory.unregister_reader(reader);
        }
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        self.memory.watchers.lock().forget(self.watcher);
    }
}

impl Image {
    /// Returns the number of bytes that are served: whole sectors.
    #[inline]
    fn len(&self) -> usize {
        let len = self.memory.len();
        len - len % self.sector_size.bytes()
    }

    fn discards(&self) -> bool {
        self.access == Access::ReadWrite
    }

    /// Returns the offset of a request's data, all of which lies within the image.
    #[inline]
    fn offset(&self, sector: Sector, segments: &[IoSegment]) -> Result<usize, IoError> {
        let mut total = 0_usize;
        for segment in segments {
            total = total
                .checked_add(segment.len())
                .ok_or(IoError::OutOfRange)?;
        }
        self.range(sector, total)
    }

    /// Returns the offset and the number of the bytes that a discard affects.
    fn discarded(&self, sector: Sector, count: Sector) -> Result<(usize, usize), IoError> {
        if self.access == Access::ReadOnly {
            return Err(IoError::ReadOnly);
        }
        let len = count.bytes().and_then(|len| usize::try_from(len).ok());
        let len = len.ok_or(IoError::OutOfRange)?;
        Ok((self.range(sector, len)?, len))
    }

    /// Returns the offset of `len` bytes from `sector` on, if they are whole sectors of the image.
    #[inline]
    fn range(&self, sector: Sector, len: usize) -> Result<usize, IoError> {
        let start = sector
            .bytes()
            .and_then(|start| usize::try_from(start).ok())
            .ok_or(IoError::OutOfRange)?;
        let end = start.checked_add(len).ok_or(IoError::OutOfRange)?;
        if end > self.len() {
            return Err(IoError::OutOfRange);
        }
        let unit = self.sector_size.bytes();
        if !start.is_multiple_of(unit) || !len.is_multiple_of(unit) {
            return Err(IoError::Misaligned);
        }
        Ok(start)
    }
}
