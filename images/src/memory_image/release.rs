//! Discards: clears an image's memory, or gives it back to Xen page by page.

use super::{Locked, MemoryImage, Registered};
use crate::discard_map::{Reader, announce};
use crate::extent::{Run, runs};
use bulkhead_xen::PAGE_SIZE;

/// The most pages that are discarded at a time, so that no queue waits long for the lock or the vCPU.
const STEP_PAGES: usize = 256;

/// A part of a discard: its pages are noted as released, and may still be in use. The caller passes it to
/// [`MemoryImage::finish_release`] until that returns true, or to [`MemoryImage::abandon_release`].
#[derive(Debug)]
#[must_use = "no other step can begin before this one ends"]
pub(crate) struct DiscardStep {
    offset: usize,
    len: usize,
}

impl DiscardStep {
    /// Returns the number of bytes that the step discards.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl MemoryImage {
    /// Clears pages that were noted as released and notes them as there.
    pub(super) fn keep(&self, run: &Run<'_>) {
        let at = run.extent.page_offset(run.first);
        run.extent.memory.zero(at, run.count * PAGE_SIZE);
        for page in run.first..run.first + run.count {
            run.extent.released.regain(page, &self.released);
        }
    }

    /// Clears the first of these bytes, a step at most, and returns their number; the bytes exist. As with a write,
    /// bytes that another queue writes meanwhile are one or the other. `reader` is needed where memory may be released
    /// meanwhile.
    pub(crate) fn clear(&self, reader: Option<&Reader>, offset: usize, len: usize) -> usize {
        let len = len.min(STEP_PAGES * PAGE_SIZE);
        let _guard = reader.map(Reader::guard);
        let complete = self.released.is_zero();
        for piece in self.extents.pieces(offset, len) {
            // What is released reads as zeros already.
            if complete || !piece.is_released() {
                piece.extent.memory.zero(piece.offset, piece.len);
            }
        }
        len
    }

    /// Begins to release the memory of the first of these bytes; they exist, and there is at least one. Returns `None`
    /// if another queue does so at the moment: the caller tries again.
    pub(crate) fn begin_release(&self, offset: usize, len: usize) -> Option<DiscardStep> {
        let mut locked = self.locked.lock();
        if locked.discarding {
            return None;
        }
        locked.discarding = true;
        let mut step = DiscardStep { offset, len: 0 };
        for piece in self.extents.pieces(offset, len).take(STEP_PAGES) {
            step.len += piece.len;
            if piece.is_released() {
                continue;
            }
            match piece.page.filter(|_| piece.is_whole_page()) {
                Some(page) => piece.extent.released.note(page, &self.released),
                // Other data may be in the rest of the page.
                None => piece.extent.memory.zero(piece.offset, piece.len),
            }
        }
        announce();
        for registered in &mut locked.readers {
            registered.awaited = registered.reader.current_epoch();
        }
        Some(step)
    }

    /// Gives the pages of the step back to Xen if no queue uses them any more. Returns false if a queue may
    /// still use one.
    pub(crate) fn finish_release(&self, step: &DiscardStep) -> bool {
        let mut locked = self.locked.lock();
        let left = |registered: &Registered| {
            let awaited = registered.awaited;
            awaited.is_none_or(|epoch| registered.reader.has_left(epoch))
        };
        if !locked.readers.iter().all(left) {
            return false;
        }
        for run in self.noted(step) {
            self.release(&locked, &run);
        }
        locked.discarding = false;
        true
    }

    /// Ends a step without giving anything back.
    pub(crate) fn abandon_release(&self, step: &DiscardStep) {
        let mut locked = self.locked.lock();
        for run in self.noted(step) {
            self.keep(&run);
        }
        locked.discarding = false;
    }

    /// Returns the pages that the step has noted and no write has taken out of it since. There is no other step to
    /// which they could belong.
    fn noted(&self, step: &DiscardStep) -> impl Iterator<Item = Run<'_>> {
        let pieces = self.extents.pieces(step.offset, step.len);
        runs(pieces, |piece| {
            piece.is_whole_page() && piece.is_released() && !piece.is_gone()
        })
    }

    /// Gives back pages that were noted and that no queue uses.
    fn release(&self, _locked: &Locked, run: &Run<'_>) {
        let extent = run.extent;
        let at = extent.page_offset(run.first);
        // Xen does not clear a page for its next owner.
        extent.memory.zero(at, run.count * PAGE_SIZE);
        let gone = match &self.reservation {
            // SAFETY: whole pages of the image, noted as released; every queue that did not see that
            // has left, and no page of an image is ever granted.
            Some(reservation) => unsafe { extent.memory.release(&**reservation, at, run.count) },
            None => 0,
        };
        for page in run.first..run.first + gone {
            extent.released.lose(page);
        }
        // Pages that Xen does not take stay the image's memory, and are zeros by now.
        for page in run.first + gone..run.first + run.count {
            extent.released.regain(page, &self.released);
        }
    }
}
