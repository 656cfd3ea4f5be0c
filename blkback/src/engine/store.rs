//! The device's queue, and the requests that were handed to it.

use super::inflight::InflightTable;
use alloc::boxed::Box;
use alloc::sync::Arc;
use bulkhead_images::{Caps, DataAccess, Io, IoError, IoQueue, Op, Staging, Submitted, Tag};
use bulkhead_xen::DmaMemory;
use core::task::{Context, Poll};

/// The device's queue, and the counts of its requests.
pub(super) struct Store {
    queue: Box<dyn IoQueue>,
    caps: Caps,
    /// The number of requests that the device has.
    pending: usize,
    /// True if a request that the device was too busy for may be submitted again.
    ready: bool,
    /// True if a request was submitted since the last batch ended.
    unflushed: bool,
    /// The number of requests that the device has completed asynchronously.
    completions: u64,
    completes_later: bool,
    /// True if the device has kept a request since this was last asked for.
    given: bool,
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
            given: false,
        }
    }

    /// Returns the device's limits.
    pub fn caps(&self) -> &Caps {
        &self.caps
    }

    /// Returns whether the device may have memory in which the hypervisor's copy is the whole operation.
    pub fn has_memory(&self) -> bool {
        self.caps.access == DataAccess::Direct
    }

    /// Returns the bus addresses of this domain's memory, if the device needs them.
    pub fn dma_memory(&self) -> Option<Arc<dyn DmaMemory>> {
        match self.caps.access {
            DataAccess::Dma => self.queue.dma_memory(),
            _ => None,
        }
    }

    /// Returns whether the device has ever completed a read or a write asynchronously.
    pub fn completes_later(&self) -> bool {
        self.completes_later
    }

    /// Returns whether the device has kept a request since the last call.
    pub fn was_given_requests(&mut self) -> bool {
        core::mem::take(&mut self.given)
    }

    /// Returns the number of requests that the device has completed asynchronously.
    pub fn completions(&self) -> u64 {
        self.completions
    }

    /// Submits a request to the device.
    #[inline(always)]
    pub fn submit(&mut self, tag: Tag, io: Io<'_>) -> Submitted {
        if self.pending >= self.caps.depth {
            return Submitted::Busy;
        }
        self.unflushed = true;
        let submitted = self.queue.submit(tag, io);
        if submitted == Submitted::Pending {
            self.pending += 1;
            self.given = true;
            // A discard may take long on any device: that says nothing about reads and writes.
            self.completes_later |= matches!(io.op, Op::Read { .. } | Op::Write { .. });
        }
        submitted
    }

    /// Ends a batch: no more requests come for the moment.
    #[inline]
    pub fn flush(&mut self) {
        if core::mem::take(&mut self.unflushed) {
            self.queue.flush_submissions();
        }
    }

    /// Takes the device's completions. The device wakes the task when there are more, unless it was ready.
    #[inline]
    pub fn collect(&mut self, context: &mut Context<'_>, inflight: &mut InflightTable) -> Poll<()> {
        let (pending, completions) = (&mut self.pending, &mut self.completions);
        let polled = self.queue.poll_complete(context, &mut |tag, outcome| {
            *pending = pending.saturating_sub(1);
            *completions += 1;
            inflight.done(tag, outcome);
        });
        self.ready |= polled.is_ready();
        polled
    }

    /// Returns whether a request that the device was too busy for may be submitted again.
    #[inline]
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// Returns the same once, and forgets it.
    #[inline]
    pub fn take_ready(&mut self) -> bool {
        core::mem::take(&mut self.ready)
    }

    /// Asks the device for staging memory for a request.
    #[inline]
    pub fn stage(&mut self, tag: Tag, op: Op, len: usize) -> Option<Staging> {
        self.queue.stage(tag, op, len)
    }

    /// Returns the number of bytes of a read or write that can have staging memory together.
    pub fn contiguous(&mut self, op: Op, len: usize) -> usize {
        self.queue.contiguous(op, len)
    }

    /// Ends the use of the staging memory in which a copy is the whole operation.
    pub fn end_in_place(&mut self) {
        self.queue.end_in_place();
    }

    /// Frees the staging memory of a request.
    pub fn unstage(&mut self, tag: Tag) {
        self.queue.unstage(tag);
        self.ready = true;
    }

    /// Asks the device to give up the requests that it has, as far as it can.
    pub fn cancel_all(&mut self) {
        self.queue.cancel_all();
    }

    /// Closes the device's queue; ready when the device no longer touches any memory.
    pub fn poll_close(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.queue.poll_close(context)
    }

    /// Fails a request that cannot be submitted.
    pub fn refuse(tag: Tag, inflight: &mut InflightTable) {
        inflight.done(tag, Err(IoError::Medium));
    }
}
