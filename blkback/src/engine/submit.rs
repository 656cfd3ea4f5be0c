//! Hands the requests in flight to the device, step by step.

use super::dispatch::Dispatcher;
use super::reach::{Executed, Queueing, Reach, Sweep};
use alloc::boxed::Box;
use alloc::vec::Vec;
use bulkhead_grant::memory::room_for;
use bulkhead_grant::{GrantAccess, OutOfMemory};
use bulkhead_images::{Io, IoError, IoQueue, IoSegment, Op, Staging, Submitted, Tag};
use bulkhead_xen::{GrantStatus, Hypervisor};
use core::task::Context;

/// The device's queue, and what it is handed.
pub(super) struct Submitter {
    device: Box<dyn IoQueue>,
    /// The segments of one request, as the device gets them.
    segments: Vec<IoSegment>,
    completes_later: bool,
}

impl Submitter {
    /// For requests of up to `segments` segments.
    pub fn new(device: Box<dyn IoQueue>, segments: usize) -> Result<Self, OutOfMemory> {
        Ok(Submitter {
            device,
            segments: room_for(segments)?,
            completes_later: false,
        })
    }

    /// Whether the device has completed a read or a write later than it was handed it.
    pub fn completes_later(&self) -> bool {
        self.completes_later
    }

    /// Has the device give up what is in flight, as far as it can.
    pub fn cancel_pending(&mut self) {
        self.device.cancel_all();
    }

    /// Learns what the device has completed; it wakes the task when it completes more.
    #[inline]
    pub fn collect<H: Hypervisor>(
        &mut self,
        context: &mut Context<'_>,
        dispatcher: &mut Dispatcher<H>,
    ) {
        let flights = &mut dispatcher.flights;
        // Whether anything was completed is seen in the list.
        let _ = self
            .device
            .poll_complete(context, &mut |tag, outcome| flights.done(tag, outcome));
    }

    /// Notes the pages of the requests just taken to be mapped or copied.
    #[allow(unsafe_code, reason = "hands the device's memory to the hypervisor")]
    #[inline]
    pub fn queue_pages<H: Hypervisor>(
        &mut self,
        sweep: &mut Sweep<Queueing>,
        dispatcher: &mut Dispatcher<H>,
        reach: &mut Reach<H>,
    ) {
        for index in 0..dispatcher.how_many_begun() {
            let tag = dispatcher.begun(index);
            let flight = dispatcher.flights.get(tag);
            if flight.pages.len() == 0 {
                continue;
            }
            let pool = &mut dispatcher.pool;
            if sweep.copies()
                && let Some((op, direction)) = flight.only_transfer()
            {
                sweep.memory_asked();
                if let Some(Staging { memory, .. }) =
                    self.device.stage(tag, op, flight.bytes as usize)
                    // SAFETY: the device promises so many bytes of its own until it is told that the
                    // use in place has ended, which is after `execute` has returned.
                    && unsafe {
                        reach.queue_copies(sweep, pool, &flight.pages, direction, memory)
                    }
                {
                    continue;
                }
            }
            // What the guest wrote is only read; what it wants to read is written.
            let access = match flight.op {
                Some(Op::Read { .. }) => GrantAccess::ReadWrite,
                _ => GrantAccess::ReadOnly,
            };
            reach.queue_maps(sweep, pool, &flight.pages, access);
        }
    }

    /// Nobody copies from or to the device's memory any more.
    pub fn end_in_place(&mut self, _: &Sweep<Executed>) {
        self.device.end_in_place();
    }

    /// Hands the requests whose pages were just mapped to the device; those that were copied are done.
    #[inline]
    pub fn start<H: Hypervisor>(
        &mut self,
        sweep: &Sweep<Executed>,
        dispatcher: &mut Dispatcher<H>,
        reach: &mut Reach<H>,
    ) {
        for index in 0..dispatcher.how_many_begun() {
            let tag = dispatcher.begun(index);
            let flight = dispatcher.flights.get(tag);
            if let Some(copied) = reach.copied(sweep, &dispatcher.pool, &flight.pages) {
                flight.op = None;
                let outcome = copied.map_err(|status| {
                    dispatcher
                        .complaints
                        .complain(format_args!("a page cannot be copied: {status}"));
                    IoError::Medium
                });
                dispatcher.flights.done(tag, outcome);
            } else {
                self.step(tag, dispatcher, reach);
            }
        }
        dispatcher.clear_begun();
    }

    /// A request has come back from the device: it has another step to go, or is answered.
    #[inline]
    pub fn finish<H: Hypervisor>(
        &mut self,
        tag: Tag,
        outcome: Result<(), IoError>,
        dispatcher: &mut Dispatcher<H>,
        reach: &mut Reach<H>,
    ) {
        if outcome.is_ok() && dispatcher.flights.get(tag).has_steps() {
            return self.step(tag, dispatcher, reach);
        }
        if outcome.is_err() && reach.bounce.serves(tag) {
            self.end_bounce(dispatcher, reach);
        }
        dispatcher.end(tag, outcome, |hold| reach.release(hold));
    }

    /// Does the next step of a request, whose pages are mapped, and those after it as long as the device
    /// has done with one at once.
    fn step<H: Hypervisor>(
        &mut self,
        tag: Tag,
        dispatcher: &mut Dispatcher<H>,
        reach: &mut Reach<H>,
    ) {
        if reach.bounce.serves(tag) {
            return self.next_piece(tag, dispatcher, reach);
        }
        let mut outcome = Ok(());
        while outcome.is_ok()
            && let Some(op) = dispatcher.flights.get(tag).next_step()
        {
            if op != Op::Flush {
                match self.gather(tag, dispatcher, reach) {
                    Ok(()) => {}
                    Err(GrantStatus::NO_SPACE) => return self.bounce(tag, op, dispatcher, reach),
                    Err(status) => {
                        dispatcher
                            .complaints
                            .complain(format_args!("a page cannot be mapped: {status}"));
                        outcome = Err(IoError::Medium);
                        break;
                    }
                }
            }
            let segments = match op {
                Op::Flush => &[],
                _ => &self.segments[..],
            };
            match self.device.submit(tag, Io { op, segments }) {
                Submitted::Done(done) => outcome = done,
                Submitted::Pending => {
                    // A discard may take its time on any device: it says nothing of how data is served.
                    self.completes_later |= matches!(op, Op::Read { .. } | Op::Write { .. });
                    return;
                }
            }
        }
        dispatcher.end(tag, outcome, |hold| reach.release(hold));
    }

    /// Puts a request's pages into `segments`, as the device gets them.
    #[inline]
    fn gather<H: Hypervisor>(
        &mut self,
        tag: Tag,
        dispatcher: &mut Dispatcher<H>,
        reach: &Reach<H>,
    ) -> Result<(), GrantStatus> {
        self.segments.clear();
        let pages = &dispatcher.flights.get(tag).pages;
        for page in dispatcher.pool.iter(pages) {
            self.segments.push(reach.segment(page)?);
        }
        Ok(())
    }

    /// Xen has no map slots for the pages of a request: serves it by copies, after those that are served
    /// that way already.
    #[cold]
    fn bounce<H: Hypervisor>(
        &mut self,
        tag: Tag,
        op: Op,
        dispatcher: &mut Dispatcher<H>,
        reach: &mut Reach<H>,
    ) {
        let flight = dispatcher.flights.get(tag);
        // It is to be done as long as one piece of it is.
        flight.op = Some(op);
        if !reach.bounce.is_free() {
            return dispatcher.flights.wait(tag);
        }
        reach.bounce.begin(tag, op, flight.bytes as usize);
        self.submit_piece(tag, dispatcher, reach);
    }

    /// The device has done with a piece of a request that is served by copies.
    #[cold]
    fn next_piece<H: Hypervisor>(
        &mut self,
        tag: Tag,
        dispatcher: &mut Dispatcher<H>,
        reach: &mut Reach<H>,
    ) {
        let flight = dispatcher.flights.get(tag);
        if let Err(status) = reach.bounce.piece_done(&dispatcher.pool, &flight.pages) {
            return refuse_piece(tag, status, dispatcher);
        }
        if !reach.bounce.is_done() {
            return self.submit_piece(tag, dispatcher, reach);
        }
        flight.op = None;
        self.end_bounce(dispatcher, reach);
        self.step(tag, dispatcher, reach);
    }

    fn submit_piece<H: Hypervisor>(
        &mut self,
        tag: Tag,
        dispatcher: &mut Dispatcher<H>,
        reach: &mut Reach<H>,
    ) {
        let pages = &dispatcher.flights.get(tag).pages;
        let (op, segment) = match reach.bounce.next_piece(&dispatcher.pool, pages) {
            Ok(piece) => piece,
            Err(status) => return refuse_piece(tag, status, dispatcher),
        };
        let segments = &[segment];
        match self.device.submit(tag, Io { op, segments }) {
            Submitted::Done(outcome) => dispatcher.flights.done(tag, outcome),
            Submitted::Pending => self.completes_later = true,
        }
    }

    /// The bounce page is free for the next request that waits for it.
    #[cold]
    fn end_bounce<H: Hypervisor>(&mut self, dispatcher: &mut Dispatcher<H>, reach: &mut Reach<H>) {
        reach.bounce.end();
        if let Some(tag) = dispatcher.flights.take_waiting() {
            self.step(tag, dispatcher, reach);
        }
    }
}

fn refuse_piece<H: Hypervisor>(tag: Tag, status: GrantStatus, dispatcher: &mut Dispatcher<H>) {
    dispatcher
        .complaints
        .complain(format_args!("a page cannot be copied: {status}"));
    dispatcher.flights.done(tag, Err(IoError::Medium));
}
