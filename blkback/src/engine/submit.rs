//! Hands the requests in flight to the device, step by step.

mod bounced;
mod mapped;

use super::data_path::{Executed, PageAccess, Queueing, Sweep};
use super::dispatch::Dispatcher;
use super::pieces::{Pieces, Progress, RequestPages};
use super::store::Store;
use alloc::vec::Vec;
use bulkhead_grant::memory::room_for;
use bulkhead_grant::{GrantAccess, OutOfMemory};
use bulkhead_images::{Io, IoError, IoSegment, Op, Staging, Submitted, Tag};
use bulkhead_xen::{GrantStatus, Hypervisor};
use core::fmt;
use core::task::{Context, Poll};
use core::time::Duration;

/// The device's queue, and what is handed to it.
pub(super) struct Submitter<H: Hypervisor> {
    store: Store,
    /// The segments of one request, as the device gets them.
    segments: Vec<IoSegment>,
    /// The requests served piece by piece; `None` if the device takes every request as it is.
    pieces: Option<Pieces<H>>,
}

impl<H: Hypervisor> Submitter<H> {
    /// Creates one for requests of up to `segments` segments.
    pub fn new(
        store: Store,
        pieces: Option<Pieces<H>>,
        segments: usize,
    ) -> Result<Self, OutOfMemory> {
        Ok(Submitter {
            store,
            pieces,
            segments: room_for(segments)?,
        })
    }

    /// Returns whether the device has ever completed a read or a write asynchronously: after `submit` had
    /// returned.
    pub fn completes_later(&self) -> bool {
        self.store.completes_later()
    }

    /// Returns whether the device has kept a request since the last call.
    pub fn was_given_requests(&mut self) -> bool {
        self.store.was_given_requests()
    }

    /// Returns the number of requests that the device has completed asynchronously.
    pub fn completions(&self) -> u64 {
        self.store.completions()
    }

    /// Returns the longest time that the device may take without completing a request, if it sets a limit.
    pub fn timeout(&self) -> Option<Duration> {
        self.store.caps().timeout
    }

    /// Asks the device to give up the requests in flight, as far as it can.
    pub fn cancel_pending(&mut self) {
        self.store.cancel_all();
    }

    /// Asks the device to let go of all requests and pages. Returns ready when it has.
    pub fn poll_close(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.store.poll_close(context)
    }

    /// Returns the number of hypercalls that copied between the frontend's pages and the device's staging memory, and
    /// the number of bytes.
    pub fn staged(&self) -> (u64, u64) {
        self.pieces.as_ref().map_or((0, 0), Pieces::calls)
    }

    /// Tells the device that no more requests come for the moment.
    #[inline]
    pub fn flush(&mut self) {
        self.store.flush();
    }

    /// Takes the device's completions. The device wakes the task when it completes more, unless it was ready.
    #[inline]
    pub fn collect(
        &mut self,
        context: &mut Context<'_>,
        dispatcher: &mut Dispatcher<H>,
    ) -> Poll<()> {
        self.store.collect(context, &mut dispatcher.inflight)
    }

    /// Returns whether a request waits that the device may take now.
    #[inline]
    pub fn can_go_on(&self, dispatcher: &Dispatcher<H>) -> bool {
        self.store.is_ready() && !dispatcher.inflight.none_busy()
    }

    /// Goes on with the requests that wait for copies or for the device. Returns true if some may be done now, so that
    /// the caller has to look again.
    #[inline]
    pub fn go_on(
        &mut self,
        dispatcher: &mut Dispatcher<H>,
        page_access: &mut PageAccess<H>,
    ) -> bool {
        if self.pieces.is_some() {
            self.copy_pieces(dispatcher, page_access);
        }
        if self.store.take_ready() && !dispatcher.inflight.none_busy() {
            self.retry(dispatcher, page_access);
            return true;
        }
        self.store.flush();
        !dispatcher.inflight.none_done()
    }

    /// Hands over the requests that the device was too busy for, as far as it takes them now.
    #[cold]
    fn retry(&mut self, dispatcher: &mut Dispatcher<H>, page_access: &mut PageAccess<H>) {
        while let Some(tag) = dispatcher.inflight.take_busy() {
            if !self.attempt(tag, dispatcher, page_access) {
                return dispatcher.inflight.wait_for_device_first(tag);
            }
        }
    }

    #[cold]
    fn copy_pieces(&mut self, dispatcher: &mut Dispatcher<H>, page_access: &mut PageAccess<H>) {
        if let Some(pieces) = &mut self.pieces {
            pieces.run_copies();
        }
        while let Some(pieces) = &mut self.pieces
            && let Some((tag, outcome)) = pieces.next_copied(&mut self.store)
        {
            match outcome {
                Ok(()) if pieces.is_done(tag) => self.end_pieces(tag, dispatcher),
                // The request holds memory that the waiting requests need: it does not wait behind them.
                Ok(()) if !self.attempt(tag, dispatcher, page_access) => {
                    dispatcher.inflight.wait_for_device_first(tag);
                }
                Ok(()) => {}
                Err(status) => refuse(tag, format_args!("copied: {status}"), dispatcher),
            }
        }
    }

    /// Ends a request of which all pieces are done.
    fn end_pieces(&mut self, tag: Tag, dispatcher: &mut Dispatcher<H>) {
        if let Some(pieces) = &mut self.pieces {
            pieces.end(tag, &mut self.store);
        }
        dispatcher.inflight.get(tag).op = None;
        dispatcher.inflight.done(tag, Ok(()));
    }

    /// Notes the pages of the requests just taken, to be mapped or copied.
    #[allow(unsafe_code, reason = "hands the device's memory to the hypervisor")]
    #[inline]
    pub fn queue_pages(
        &mut self,
        sweep: &mut Sweep<Queueing>,
        dispatcher: &mut Dispatcher<H>,
        page_access: &mut PageAccess<H>,
    ) {
        // Pages that stay mapped are mapped for a store with memory of its own, too; others the hypervisor copies.
        let stages = self.pieces.as_ref().is_some_and(Pieces::stages);
        if stages && !page_access.needs_no_calls() {
            return;
        }
        let copies = sweep.copies() && self.store.has_memory();
        for index in 0..dispatcher.how_many_begun() {
            let tag = dispatcher.begun(index);
            let entry = dispatcher.inflight.get(tag);
            if entry.pages.len() == 0 {
                continue;
            }
            let pool = &mut dispatcher.pool;
            if copies && let Some((op, direction)) = entry.only_transfer() {
                sweep.memory_asked();
                if let Some(Staging { memory, .. }) =
                    self.store.stage(tag, op, entry.bytes as usize)
                    // SAFETY: the device promises `entry.bytes` bytes of its own until it is told that the use
                    // in place has ended, which is after `execute` has returned.
                    && unsafe {
                        page_access.queue_copies(sweep, pool, &entry.pages, direction, memory)
                    }
                {
                    continue;
                }
            }
            // What the guest wrote is only read; what it wants to read is written.
            let access = match entry.op {
                Some(Op::Read { .. }) => GrantAccess::ReadWrite,
                _ => GrantAccess::ReadOnly,
            };
            page_access.queue_maps(sweep, pool, &entry.pages, access);
        }
    }

    /// Tells the device that the hypervisor no longer copies from or to its memory.
    pub fn end_in_place(&mut self, _: &Sweep<Executed>) {
        self.store.end_in_place();
    }

    /// Hands the requests whose pages were just mapped to the device. Requests that were copied are done.
    #[inline]
    pub fn start(
        &mut self,
        sweep: &Sweep<Executed>,
        dispatcher: &mut Dispatcher<H>,
        page_access: &mut PageAccess<H>,
    ) {
        for index in 0..dispatcher.how_many_begun() {
            let tag = dispatcher.begun(index);
            let entry = dispatcher.inflight.get(tag);
            if let Some(copied) = page_access.copied(sweep, &dispatcher.pool, &entry.pages) {
                entry.op = None;
                let outcome = copied.map_err(|status| {
                    dispatcher
                        .error_log
                        .log(format_args!("a page cannot be copied: {status}"));
                    IoError::Medium
                });
                dispatcher.inflight.done(tag, outcome);
            } else {
                self.step(tag, dispatcher, page_access);
            }
        }
        dispatcher.clear_begun();
    }

    /// Goes on with a request that has come back from the device, or answers it if it has no step left.
    #[inline]
    pub fn finish(
        &mut self,
        tag: Tag,
        outcome: Result<(), IoError>,
        dispatcher: &mut Dispatcher<H>,
        page_access: &mut PageAccess<H>,
    ) {
        if outcome.is_ok() && dispatcher.inflight.get(tag).has_steps() {
            return self.step(tag, dispatcher, page_access);
        }
        if outcome.is_err() {
            if page_access.bounce.serves(tag) {
                self.end_bounce(dispatcher, page_access);
            }
            if let Some(pieces) = &mut self.pieces {
                pieces.end(tag, &mut self.store);
            }
        }
        dispatcher.end(tag, outcome, |hold| page_access.release(hold));
    }

    /// Begins the next step of a request, whose pages are mapped if they are to be.
    #[inline]
    fn step(&mut self, tag: Tag, dispatcher: &mut Dispatcher<H>, page_access: &mut PageAccess<H>) {
        if page_access.bounce.serves(tag) {
            return self.next_bounced(tag, dispatcher, page_access);
        }
        if let Some(pieces) = &mut self.pieces
            && pieces.serves(tag)
        {
            let pages = RequestPages {
                pool: &dispatcher.pool,
                of_request: &dispatcher.inflight.get(tag).pages,
                access: page_access,
            };
            match pieces.done(tag, &mut self.store, pages) {
                Progress::Copying => return,
                Progress::Failed(status) => {
                    return refuse(tag, format_args!("copied: {status}"), dispatcher);
                }
                _ if pieces.is_done(tag) => return self.end_pieces(tag, dispatcher),
                _ => {}
            }
        }
        self.hand_over(tag, dispatcher, page_access);
    }

    /// Hands a request, or its next piece, to the device, behind the requests that wait for it.
    #[inline(always)]
    fn hand_over(
        &mut self,
        tag: Tag,
        dispatcher: &mut Dispatcher<H>,
        page_access: &mut PageAccess<H>,
    ) {
        if !dispatcher.inflight.none_busy() || !self.attempt(tag, dispatcher, page_access) {
            dispatcher.inflight.wait_for_device(tag);
        }
    }

    /// Hands a request's next step, or its next piece, to the device; and further steps, as long as the device
    /// completes each at once. Returns false if the device is too busy.
    #[inline]
    fn attempt(
        &mut self,
        tag: Tag,
        dispatcher: &mut Dispatcher<H>,
        page_access: &mut PageAccess<H>,
    ) -> bool {
        if page_access.bounce.serves(tag) {
            return self.submit_bounced(tag, dispatcher, page_access);
        }
        let mut outcome = Ok(());
        while outcome.is_ok()
            && let Some(op) = dispatcher.inflight.get(tag).next_step()
        {
            let moves = matches!(op, Op::Read { .. } | Op::Write { .. });
            let staged = moves && self.pieces.as_ref().is_some_and(Pieces::stages);
            if op != Op::Flush && !staged {
                match self.gather(tag, dispatcher, page_access) {
                    Ok(()) => {}
                    Err(GrantStatus::NO_SPACE) => {
                        return self.bounce(tag, op, dispatcher, page_access);
                    }
                    Err(status) => {
                        dispatcher
                            .error_log
                            .log(format_args!("a page cannot be mapped: {status}"));
                        outcome = Err(IoError::Medium);
                        break;
                    }
                }
            }
            if moves
                && let Some(pieces) = &self.pieces
                && (staged || !pieces.fits(&self.segments, dispatcher.inflight.get(tag).bytes))
            {
                return self.submit_piece(tag, op, dispatcher, page_access);
            }
            let segments = match op {
                Op::Flush => &[],
                _ => &self.segments[..],
            };
            match self.store.submit(tag, Io { op, segments }) {
                Submitted::Done(done) => outcome = done,
                Submitted::Pending => return true,
                Submitted::Busy => {
                    dispatcher.inflight.get(tag).put_back(op);
                    return false;
                }
            }
        }
        dispatcher.end(tag, outcome, |hold| page_access.release(hold));
        true
    }

    /// Puts a request's pages into `segments`, in the form in which the device gets them.
    #[inline]
    fn gather(
        &mut self,
        tag: Tag,
        dispatcher: &mut Dispatcher<H>,
        page_access: &PageAccess<H>,
    ) -> Result<(), GrantStatus> {
        self.segments.clear();
        let pages = &dispatcher.inflight.get(tag).pages;
        if page_access.is_for_device() {
            for page in dispatcher.pool.iter(pages) {
                self.segments.push(page_access.segment_for_device(page)?);
            }
            return Ok(());
        }
        for page in dispatcher.pool.iter(pages) {
            self.segments.push(page_access.segment(page)?);
        }
        Ok(())
    }

    /// Hands the next piece of a request to the device. Returns false if the device is too busy.
    #[cold]
    fn submit_piece(
        &mut self,
        tag: Tag,
        op: Op,
        dispatcher: &mut Dispatcher<H>,
        page_access: &mut PageAccess<H>,
    ) -> bool {
        let Some(pieces) = &mut self.pieces else {
            return false;
        };
        let entry = dispatcher.inflight.get(tag);
        // The operation stays to be done until all its pieces are.
        entry.op = Some(op);
        if !pieces.serves(tag) {
            pieces.begin(tag, op, entry.bytes as usize);
        }
        let pages = core::mem::replace(&mut entry.pages, super::pages::Pages::EMPTY);
        let store = (&mut self.store, &mut dispatcher.inflight);
        let request = RequestPages {
            pool: &dispatcher.pool,
            of_request: &pages,
            access: page_access,
        };
        let progress = pieces.submit(tag, &self.segments, store, request);
        dispatcher.inflight.get(tag).pages = pages;
        match progress {
            Progress::Submitted | Progress::Copying | Progress::Copied => true,
            Progress::Busy => false,
            Progress::Impossible => {
                pieces.end(tag, &mut self.store);
                self.bounce(tag, op, dispatcher, page_access)
            }
            Progress::Failed(status) => {
                refuse(tag, format_args!("copied: {status}"), dispatcher);
                true
            }
        }
    }
}

/// Fails a request whose data cannot be copied.
#[cold]
fn refuse<H: Hypervisor>(tag: Tag, why: fmt::Arguments<'_>, dispatcher: &mut Dispatcher<H>) {
    dispatcher
        .error_log
        .log(format_args!("a page cannot be {why}"));
    Store::refuse(tag, &mut dispatcher.inflight);
}
