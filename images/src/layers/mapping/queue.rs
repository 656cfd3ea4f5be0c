//! The queue of a mapped device: passes requests on, whole or in parts.

use super::Shared;
use super::below::{Below, common};
use super::extents::{ExtentMap, Piece};
use super::splits::{Splits, passed_on, whole};
use crate::claim::Access;
use crate::io::{Io, IoError, Op, Sector, Submitted, Tag};
use crate::queue::{Caps, DataAccess, IoQueue, KEPT_SEGMENTS, OpenQueueError, Staging, room};
use crate::segment::IoSegment;
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_xen::DmaMemory;
use core::sync::atomic::Ordering;
use core::task::{Context, Poll};

/// The most requests that are served in parts at a time; the others have to wait.
const MOST_SPLITS: usize = 16;

pub(super) struct MappedQueue {
    shared: Arc<Shared>,
    map: Arc<ExtentMap>,
    /// The number of changes of the map that the queue has seen.
    changes: usize,
    below: Vec<Below>,
    splits: Splits,
    caps: Caps,
    /// The devices that gave staging memory for requests, if there are several devices.
    staged: Vec<(Tag, usize)>,
    /// True if a request was not taken.
    was_busy: bool,
}

impl MappedQueue {
    /// Returns a queue over those of the devices below, in their order, for up to `depth` requests at a time.
    pub fn new(
        shared: Arc<Shared>,
        queues: Vec<Box<dyn IoQueue>>,
        depth: usize,
    ) -> Result<MappedQueue, OpenQueueError> {
        let caps = common(&queues)?;
        let splits = depth.min(caps.depth).min(MOST_SPLITS);
        // Staged data is never cut here: the caller asks how much lies in a row.
        let segments = match caps.access {
            DataAccess::Staged => 0,
            _ => caps.segments.min(KEPT_SEGMENTS),
        };
        let several = queues.len() > 1 && caps.access == DataAccess::Staged;
        let below = queues.into_iter().zip(&shared.below);
        let below = below.map(|(queue, device)| Below {
            flushes: device.device.device().geometry().flush,
            depth: queue.caps().depth,
            queue,
            pending: 0,
            unflushed: false,
            in_place: false,
            closed: false,
        });
        // In this order: a change after that is noticed later.
        let changes = shared.changes.load(Ordering::Acquire);
        let map = shared.map.lock().clone();
        Ok(MappedQueue {
            changes,
            map,
            below: below.collect(),
            splits: Splits::new(splits, segments)?,
            caps: match caps.access {
                DataAccess::Staged => caps,
                _ => Caps { segments, ..caps },
            },
            staged: room(if several { depth.min(caps.depth) } else { 0 })?,
            was_busy: false,
            shared,
        })
    }

    /// Follows a change of the map.
    #[inline]
    fn refresh(&mut self) {
        let changes = self.shared.changes.load(Ordering::Acquire);
        if self.changes != changes {
            self.changes = changes;
            self.map = self.shared.map.lock().clone();
        }
    }

    /// Checks a request for `bytes` bytes, and returns its first sector and its number of sectors.
    #[inline]
    fn check(&self, op: Op, bytes: u64) -> Result<(Sector, u64), IoError> {
        let (sector, writes) = match op {
            Op::Read { sector } => (sector, false),
            Op::Write { sector, .. } | Op::Discard { sector, .. } => (sector, true),
            Op::Flush => return Ok((Sector(0), 0)),
        };
        if writes && self.shared.access == Access::ReadOnly {
            return Err(IoError::ReadOnly);
        }
        let unit = self.shared.sector_size;
        let count = bytes / Sector::SIZE as u64;
        let end = sector.0.checked_add(count).ok_or(IoError::OutOfRange)?;
        if end > self.map.sectors().0 {
            return Err(IoError::OutOfRange);
        }
        if !bytes.is_multiple_of(unit.bytes() as u64) || !sector.0.is_multiple_of(unit.sectors().0)
        {
            return Err(IoError::Misaligned);
        }
        Ok((sector, count))
    }

    /// Returns the operation on the device below for the piece.
    #[inline]
    fn on(op: Op, piece: &Piece) -> Op {
        match op {
            Op::Read { .. } => Op::Read {
                sector: piece.start,
            },
            Op::Write { fua, .. } => Op::Write {
                sector: piece.start,
                fua,
            },
            Op::Discard { secure, .. } => Op::Discard {
                sector: piece.start,
                count: piece.len,
                secure,
            },
            Op::Flush => Op::Flush,
        }
    }

    /// Returns the next part of a request, and the number of sectors of the request that it stands for.
    fn next(&mut self, index: usize) -> Option<(Piece, u64)> {
        let split = self.splits.get(index);
        while split.is_at_work() {
            let left = split.count - split.position;
            match split.op {
                Op::Read { sector } | Op::Write { sector, .. } => {
                    let piece = self.map.piece(sector.0 + split.position, left)?;
                    return Some((piece, piece.len.0));
                }
                Op::Discard { sector, .. } => {
                    let at = sector.0 + split.position;
                    match self.map.share(at, left, split.leg) {
                        Some((piece, _)) if piece.len.0 == 0 => split.leg += 1,
                        // The last leg's share ends the run's.
                        Some((piece, _)) => return Some((piece, 0)),
                        None => {
                            let (_, run) = self.map.share(at, left, 0)?;
                            split.position += run;
                            split.leg = 0;
                        }
                    }
                }
                Op::Flush => {
                    let device = split.position as usize;
                    if self.below[device].flushes {
                        return Some((Piece::none_of(device), 1));
                    }
                    split.position += 1;
                }
            }
        }
        None
    }

    /// Passes on the parts of a request that the queues below take now. Returns whether there was one.
    fn advance(&mut self, index: usize) -> bool {
        let mut any = false;
        while let Some((piece, sectors)) = self.next(index) {
            let op = Self::on(self.splits.get(index).op, &piece);
            let data = match op {
                Op::Read { .. } | Op::Write { .. } => piece.len,
                _ => Sector(0),
            };
            let (tag, segments) = self.splits.part(index, data);
            let done = match self.below[piece.device].submit(tag, Io { op, segments }) {
                Submitted::Busy => break,
                Submitted::Pending => None,
                Submitted::Done(outcome) => Some(outcome),
            };
            self.splits.passed_on(index, data, done);
            let split = self.splits.get(index);
            split.position += sectors;
            if sectors == 0 {
                split.leg += 1;
            }
            any = true;
        }
        any
    }

    /// Begins to serve a request in parts.
    fn split(&mut self, tag: Tag, op: Op, count: u64, segments: &[IoSegment]) -> Submitted {
        let Some(index) = self.splits.begin(tag, op, count, segments) else {
            self.was_busy = true;
            return Submitted::Busy;
        };
        self.advance(index);
        match self.splits.end(index) {
            Some((_, outcome)) => Submitted::Done(outcome),
            None => Submitted::Pending,
        }
    }

    fn pass_on(&mut self, tag: Tag, piece: &Piece, io: Io<'_>) -> Submitted {
        let op = Self::on(io.op, piece);
        let submitted = self.below[piece.device].submit(whole(tag), Io { op, ..io });
        self.was_busy |= submitted == Submitted::Busy;
        submitted
    }

    /// Has every device that can make its data durable do so. If none can, the first one refuses the request.
    fn flush(&mut self, tag: Tag, io: Io<'_>) -> Submitted {
        let devices = self.below.len();
        if devices > 1 && self.below.iter().any(|below| below.flushes) {
            return self.split(tag, io.op, devices as u64, &[]);
        }
        self.pass_on(tag, &Piece::none_of(0), io)
    }

    /// Returns the only piece of a request that passes all checks, if it lies in one.
    fn in_one(&self, op: Op, len: usize) -> Option<Piece> {
        let (sector, count) = self.check(op, len as u64).ok()?;
        let piece = self.map.piece(sector.0, count)?;
        (piece.len.0 == count).then_some(piece)
    }
}

impl IoQueue for MappedQueue {
    fn caps(&self) -> Caps {
        self.caps
    }

    fn dma_memory(&self) -> Option<Arc<dyn DmaMemory>> {
        self.below
            .first()
            .and_then(|below| below.queue.dma_memory())
    }

    #[inline]
    fn submit(&mut self, tag: Tag, io: Io<'_>) -> Submitted {
        self.refresh();
        let bytes = match io.op {
            Op::Discard { count, .. } => match count.bytes() {
                Some(bytes) => bytes,
                None => return Submitted::Done(Err(IoError::OutOfRange)),
            },
            _ => io.segments.iter().map(|segment| segment.len() as u64).sum(),
        };
        let (sector, count) = match self.check(io.op, bytes) {
            Ok(range) => range,
            Err(error) => return Submitted::Done(Err(error)),
        };
        if io.op == Op::Flush {
            return self.flush(tag, io);
        }
        match self.map.piece(sector.0, count) {
            Some(piece) if piece.len.0 == count => self.pass_on(tag, &piece, io),
            // Nothing is asked for.
            None => Submitted::Done(Ok(())),
            Some(_) if self.caps.access == DataAccess::Staged && !io.segments.is_empty() => {
                // It was not asked how much lies in a row: its memory is one device's.
                Submitted::Done(Err(IoError::NotSupported))
            }
            Some(_) => self.split(tag, io.op, count, io.segments),
        }
    }

    fn flush_submissions(&mut self) {
        self.below.iter_mut().for_each(Below::flush_submissions);
    }

    fn poll_complete(
        &mut self,
        context: &mut Context<'_>,
        sink: &mut dyn FnMut(Tag, Result<(), IoError>),
    ) -> Poll<()> {
        self.refresh();
        let mut told = Poll::Pending;
        loop {
            let mut ready = false;
            for below in &mut self.below {
                let (pending, splits) = (&mut below.pending, &mut self.splits);
                let polled = below.queue.poll_complete(context, &mut |tag, outcome| {
                    *pending = pending.saturating_sub(1);
                    match passed_on(tag) {
                        Some(tag) => sink(tag, outcome),
                        None => splits.completed(tag, outcome),
                    }
                    if tag.0 & 1 == 0 {
                        told = Poll::Ready(());
                    }
                });
                ready |= polled.is_ready();
            }
            let mut advanced = false;
            for index in 0..self.splits.len() {
                advanced |= self.advance(index);
                if let Some((tag, outcome)) = self.splits.end(index) {
                    sink(tag, outcome);
                    told = Poll::Ready(());
                    ready = true;
                }
            }
            if ready && core::mem::take(&mut self.was_busy) {
                told = Poll::Ready(());
            }
            // A device that was ready has not kept the waker: it is asked again.
            if !advanced && (told.is_ready() || !ready) {
                return told;
            }
            // What was passed on just now wakes us too.
            self.flush_submissions();
        }
    }

    fn cancel(&mut self, tag: Tag) {
        for below in &mut self.below {
            below.queue.cancel(whole(tag));
        }
        for part in self.splits.cancel(|other| other == tag) {
            for below in &mut self.below {
                below.queue.cancel(part);
            }
        }
    }

    fn cancel_all(&mut self) {
        self.splits.cancel(|_| true).for_each(drop);
        for below in &mut self.below {
            below.queue.cancel_all();
        }
    }

    fn poll_close(&mut self, context: &mut Context<'_>) -> Poll<()> {
        for below in &mut self.below {
            below.closed = below.closed || below.queue.poll_close(context).is_ready();
        }
        if !self.below.iter().all(|below| below.closed) {
            return Poll::Pending;
        }
        self.splits.clear();
        Poll::Ready(())
    }

    #[inline]
    fn stage(&mut self, tag: Tag, op: Op, len: usize) -> Option<Staging> {
        self.refresh();
        let piece = self.in_one(op, len);
        if self.caps.access != DataAccess::Staged {
            let piece = piece?;
            let below = &mut self.below[piece.device];
            let staging = below.queue.stage(whole(tag), Self::on(op, &piece), len);
            below.in_place |= staging.is_some();
            return staging;
        }
        // What is going to be refused gets memory too, of any device.
        let (device, op) = match piece {
            Some(piece) => (piece.device, Self::on(op, &piece)),
            None => (0, op),
        };
        let staging = self.below[device].queue.stage(whole(tag), op, len)?;
        if self.below.len() > 1 {
            self.staged.push((tag, device));
        }
        Some(staging)
    }

    fn contiguous(&mut self, op: Op, len: usize) -> usize {
        self.refresh();
        let Ok((sector, count)) = self.check(op, len as u64) else {
            return len;
        };
        let Some(piece) = self.map.piece(sector.0, count) else {
            return len;
        };
        let queue = &mut self.below[piece.device].queue;
        queue.contiguous(Self::on(op, &piece), piece.len.0 as usize * Sector::SIZE)
    }

    fn end_in_place(&mut self) {
        for below in &mut self.below {
            if core::mem::take(&mut below.in_place) {
                below.queue.end_in_place();
            }
        }
    }

    fn unstage(&mut self, tag: Tag) {
        let device = match self.staged.iter().position(|(other, _)| *other == tag) {
            Some(at) => self.staged.swap_remove(at).1,
            None if self.below.len() > 1 => return,
            None => 0,
        };
        self.below[device].queue.unstage(whole(tag));
    }
}
