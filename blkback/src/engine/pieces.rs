//! Requests that the device does not take as they are: larger than it can take, or with data that goes
//! through memory of the device's own. They are served piece by piece, each request's pieces one after
//! another and those of different requests at the same time.
//!
//! The data of a request goes between the frontend's pages and the device's memory by one copy. Pages that
//! the frontend keeps granted are mapped already: this domain copies them itself. All others that are due are
//! copied by the hypervisor, in one hypercall; they are never mapped.

use super::data_path::PageAccess;
use super::inflight::InflightTable;
use super::pages::{InflightPages, Pages};
use super::store::Store;
use alloc::vec::Vec;
use bulkhead_grant::memory::{filled, room_for};
use bulkhead_grant::{Copied, CopyBatch, Direction, GrantedBytes, OutOfMemory};
use bulkhead_images::{Caps, DataAccess, Io, IoSegment, Op, Sector, Submitted, Tag, guest_memory};
use bulkhead_ring::blkif::SECTOR_SIZE;
use bulkhead_xen::{DomId, GrantStatus, Hypervisor, PAGE_SIZE};
use core::ptr::NonNull;

/// The requests of one queue that are served piece by piece.
pub(super) struct Pieces<H: Hypervisor> {
    caps: Caps,
    sector_size: usize,
    /// The requests, by their tags.
    places: Vec<Option<Piece>>,
    /// The segments of one piece.
    segments: Vec<IoSegment>,
    copies: CopyBatch<H>,
    /// The bytes that were copied without the hypervisor.
    copied_here: u64,
    /// The requests whose copies are in the batch, and those whose copies were made.
    copying: Vec<Tag>,
    copied: Vec<Tag>,
}

/// The progress of one request.
struct Piece {
    op: Op,
    /// The bytes that are done, those of the current piece, and all.
    done: usize,
    chunk: usize,
    all: usize,
    state: State,
}

/// The state of a request's current piece.
enum State {
    /// To be prepared and handed to the device; or handed over, without memory of the device's.
    New,
    /// The hypervisor copies from or to the device's memory.
    Copying(NonNull<u8>, Option<Copied>),
    /// The data is in the device's memory, or will be. The device has the piece, or is to get it.
    Staged(NonNull<u8>),
}

/// The pages of one request, and the way to them.
pub(super) struct RequestPages<'q, H: Hypervisor> {
    pub pool: &'q InflightPages,
    pub of_request: &'q Pages,
    pub access: &'q PageAccess<H>,
}

/// The outcome of an attempt to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// The device has the piece, or has completed it.
    Submitted,
    /// The piece is to be copied first.
    Copying,
    /// The piece was copied.
    Copied,
    /// The device is too busy.
    Busy,
    /// The device takes no piece of that part of the request, however small.
    Impossible,
    /// The data cannot be copied.
    Failed(GrantStatus),
}

impl<H: Hypervisor> Pieces<H> {
    /// Creates one for a device with the capabilities `caps` and sectors of `sector_size` bytes. Returns `None`
    /// if the device takes every request of up to `segments` segments as it is. Up to `slots` requests, with up
    /// to `pages` pages together, are served at a time.
    pub fn needed(
        hypervisor: &H,
        frontend: DomId,
        caps: &Caps,
        sector_size: usize,
        (slots, segments, pages): (usize, usize, usize),
    ) -> Result<Option<Self>, OutOfMemory> {
        let staged = caps.access == DataAccess::Staged;
        let takes_all = caps.segments >= segments
            && caps.bytes >= segments * PAGE_SIZE
            && caps.alignment <= SECTOR_SIZE;
        if takes_all && !staged {
            return Ok(None);
        }
        // Each page, and each piece's first, may lie across a border of the device's memory.
        let copies = if staged { 2 * pages + slots } else { 0 };
        Ok(Some(Pieces {
            caps: *caps,
            sector_size,
            places: filled(slots, |_| None)?,
            // Memory of the device's may begin within a page.
            segments: room_for(segments + 1)?,
            copies: CopyBatch::new(hypervisor.clone(), frontend, copies)?,
            copied_here: 0,
            copying: room_for(slots)?,
            copied: room_for(slots)?,
        }))
    }

    /// Returns whether all data goes through the device's memory.
    pub fn stages(&self) -> bool {
        self.caps.access == DataAccess::Staged
    }

    /// Returns whether a request is served piece by piece.
    pub fn serves(&self, tag: Tag) -> bool {
        self.places[tag.0].is_some()
    }

    /// Returns whether the device takes a request as it is.
    pub fn fits(&self, segments: &[IoSegment], bytes: u32) -> bool {
        segments.len() <= self.caps.segments
            && bytes as usize <= self.caps.bytes
            && segments
                .iter()
                .all(|segment| segment.is_aligned(self.caps.alignment))
    }

    /// Begins a read or a write of `bytes` bytes.
    pub fn begin(&mut self, tag: Tag, op: Op, bytes: usize) {
        self.places[tag.0] = Some(Piece {
            op,
            done: 0,
            chunk: 0,
            all: bytes,
            state: State::New,
        });
    }

    /// Prepares the next piece of a request, unless it is prepared already, and hands it to the device.
    /// `mapped` is the whole request, where its pages are mapped.
    pub fn submit(
        &mut self,
        tag: Tag,
        mapped: &[IoSegment],
        (store, inflight): (&mut Store, &mut InflightTable),
        pages: RequestPages<'_, H>,
    ) -> Progress {
        let Some(piece) = &mut self.places[tag.0] else {
            return Progress::Failed(GrantStatus::GENERAL_ERROR);
        };
        let sector_size = self.sector_size;
        let whole_sectors = |bytes: usize| bytes - bytes % sector_size;
        if let State::New = piece.state {
            let most = whole_sectors((piece.all - piece.done).min(self.caps.bytes));
            // The device refuses what is not in whole sectors.
            piece.chunk = if most == 0 {
                piece.all - piece.done
            } else {
                most
            };
            if self.caps.access == DataAccess::Staged {
                let op = after(piece.op, piece.done);
                piece.chunk = store.contiguous(op, piece.chunk);
                let Some(staging) = store.stage(tag, op, piece.chunk) else {
                    return Progress::Busy;
                };
                piece.state = State::Staged(staging.memory);
                if let Op::Write { .. } = op {
                    match self.copy(tag, Direction::FromGranted, pages) {
                        Progress::Copied => {}
                        other => return other,
                    }
                }
            }
        }
        let Some(piece) = &mut self.places[tag.0] else {
            return Progress::Failed(GrantStatus::GENERAL_ERROR);
        };
        self.segments.clear();
        if let State::Staged(memory) = piece.state {
            for (start, end) in pages_of(memory, piece.chunk) {
                // SAFETY: within the memory that the device gave for `piece.chunk` bytes.
                let address = unsafe { memory.add(start) };
                // SAFETY: the device's own memory, which stays until the request is unstaged, and is not
                // written while the device has the request. The device knows its bus address.
                let segment = unsafe { IoSegment::new(address, end - start, None) };
                self.segments.push(segment);
            }
        } else {
            let (mut start, mut bytes) = (0, 0);
            for segment in mapped {
                let (first, end) = (
                    start.max(piece.done),
                    (start + segment.len()).min(piece.done + piece.chunk),
                );
                if first < end {
                    if self.segments.len() == self.caps.segments {
                        break;
                    }
                    // SAFETY: dropped when the piece has been handed over; the pages stay mapped for the
                    // whole request.
                    let part = unsafe { segment.keep_part(first - start, end - first) };
                    self.segments.push(part);
                    bytes += end - first;
                }
                start += segment.len();
            }
            // The piece may have to end within its last segment, or before it.
            let whole = whole_sectors(bytes);
            let mut surplus = if bytes < piece.chunk {
                bytes - whole
            } else {
                0
            };
            piece.chunk = bytes - surplus;
            while surplus > 0
                && let Some(last) = self.segments.pop()
            {
                if last.len() > surplus {
                    // SAFETY: as above.
                    let part = unsafe { last.keep_part(0, last.len() - surplus) };
                    self.segments.push(part);
                    break;
                }
                surplus -= last.len();
            }
            let aligned = |segment: &IoSegment| segment.is_aligned(self.caps.alignment);
            if piece.chunk == 0 || !self.segments.iter().all(aligned) {
                self.segments.clear();
                return Progress::Impossible;
            }
        }
        let io = Io {
            op: after(piece.op, piece.done),
            segments: &self.segments,
        };
        let submitted = store.submit(tag, io);
        self.segments.clear();
        match submitted {
            Submitted::Done(outcome) => inflight.done(tag, outcome),
            Submitted::Pending => {}
            Submitted::Busy => return Progress::Busy,
        }
        Progress::Submitted
    }

    /// Takes note that the device has completed a piece of a request. Returns [`Progress::Copying`] if the
    /// piece is to be copied to the frontend's pages first: it is done when the copies are.
    pub fn done(&mut self, tag: Tag, store: &mut Store, pages: RequestPages<'_, H>) -> Progress {
        let Some(piece) = &mut self.places[tag.0] else {
            return Progress::Failed(GrantStatus::GENERAL_ERROR);
        };
        let copied = match (&piece.state, piece.op) {
            (State::Staged(_), Op::Read { .. }) => self.copy(tag, Direction::ToGranted, pages),
            _ => Progress::Copied,
        };
        if copied == Progress::Copied {
            self.advance(tag, store);
        }
        copied
    }

    /// Goes on to the next piece of a request.
    fn advance(&mut self, tag: Tag, store: &mut Store) {
        if let Some(piece) = &mut self.places[tag.0] {
            if !matches!(piece.state, State::New) {
                store.unstage(tag);
            }
            piece.done += piece.chunk;
            piece.state = State::New;
        }
    }

    /// Returns whether all pieces of a request are done.
    pub fn is_done(&self, tag: Tag) -> bool {
        let piece = self.places[tag.0].as_ref();
        piece.is_none_or(|piece| piece.done == piece.all)
    }

    /// Ends a request, also one that is not done.
    pub fn end(&mut self, tag: Tag, store: &mut Store) {
        if let Some(piece) = self.places[tag.0].take()
            && !matches!(piece.state, State::New)
        {
            store.unstage(tag);
        }
    }

    /// Copies a piece between the frontend's pages and the device's memory, or notes it to be copied by the
    /// hypervisor where a page is not mapped.
    fn copy(&mut self, tag: Tag, direction: Direction, pages: RequestPages<'_, H>) -> Progress {
        let Some(piece) = &mut self.places[tag.0] else {
            return Progress::Failed(GrantStatus::GENERAL_ERROR);
        };
        let State::Staged(memory) = piece.state else {
            return Progress::Failed(GrantStatus::GENERAL_ERROR);
        };
        let mut all: Option<Copied> = None;
        let mut start = 0;
        for page in pages.pool.iter(pages.of_request) {
            let (first, end) = (
                start.max(piece.done),
                (start + page.len()).min(piece.done + piece.chunk),
            );
            // What cannot be mapped is refused, or copied, by the hypervisor.
            if first < end
                && let Some(granted) = pages.access.kept_address(page)
            {
                let len = end - first;
                // SAFETY: as for the hypervisor's copy below.
                let own = unsafe { memory.add(first - piece.done) };
                // SAFETY: it has that part, which stays mapped meanwhile, writable where the request reads.
                let granted = unsafe { granted.add(first - start) };
                let (from, to) = match direction {
                    Direction::FromGranted => (granted, own),
                    Direction::ToGranted => (own, granted),
                };
                // SAFETY: both are mapped for that many bytes. A frontend's page is no memory of ours, so they do
                // not overlap, and Rust refers to neither.
                unsafe { guest_memory::copy(from.as_ptr(), to.as_ptr(), len) };
                self.copied_here += len as u64;
            } else if first < end {
                let granted = GrantedBytes {
                    gref: page.gref,
                    offset: page.offset() + first - start,
                    len: end - first,
                };
                // SAFETY: within the memory that the device gave for `piece.chunk` bytes, which it does not use
                // before the request is submitted or after it has completed, and which holds nothing but this
                // request's data.
                let queued = unsafe {
                    let own = memory.add(first - piece.done);
                    self.copies.queue(direction, granted, own)
                };
                let Ok(copied) = queued else {
                    // The request ends now, and with it its use of the device's memory: nothing may be copied there.
                    if let Some(others) = all {
                        self.copies.unqueue(others);
                    }
                    return Progress::Failed(GrantStatus::GENERAL_ERROR);
                };
                all = Some(match all {
                    Some(others) => others.and(copied),
                    None => copied,
                });
            }
            start += page.len();
        }
        if all.is_none() {
            return Progress::Copied;
        }
        piece.state = State::Copying(memory, all);
        self.copying.push(tag);
        Progress::Copying
    }

    /// Makes all copies that are due: one hypercall, if there are any. [`next_copied`](Self::next_copied) returns each
    /// request's outcome.
    pub fn run_copies(&mut self) {
        if self.copying.is_empty() {
            return;
        }
        self.copies.run();
        core::mem::swap(&mut self.copying, &mut self.copied);
        // `next_copied` takes them from the end.
        self.copied.reverse();
    }

    /// Takes a request whose copies were made, with their outcome. The piece of a read is done then.
    pub fn next_copied(&mut self, store: &mut Store) -> Option<(Tag, Result<(), GrantStatus>)> {
        let Some(tag) = self.copied.pop() else {
            // No copy was noted meanwhile, and no outcome of these is asked for any more.
            if self.copying.is_empty() && !self.copies.is_empty() {
                self.copies.clear();
            }
            return None;
        };
        let piece = self.places[tag.0].as_mut()?;
        let State::Copying(memory, copied) = &mut piece.state else {
            return Some((tag, Err(GrantStatus::GENERAL_ERROR)));
        };
        let outcome = match copied.take() {
            Some(copied) => self.copies.status(&copied),
            None => Ok(()),
        };
        piece.state = State::Staged(*memory);
        if outcome.is_ok() && matches!(piece.op, Op::Read { .. }) {
            self.advance(tag, store);
        }
        Some((tag, outcome))
    }

    /// Returns the number of hypercalls that copied so far, and the number of bytes that the hypervisor or this domain
    /// copied.
    pub fn calls(&self) -> (u64, u64) {
        let bytes = self.copies.bytes() + self.copied_here;
        (self.copies.calls(), bytes)
    }
}

/// Returns the operation on the bytes that are left after `done`.
fn after(op: Op, done: usize) -> Op {
    let after = |sector: Sector| Sector(sector.0 + (done / SECTOR_SIZE) as u64);
    match op {
        Op::Read { sector } => Op::Read {
            sector: after(sector),
        },
        Op::Write { sector, fua } => Op::Write {
            sector: after(sector),
            fua,
        },
        other => other,
    }
}

/// Divides `len` bytes from `memory` on at the borders of pages. Returns the beginning and the end of each part.
fn pages_of(memory: NonNull<u8>, len: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut start = 0;
    core::iter::from_fn(move || {
        let in_page = (memory.addr().get() + start) % PAGE_SIZE;
        let end = len.min(start + PAGE_SIZE - in_page);
        let part = (start < end).then_some((start, end));
        start = end;
        part
    })
}
