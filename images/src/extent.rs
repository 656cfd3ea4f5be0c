//! Extents: the pieces of memory that an image lies in, and where their pages begin.

use crate::discard_map::Released;
use crate::memory::ImageMemory;
use alloc::boxed::Box;
use bulkhead_xen::PAGE_SIZE;
use core::ops::Range;
use spin::Once;

/// One piece of an image's memory. The first lies in the ramdisk, where the image was found among others;
/// each growth adds one, of whole pages that hold nothing else.
#[derive(Debug)]
pub(crate) struct Extent {
    /// The image's byte with which it starts.
    start: usize,
    pub(crate) memory: ImageMemory,
    /// The bytes of the memory that are the image's.
    bytes: Range<usize>,
    /// The released pages, of those that lie in the memory as a whole.
    pub(crate) released: Released,
    next: Once<Box<Extent>>,
}

/// Neighbouring bytes of an image within one page of one extent.
#[derive(Clone, Copy)]
pub(crate) struct Piece<'a> {
    pub(crate) extent: &'a Extent,
    /// The offset in the extent's memory.
    pub(crate) offset: usize,
    pub(crate) len: usize,
    /// The page's number, if the extent's memory has all of it.
    pub(crate) page: Option<usize>,
}

impl Extent {
    /// Returns the extent that holds an image's first bytes, or all: all of `memory`. No page of it can be released
    /// yet.
    pub(crate) fn first(memory: ImageMemory) -> Extent {
        Extent {
            start: 0,
            bytes: 0..memory.len(),
            memory,
            released: Released::none_of(0),
            next: Once::new(),
        }
    }

    /// Returns the extent that holds the image's bytes from `start` on, which are `bytes` of `memory`.
    pub(crate) fn added(start: usize, memory: ImageMemory, bytes: Range<usize>) -> Extent {
        let mut extent = Extent {
            start,
            bytes,
            ..Extent::first(memory)
        };
        extent.divide();
        extent
    }

    /// Allows whole pages of it to be released.
    pub(crate) fn divide(&mut self) {
        let pages = self.memory.len().saturating_sub(self.head()) / PAGE_SIZE;
        self.released = Released::none_of(pages);
    }

    /// Returns the number of bytes before its first whole page.
    pub(crate) fn head(&self) -> usize {
        self.memory.address().wrapping_neg() % PAGE_SIZE
    }

    /// Returns the number of bytes that the image has in its last page; 0 if it has all of that page.
    pub(crate) fn end_in_page(&self) -> usize {
        (self.memory.address() + self.bytes.end) % PAGE_SIZE
    }

    /// Returns the offset of a whole page.
    pub(crate) fn page_offset(&self, page: usize) -> usize {
        self.head() + page * PAGE_SIZE
    }

    /// Returns the last extent that there is now.
    pub(crate) fn last(&self) -> &Extent {
        let mut extent = self;
        while let Some(next) = extent.next.get() {
            extent = next;
        }
        extent
    }

    /// Adds an extent. Only the holder of the image's lock calls this.
    pub(crate) fn append(&self, extent: Extent) {
        self.last().next.call_once(|| Box::new(extent));
    }

    /// Returns the first piece of the image's bytes from `offset` on, at most `len` of them. These bytes exist.
    fn piece(&self, offset: usize, len: usize) -> Piece<'_> {
        let mut extent = self;
        while let Some(next) = extent.next.get().filter(|next| next.start <= offset) {
            extent = next;
        }
        let offset = offset - extent.start + extent.bytes.start;
        let in_page = (extent.memory.address() + offset) % PAGE_SIZE;
        let left = extent.bytes.end - offset;
        let page = offset.checked_sub(extent.head());
        Piece {
            extent,
            offset,
            len: len.min(PAGE_SIZE - in_page).min(left),
            page: page
                .map(|within| within / PAGE_SIZE)
                .filter(|page| *page < extent.released.pages()),
        }
    }

    /// Returns the pieces of which `len` bytes of the image from `offset` on consist. These bytes exist.
    pub(crate) fn pieces(&self, offset: usize, len: usize) -> impl Iterator<Item = Piece<'_>> {
        let mut done = 0;
        core::iter::from_fn(move || {
            let piece = (done < len).then(|| self.piece(offset + done, len - done))?;
            done += piece.len;
            Some(piece)
        })
    }
}

impl Piece<'_> {
    /// Returns whether the piece is in a released page, and must not be used.
    pub(crate) fn is_released(&self) -> bool {
        self.page
            .is_some_and(|page| self.extent.released.contains(page))
    }

    /// Returns whether Xen has the piece's page back.
    pub(crate) fn is_gone(&self) -> bool {
        self.page
            .is_some_and(|page| self.extent.released.is_gone(page))
    }

    /// Returns whether the page can be released: the piece is all that the image has in it, and the rest of
    /// the page is unused.
    pub(crate) fn is_whole_page(&self) -> bool {
        self.page.is_some_and(|page| {
            let bytes = &self.extent.bytes;
            let start = self.extent.page_offset(page);
            let first = start.max(bytes.start);
            let end = (start + PAGE_SIZE).min(bytes.end);
            self.offset == first && self.offset + self.len == end
        })
    }
}

/// Whole pages of one extent in a row.
pub(crate) struct Run<'a> {
    pub(crate) extent: &'a Extent,
    pub(crate) first: usize,
    pub(crate) count: usize,
}

/// Returns the runs of those pages for which `chosen` returns true; it is called once for each piece.
pub(crate) fn runs<'a>(
    mut pieces: impl Iterator<Item = Piece<'a>>,
    mut chosen: impl FnMut(&Piece<'a>) -> bool,
) -> impl Iterator<Item = Run<'a>> {
    let mut open: Option<Run<'a>> = None;
    core::iter::from_fn(move || {
        for piece in pieces.by_ref() {
            let (extent, page) = (piece.extent, piece.page.filter(|_| chosen(&piece)));
            let Some(first) = page else {
                match open.take() {
                    Some(run) => return Some(run),
                    None => continue,
                }
            };
            match &mut open {
                Some(run)
                    if core::ptr::eq(run.extent, extent) && run.first + run.count == first =>
                {
                    run.count += 1;
                }
                _ => {
                    let begun = Run {
                        extent,
                        first,
                        count: 1,
                    };
                    if let Some(run) = open.replace(begun) {
                        return Some(run);
                    }
                }
            }
        }
        open.take()
    })
}
