//! The memory of an image, shared by all disks that have it open: copied from and to, given back page by page, and
//! grown.

mod release;

pub(crate) use release::DiscardStep;

use crate::discard_map::{Count, Reader};
use crate::extent::{Extent, Piece, runs};
use crate::io::IoError;
use crate::memory::ImageMemory;
use crate::resize::AddedMemory;
use crate::segment::IoSegment;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_executor::Waiters;
use bulkhead_xen::{PAGE_SIZE, Reservation};
use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};
use core::task::Waker;
use spin::Mutex;

/// The memory of one image.
///
/// Reads and writes take no lock as long as they meet no released page; [`discard_map`](crate::discard_map) explains
/// why discards cannot go wrong then.
pub(crate) struct MemoryImage {
    extents: Extent,
    /// The image's size in bytes; set once the memory is there.
    len: AtomicUsize,
    released: Count,
    reservation: Option<Arc<dyn Reservation>>,
    locked: Mutex<Locked>,
    /// The disks' tasks that wait for the image to grow.
    pub(crate) watchers: Mutex<Waiters>,
}

/// The state that the image's lock guards, besides the map of released pages.
#[derive(Default)]
struct Locked {
    readers: Vec<Registered>,
    /// True if a step of a discard has begun and not ended.
    discarding: bool,
    /// True if a resize has begun and not ended.
    growing: bool,
}

/// A queue that may be at work.
struct Registered {
    reader: Arc<Reader>,
    /// The number of the visit that the step waits for.
    awaited: Option<usize>,
}

/// The reason why an image cannot grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CannotGrow {
    /// The image would not become larger.
    NotLarger,
    /// The image is growing already.
    Growing,
    /// There is no memory for the growth.
    NoMemory,
}

impl MemoryImage {
    /// Returns an image that is all of `memory`.
    pub(crate) fn new(memory: ImageMemory) -> MemoryImage {
        MemoryImage {
            len: AtomicUsize::new(memory.len()),
            extents: Extent::first(memory),
            released: Count::new(),
            reservation: None,
            locked: Mutex::default(),
            watchers: Mutex::default(),
        }
    }

    /// Returns the memory of an image that has not grown.
    pub(crate) fn into_memory(self) -> ImageMemory {
        self.extents.memory
    }

    /// Allows the image to give memory back, and to grow.
    pub(crate) fn take_pages_from(&mut self, reservation: Arc<dyn Reservation>) {
        self.extents.divide();
        self.reservation = Some(reservation);
    }

    /// Returns the image's size in bytes.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len.load(Ordering::Acquire)
    }

    /// Returns whether memory can be given back.
    pub(crate) fn can_release(&self) -> bool {
        self.reservation.is_some() && self.extents.released.pages() > 0
    }

    /// Returns the first byte at which a page of the image's memory begins.
    pub(crate) fn first_page(&self) -> usize {
        self.extents.head()
    }

    /// Returns the number of the image's bytes that have no memory behind them.
    pub(crate) fn released(&self) -> usize {
        self.released.get() * PAGE_SIZE
    }

    /// Registers a queue that writes, until [`unregister_reader`](Self::unregister_reader).
    pub(crate) fn register_reader(&self) -> Arc<Reader> {
        let reader = Arc::new(Reader::new());
        self.locked.lock().readers.push(Registered {
            reader: reader.clone(),
            awaited: None,
        });
        reader
    }

    /// Removes the queue with that mark, which is at its end.
    pub(crate) fn unregister_reader(&self, reader: &Arc<Reader>) {
        let readers = &mut self.locked.lock().readers;
        readers.retain(|other| !Arc::ptr_eq(&other.reader, reader));
    }

    /// Returns the address of the image's `len` bytes from `offset`, if all of them are present and contiguous.
    /// If discards may go on meanwhile, the caller holds its [`Reader`]'s guard.
    pub(crate) fn stage(&self, offset: usize, len: usize) -> Option<NonNull<u8>> {
        let first = &self.extents.memory;
        let inside = offset.checked_add(len)? <= first.len();
        let complete = self.released.is_zero()
            || !self
                .extents
                .pieces(offset, len)
                .any(|piece| piece.is_released());
        (inside && complete).then(|| first.at(offset, len))
    }

    /// Fills the segments with the image's bytes from `offset` on, which exist. `reader` is needed where discards may
    /// go on meanwhile.
    #[inline]
    pub(crate) fn read(&self, reader: Option<&Reader>, offset: usize, segments: &[IoSegment]) {
        let _guard = reader.map(Reader::guard);
        let complete = self.released.is_zero();
        self.each(offset, segments, complete, |piece, segment| {
            if !complete && piece.is_released() {
                segment.fill_with_zeros();
            } else {
                piece.extent.memory.copy_out(piece.offset, segment);
            }
        });
    }

    /// Stores the segments' bytes from `offset` on; the image has that many. `reader` is needed where discards may go
    /// on meanwhile.
    #[inline]
    pub(crate) fn write(
        &self,
        reader: Option<&Reader>,
        offset: usize,
        segments: &[IoSegment],
    ) -> Result<(), IoError> {
        {
            let _guard = reader.map(Reader::guard);
            let complete = self.released.is_zero();
            if complete || !self.meets_released(offset, segments) {
                self.store(offset, segments, complete);
                return Ok(());
            }
        }
        let locked = self.locked.lock();
        self.populate(&locked, offset, length(segments))?;
        self.store(offset, segments, false);
        Ok(())
    }

    #[inline]
    fn store(&self, offset: usize, segments: &[IoSegment], complete: bool) {
        self.each(offset, segments, complete, |piece, segment| {
            piece.extent.memory.copy_in(piece.offset, segment);
        });
    }

    /// Calls `act` for each part of the segments with the piece of memory that it belongs to: for the whole segment at
    /// once where nothing is released.
    #[inline]
    fn each(
        &self,
        mut offset: usize,
        segments: &[IoSegment],
        complete: bool,
        mut act: impl FnMut(Piece<'_>, &IoSegment),
    ) {
        for segment in segments {
            let end = offset + segment.len();
            if complete && end <= self.extents.memory.len() {
                let piece = Piece {
                    extent: &self.extents,
                    offset,
                    len: segment.len(),
                    page: None,
                };
                act(piece, segment);
            } else {
                let mut done = 0;
                for piece in self.extents.pieces(offset, segment.len()) {
                    act(piece, &segment.part(done, piece.len));
                    done += piece.len;
                }
            }
            offset = end;
        }
    }

    fn meets_released(&self, offset: usize, segments: &[IoSegment]) -> bool {
        let mut pieces = self.extents.pieces(offset, length(segments));
        pieces.any(|piece| piece.is_released())
    }

    /// Makes every page present that these bytes touch. Pages for which there is no memory stay released, and read as
    /// zeros as before.
    fn populate(&self, _locked: &Locked, offset: usize, len: usize) -> Result<(), IoError> {
        let Some(reservation) = &self.reservation else {
            return Ok(());
        };
        let pieces = || self.extents.pieces(offset, len);
        for run in runs(pieces(), |piece| piece.is_gone()) {
            let extent = run.extent;
            let at = extent.page_offset(run.first);
            // SAFETY: Xen has these pages back, and the image's lock is held.
            let got = unsafe { extent.memory.populate(&**reservation, at, run.count) };
            for page in run.first..run.first + got {
                extent.released.regain(page, &self.released);
            }
            if got < run.count {
                return Err(IoError::NoMemory);
            }
        }
        // What is noted and not gone is taken out of the step that noted it.
        for run in runs(pieces(), |piece| piece.is_released()) {
            self.keep(&run);
        }
        Ok(())
    }

    /// Begins to make the image `new` bytes long. The caller clears the memory added, and then passes it to
    /// [`finish_resize`](Self::finish_resize), or else calls [`cancel_resize`](Self::cancel_resize).
    pub(crate) fn begin_resize(&self, new: usize) -> Result<AddedMemory, CannotGrow> {
        let mut locked = self.locked.lock();
        let old = self.len();
        if locked.growing {
            return Err(CannotGrow::Growing);
        }
        if new <= old {
            return Err(CannotGrow::NotLarger);
        }
        let reservation = self.reservation.as_ref().ok_or(CannotGrow::NoMemory)?;
        // The pages go on where they would if the last extent were longer: one alignment for all.
        let skip = self.extents.last().end_in_page();
        let end = skip.checked_add(new - old).ok_or(CannotGrow::NoMemory)?;
        let memory = ImageMemory::take(&**reservation, end).ok_or(CannotGrow::NoMemory)?;
        locked.growing = true;
        Ok(AddedMemory::new(memory, skip..end, old..new))
    }

    /// Ends a growth: adds the cleared memory to the image. Returns the length before.
    ///
    /// # Panics
    /// If it is not cleared.
    pub(crate) fn finish_resize(&self, added: AddedMemory) -> usize {
        let (image_bytes, memory, bytes) = added.into_parts();
        let mut locked = self.locked.lock();
        let extent = Extent::added(image_bytes.start, memory, bytes);
        self.extents.append(extent);
        self.len.store(image_bytes.end, Ordering::Release);
        locked.growing = false;
        drop(locked);
        let watchers = self.watchers.lock().take();
        watchers.for_each(Waker::wake);
        image_bytes.start
    }

    /// Ends a growth, and leaves the image as it is.
    pub(crate) fn cancel_resize(&self) {
        self.locked.lock().growing = false;
    }
}

fn length(segments: &[IoSegment]) -> usize {
    segments.iter().map(IoSegment::len).sum()
}

impl fmt::Debug for MemoryImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryImage")
            .field("len", &self.len())
            .field("released", &self.released())
            .finish_non_exhaustive()
    }
}
