//! The guest's memory of one request, as long as it is pending.

use alloc::vec::Vec;
use bulkhead_grant::OutOfMemory;
use bulkhead_grant::memory::room_for;
use bulkhead_images::IoSegment;

/// The most segments of a request: as many pages as Linux's frontends ask for at most by default.
pub const MOST: usize = 32;

/// Zeros, for parts that a server does not send.
static ZEROS: [u8; 512] = [0; 512];

/// The segments of a request, and the position of the next byte.
pub struct Segments {
    all: Vec<IoSegment>,
    /// The segment that is used next, and the number of its bytes that were used.
    next: usize,
    used: usize,
}

impl Segments {
    /// Takes the memory for the segments of any request.
    pub fn new() -> Result<Segments, OutOfMemory> {
        Ok(Segments {
            all: room_for(MOST)?,
            next: 0,
            used: 0,
        })
    }

    /// Keeps the segments of a request. The caller [clears](Self::clear) them before it reports the request's
    /// completion, and before its queue is closed. Returns false if there are too many.
    #[inline]
    pub fn keep(&mut self, segments: &[IoSegment]) -> bool {
        debug_assert!(self.all.is_empty());
        if segments.len() > self.all.capacity() {
            return false;
        }
        self.rewind();
        // SAFETY: the owner clears them in time, as this method asks of it.
        let kept = segments.iter().map(|segment| unsafe { segment.keep() });
        self.all.extend(kept);
        true
    }

    /// Forgets the segments: their bytes are not touched any more.
    #[inline]
    pub fn clear(&mut self) {
        self.all.clear();
        self.rewind();
    }

    /// Goes back to the first byte.
    #[inline]
    pub fn rewind(&mut self) {
        (self.next, self.used) = (0, 0);
    }

    /// Goes to the byte at `offset`.
    pub fn seek(&mut self, mut offset: usize) {
        self.rewind();
        while let Some(segment) = self.all.get(self.next)
            && offset >= segment.len()
        {
            offset -= segment.len();
            self.next += 1;
        }
        self.used = offset;
    }

    /// Copies the next bytes that the guest writes to `to`.
    #[inline]
    pub fn copy_to(&mut self, to: &mut [u8]) {
        self.each(to.len(), |segment, start, done, len| {
            segment.copy_to(start, &mut to[done..done + len]);
        });
    }

    /// Copies `from` over the next bytes that the guest reads.
    #[inline]
    pub fn copy_from(&mut self, from: &[u8]) {
        self.each(from.len(), |segment, start, done, len| {
            segment.copy_from(start, &from[done..done + len]);
        });
    }

    /// Writes zeros over the next `len` bytes that the guest reads.
    pub fn zero(&mut self, len: usize) {
        self.each(len, |segment, start, _, len| {
            let mut done = 0;
            while done < len {
                let part = (len - done).min(ZEROS.len());
                segment.copy_from(start + done, &ZEROS[..part]);
                done += part;
            }
        });
    }

    /// Calls `copy` for each contiguous part of the next `len` bytes: with its segment, its offset in the segment and
    /// in all of these bytes, and its length.
    #[inline]
    fn each(&mut self, len: usize, mut copy: impl FnMut(&IoSegment, usize, usize, usize)) {
        let mut done = 0;
        while done < len
            && let Some(segment) = self.all.get(self.next)
        {
            let part = (len - done).min(segment.len() - self.used);
            copy(segment, self.used, done, part);
            done += part;
            self.used += part;
            if self.used == segment.len() {
                (self.next, self.used) = (self.next + 1, 0);
            }
        }
    }
}
