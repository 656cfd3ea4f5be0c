//! The device's queue, and what it has of the requests.

use super::inflight::InflightTable;
use alloc::boxed::Box;
use alloc::sync::Arc;
use bulkhead_images::{Caps, DataAccess, Io, IoError, IoQueue, Op, Staging, Submitted, Tag};
use bulkhead_xen::DmaMemory;
use core::task::{Context, Poll};

/// The device's queue.
pub(super) struct Store {
    queue: Box<dyn IoQueue>,
    caps: Caps,
    /// How many requests it has.
    pending: usize,
    /// What it was too busy for may be submitted again.
    ready: bool,
    /// It was handed something since it was told that a batch ends.
    unflushed: bool,
    /// How many requests it has completed later than it was handed them.
    completions: u64,
    completes_later: bool,
}

impl Store {
    pub fn new(queue: Box<dyn IoQueue>) -> Self {
        Store {
            caps: queue.caps(),
            queue,
            pending: 0,
            ready: false,
            unflushed: false,
            completions: 0,
            completes_later: false,
        }
    }

    /// What it can take.
    pub fn caps(&self) -> &Caps {
        &self.caps
    }

    /// Whether it may have memory in which a copy by the hypervisor is all that a request needs.
    pub fn has_memory(&self) -> bool {
        self.caps.access == DataAccess::Direct
    }

    /// How own memory is named to it, if it needs that.
    pub fn dma_memory(&self) -> Option<Arc<dyn DmaMemory>> {
        match self.caps.access {
            DataAccess::Dma => self.queue.dma_memory(),
            _ => None,
        }
    }

    /// Whether it has completed a read or a write later than it was handed it.
    pub fn completes_later(&self) -> bool {
        self.completes_later
    }

    /// How many requests it has completed later than it was handed them.
    pub fn completions(&self) -> u64 {
        self.completions
    }

    /// Hands it a request.
    #[inline]
    pub fn submit(&mut self, tag: Tag, io: Io<'_>) -> Submitted {
        if self.pending >= self.caps.depth {
            return Submitted::Busy;
        }
        self.unflushed = true;
        let submitted = self.queue.submit(tag, io);
        if submitted == Submitted::Pending {
            self.pending += 1;
            // A discard may take its time on any device: it says nothing of how data is served.
            self.completes_later |= matches!(io.op, Op::Read { .. } | Op::Write { .. });
        }
        submitted
    }

    /// Tells it that no more requests come for the moment.
    #[inline]
    pub fn flush(&mut self) {
        if core::mem::take(&mut self.unflushed) {
            self.queue.flush_submissions();
        }
    }

    /// Learns what it has completed; it wakes the task when it completes more.
    #[inline]
    pub fn collect(&mut self, context: &mut Context<'_>, inflight: &mut InflightTable) {
        let (pending, completions) = (&mut self.pending, &mut self.completions);
        let polled = self.queue.poll_complete(context, &mut |tag, outcome| {
            *pending = pending.saturating_sub(1);
            *completions += 1;
            inflight.done(tag, outcome);
        });
        self.ready |= polled.is_ready();
    }

    /// Whether what it was too busy for may be submitted again.
    #[inline]
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// Takes note of that; true once for each time.
    #[inline]
    pub fn take_ready(&mut self) -> bool {
        core::mem::take(&mut self.ready)
    }

    /// Asks for memory of its own for a request.
    #[inline]
    pub fn stage(&mut self, tag: Tag, op: Op, len: usize) -> Option<Staging> {
        self.queue.stage(tag, op, len)
    }

    /// Returns how much of a read or write can have such memory together.
    pub fn contiguous(&mut self, op: Op, len: usize) -> usize {
        self.queue.contiguous(op, len)
    }

    /// Nobody copies from or to the memory any more that holds its own bytes.
    pub fn end_in_place(&mut self) {
        self.queue.end_in_place();
    }

    /// The memory of a request is not used any more: others may have it.
    pub fn unstage(&mut self, tag: Tag) {
        self.queue.unstage(tag);
        self.ready = true;
    }

    /// Has it give up what it has, as far as it can.
    pub fn cancel_all(&mut self) {
        self.queue.cancel_all();
    }

    /// Has it let go of everything.
    pub fn poll_close(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.queue.poll_close(context)
    }

    /// Completes a request that it does not have, because it cannot be handed over.
    pub fn refuse(tag: Tag, inflight: &mut InflightTable) {
        inflight.done(tag, Err(IoError::Medium));
    }
}
