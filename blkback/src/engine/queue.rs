//! One queue: a ring, the pages its requests name, and the device that serves them.

use super::flight::Flights;
use super::intake::Intake;
use super::options::Options;
use super::pages::{PagePool, Pages};
use super::reach::Reach;
use super::setup::{ConnectError, QueueError, QueueSetup};
use super::stats::QueueStats;
use crate::guest_log::GuestLog;
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_executor::{EventChannel, Handle};
use bulkhead_grant::memory::room_for;
use bulkhead_grant::{Access, MappedPages, Region};
use bulkhead_images::{Io, IoError, IoQueue, IoSegment, Op, Staging, Submitted, Tag};
use bulkhead_ring::blkif::{Blkif, MAX_SEGMENTS, Opcode, Response, SECTOR_SIZE, Status};
use bulkhead_ring::{BackRing, BadPages, SharedPages};
use bulkhead_xen::{GrantStatus, Hypervisor};
use core::fmt;
use core::task::{Context, Poll, Waker};

/// How many of a frontend's mistakes a queue puts into the log; a hostile one has no end of them.
const MOST_COMPLAINTS: u32 = 10;

/// How many pages all requests in service have together, at most. More may be on a ring of many
/// pages or in indirect requests: they wait there until there is room. It bounds what a queue
/// takes of memory and of address space.
const MOST_PAGES: usize = 512;

/// One queue being served. Dropping it gives everything back: in-flight requests are abandoned,
/// then the pages are unmapped and the event channel closed.
pub struct Queue<H: Hypervisor> {
    pub(super) name: alloc::string::String,
    log: Arc<GuestLog>,
    // Dropped first: after that the device touches no page any more.
    device: Box<dyn IoQueue>,
    pub(super) reach: Reach<H>,
    pub(super) ring: BackRing<SharedPages, Blkif>,
    /// What `ring` lies in; dropped after it.
    _ring_pages: MappedPages<H>,
    channel: Rc<EventChannel<H>>,
    handle: Handle<H>,
    pub(super) flights: Flights,
    pub(super) pool: PagePool,
    pub(super) intake: Intake,
    /// The segments of one request, as the device gets them.
    segments: Vec<IoSegment>,
    /// An answer was put since the pages of answered requests were last unmapped.
    answered: bool,
    pub(super) stats: Arc<QueueStats>,
    options: Options,
    completes_later: bool,
    complaints: u32,
}

impl<H: Hypervisor> Queue<H> {
    /// Maps the ring and binds the event channel. All memory that serving needs is taken here.
    pub fn connect(
        handle: &Handle<H>,
        region: &Region<H>,
        setup: QueueSetup,
        device: Box<dyn IoQueue>,
    ) -> Result<Self, ConnectError> {
        let frontend = setup.frontend;
        let pages = region
            .map_pages(frontend, &setup.ring)?
            .map_err(|(gref, status)| ConnectError::Ring(gref, status))?;
        let shared = shared_pages(&pages).map_err(ConnectError::Pages)?;
        // A ring that was served before goes on where it was: its first slots hold responses.
        let ring = BackRing::attach(shared, Blkif::new(setup.abi)).map_err(ConnectError::Attach)?;
        let slots = ring.slots() as usize;
        let largest = setup.indirect_segments.max(MAX_SEGMENTS);
        let most_pages = most_pages(slots, setup.indirect_segments);
        let reach = Reach::new(handle.door(), region, &setup, most_pages, largest)?;
        let port = handle
            .door()
            .bind_interdomain(frontend, setup.event_channel)
            .map_err(|error| ConnectError::EventChannel(setup.event_channel, error))?;
        Ok(Queue {
            name: setup.name,
            log: setup.log,
            device,
            reach,
            ring,
            _ring_pages: pages,
            channel: Rc::new(handle.event_channel(port)),
            handle: handle.clone(),
            flights: Flights::new(slots)?,
            pool: PagePool::new(most_pages)?,
            intake: Intake::new(slots, setup.indirect_segments, setup.discard)?,
            segments: room_for(largest)?,
            answered: false,
            stats: Arc::default(),
            options: setup.options,
            completes_later: false,
            complaints: 0,
        })
    }

    /// The frontend's event channel.
    pub fn channel(&self) -> Rc<EventChannel<H>> {
        self.channel.clone()
    }

    /// How many requests the frontend can have outstanding.
    pub fn slots(&self) -> u32 {
        self.ring.slots()
    }

    /// How it is to be served.
    pub fn options(&self) -> Options {
        self.options
    }

    /// What the queue counts.
    pub fn stats(&self) -> Arc<QueueStats> {
        self.stats.clone()
    }

    /// How many requests the device has not done yet.
    pub fn in_flight(&self) -> usize {
        self.flights.in_flight()
    }

    /// How many requests could be taken.
    pub fn waiting(&self) -> Result<u32, QueueError> {
        match self.is_stuck() {
            // While something stands in the way, the completion of a request is what goes on.
            true => Ok(0),
            false => Ok(self.ring.unconsumed()? + self.intake.held()),
        }
    }

    /// Takes no request any more but those that are on the ring at this moment.
    pub fn close(&mut self) -> Result<(), QueueError> {
        self.ring.close()?;
        Ok(())
    }

    /// How many requests of a [closed](Self::close) queue are still to be taken.
    pub fn untaken(&self) -> u32 {
        self.ring.untaken() + self.intake.held()
    }

    /// How many answers the frontend has not been shown yet.
    pub fn unpublished(&self) -> u32 {
        self.ring.unpublished()
    }

    /// Takes what is on the ring, has it served, and puts the answers that there are, but does not
    /// show them to the frontend yet. Answers how many requests were taken.
    pub fn sweep(&mut self) -> Result<u32, QueueError> {
        let taken = self.take()?;
        if taken > 0 {
            self.stats.sweeps.add(1);
            self.stats.deepest.raise_to(self.in_flight() as u64);
            let handle = self.handle.clone();
            self.reach.decide(self.intake.pages(), || handle.now());
            self.approach();
            self.reach.go();
            self.device.end_in_place();
            self.start();
            self.settle();
            self.reach.learn(|| handle.now());
        }
        Ok(taken)
    }

    /// Shows the frontend what was answered, and notifies it if it asked for that.
    pub fn publish(&mut self) {
        if self.ring.publish() {
            self.stats.notifications_sent.add(1);
            self.channel.notify();
        }
    }

    /// Whether serving requests one by one costs no more than serving them together.
    pub fn is_served_singly(&self) -> bool {
        self.completes_later || self.reach.needs_no_calls()
    }

    /// Asks the frontend to notify us of its next request. True means that there is one already
    /// that could be taken.
    pub fn final_check(&mut self) -> Result<bool, QueueError> {
        Ok(!self.is_stuck() && self.ring.final_check()?)
    }

    /// Ready when the device has completed something; else it wakes the task when it does.
    pub fn poll_completion(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.flights.in_flight() == 0 {
            return Poll::Pending;
        }
        let flights = &mut self.flights;
        let _ = self
            .device
            .poll_complete(context, &mut |tag, outcome| flights.done(tag, outcome));
        if self.flights.none_done() {
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    }

    /// Has the device give up what is in flight, as far as it can.
    pub fn cancel_pending(&mut self) {
        self.device.cancel_all();
    }

    /// Puts the answers to what the device has done.
    pub fn settle(&mut self) {
        let flights = &mut self.flights;
        let mut unwatched = Context::from_waker(Waker::noop());
        let _ = self
            .device
            .poll_complete(&mut unwatched, &mut |tag, outcome| {
                flights.done(tag, outcome)
            });
        if self.flights.none_done() && !self.answered {
            return;
        }
        // `finish` may add to it, where a request has another step to go.
        while let Some((tag, outcome)) = self.flights.take_done() {
            self.finish(tag, outcome);
        }
        // Only then may the frontend be shown the answers, and use its pages again.
        self.reach.unmap();
        self.answered = false;
        self.reach.count(&self.stats);
    }

    /// Notes the pages of the requests just taken to be mapped or copied.
    #[allow(unsafe_code, reason = "hands the device's memory to the hypervisor")]
    fn approach(&mut self) {
        for index in 0..self.intake.how_many_begun() {
            let flight = self.flights.get(self.intake.begun(index));
            if flight.pages.len() == 0 {
                continue;
            }
            if self.reach.copies()
                && let Some((op, direction)) = flight.only_transfer()
            {
                self.reach.memory_asked();
                let pool = &mut self.pool;
                let tag = self.intake.begun(index);
                if let Some(Staging { memory, .. }) =
                    self.device.stage(tag, op, flight.bytes as usize)
                    // SAFETY: the device promises so many bytes of its own until it is told that the
                    // use in place has ended, which is after `go` has returned.
                    && unsafe {
                        self.reach
                            .queue_copies(pool, &flight.pages, direction, memory)
                    }
                {
                    continue;
                }
            }
            // What the guest wrote is only read; what it wants to read is written.
            let access = match flight.op {
                Some(Op::Read { .. }) => Access::ReadWrite,
                _ => Access::ReadOnly,
            };
            self.reach.queue_maps(&mut self.pool, &flight.pages, access);
        }
    }

    /// Hands the requests whose pages were just mapped to the device.
    fn start(&mut self) {
        for index in 0..self.intake.how_many_begun() {
            let tag = self.intake.begun(index);
            let flight = self.flights.get(tag);
            if let Some(copied) = self.reach.copied(&self.pool, &flight.pages) {
                flight.op = None;
                let outcome = copied.map_err(|status| {
                    self.complain(format_args!("a page cannot be copied: {status}"));
                    IoError::Medium
                });
                self.flights.done(tag, outcome);
            } else {
                self.step(tag);
            }
        }
        self.reach.clear_copies();
        self.intake.clear_begun();
    }

    /// Starts the next step of a request; its pages are mapped.
    fn step(&mut self, tag: Tag) {
        if self.reach.bounce.serves(tag) {
            return self.next_piece(tag);
        }
        let flight = self.flights.get(tag);
        let Some(op) = flight.next_step() else {
            return self.flights.done(tag, Ok(()));
        };
        self.segments.clear();
        if op != Op::Flush {
            let reach = &self.reach;
            let segments = &mut self.segments;
            let gathered: Result<(), GrantStatus> =
                self.pool.iter(&flight.pages).try_for_each(|page| {
                    segments.push(reach.segment(page)?);
                    Ok(())
                });
            if gathered == Err(GrantStatus::NO_SPACE) {
                return self.bounce(tag, op);
            }
            if let Err(status) = gathered {
                self.complain(format_args!("a page cannot be mapped: {status}"));
                return self.flights.done(tag, Err(IoError::Medium));
            }
        }
        let segments = &self.segments;
        match self.device.submit(tag, Io { op, segments }) {
            Submitted::Done(outcome) => self.flights.done(tag, outcome),
            // A discard may take its time on any device: it says nothing of how data is served.
            Submitted::Pending => {
                self.completes_later |= matches!(op, Op::Read { .. } | Op::Write { .. });
            }
        }
    }

    /// Xen has no map slots for the pages of a request: serves it by copies, after those that are served
    /// that way already.
    #[cold]
    fn bounce(&mut self, tag: Tag, op: Op) {
        let flight = self.flights.get(tag);
        // It is to be done as long as one piece of it is.
        flight.op = Some(op);
        if !self.reach.bounce.is_free() {
            return self.flights.wait(tag);
        }
        let bytes = flight.bytes as usize;
        self.reach.bounce.begin(tag, op, bytes);
        self.submit_piece(tag);
    }

    /// The device has done with a piece of a request that is served by copies.
    #[cold]
    fn next_piece(&mut self, tag: Tag) {
        let flight = self.flights.get(tag);
        if let Err(status) = self.reach.bounce.piece_done(&self.pool, &flight.pages) {
            return self.refuse_piece(tag, status);
        }
        if !self.reach.bounce.is_done() {
            return self.submit_piece(tag);
        }
        flight.op = None;
        self.end_bounce();
        self.step(tag);
    }

    fn submit_piece(&mut self, tag: Tag) {
        let flight = self.flights.get(tag);
        let bounce = &mut self.reach.bounce;
        let (op, segment) = match bounce.next_piece(&self.pool, &flight.pages) {
            Ok(piece) => piece,
            Err(status) => return self.refuse_piece(tag, status),
        };
        let segments = &[segment];
        match self.device.submit(tag, Io { op, segments }) {
            Submitted::Done(outcome) => self.flights.done(tag, outcome),
            Submitted::Pending => self.completes_later = true,
        }
    }

    fn refuse_piece(&mut self, tag: Tag, status: GrantStatus) {
        self.complain(format_args!("a page cannot be copied: {status}"));
        self.flights.done(tag, Err(IoError::Medium));
    }

    /// The bounce page is free for the next request that waits for it.
    fn end_bounce(&mut self) {
        self.reach.bounce.end();
        if let Some(tag) = self.flights.take_waiting() {
            self.step(tag);
        }
    }

    /// A request has come back from the device: gives up its pages and notes the answer, unless
    /// it has another step to go.
    fn finish(&mut self, tag: Tag, outcome: Result<(), IoError>) {
        let flight = self.flights.get(tag);
        if outcome.is_ok() && flight.has_steps() {
            return self.step(tag);
        }
        if outcome.is_err() && self.reach.bounce.serves(tag) {
            self.end_bounce();
        }
        let flight = self.flights.get(tag);
        let (id, operation, sectors) = (
            flight.id,
            flight.opcode,
            flight.bytes as usize / SECTOR_SIZE,
        );
        let mut pages = core::mem::replace(&mut flight.pages, Pages::EMPTY);
        let reach = &mut self.reach;
        self.pool.drain(&mut pages, |hold| reach.release(hold));
        self.flights.end(tag);
        self.intake.ended(operation);
        let status = match outcome {
            Ok(()) => Status::Okay,
            Err(IoError::NotSupported) => Status::NotSupported,
            Err(_) => Status::Error,
        };
        match outcome {
            Ok(()) => self.count(operation, sectors as u64),
            // Nobody waits for it any more.
            Err(IoError::Cancelled) => {}
            Err(error) => self.complain(format_args!("{operation} failed: {error}")),
        }
        self.answer(&Response {
            id,
            operation,
            status,
        });
    }

    /// Puts an answer on the ring, for the frontend to see when it is next [shown](Self::publish) any.
    pub(super) fn answer(&mut self, answer: &Response) {
        self.answered = true;
        if self.ring.respond(answer).is_err() {
            // Cannot be: each request in flight was taken off the ring and is answered once.
            debug_assert!(false, "an answer that nobody waits for");
        }
    }

    fn count(&self, operation: Opcode, sectors: u64) {
        let stats = &self.stats;
        match operation {
            Opcode::READ => {
                stats.reads.add(1);
                stats.sectors_read.add(sectors);
                return;
            }
            Opcode::WRITE => stats.writes.add(1),
            Opcode::WRITE_BARRIER => stats.barriers.add(1),
            Opcode::FLUSH_DISKCACHE => stats.flushes.add(1),
            _ => stats.discards.add(1),
        }
        stats.sectors_written.add(sectors);
    }

    /// The frontend notifies us again and again without asking for anything.
    #[cold]
    pub fn complain_of_notifications(&mut self) {
        self.complain(format_args!(
            "notified without a request too often: looked at more seldom"
        ));
    }

    /// Counts a frontend's mistake, or a failure of the device, and puts the first few into the
    /// log.
    #[cold]
    pub(super) fn complain(&mut self, what: fmt::Arguments<'_>) {
        self.stats.errors.add(1);
        self.complaints = self.complaints.saturating_add(1);
        if self.complaints <= MOST_COMPLAINTS {
            self.warn(what);
        }
        if self.complaints == MOST_COMPLAINTS {
            self.warn(format_args!("further mistakes are not logged"));
        }
    }

    fn warn(&self, what: fmt::Arguments<'_>) {
        let line = format_args!("{}: {what}", self.name);
        self.log.say(self.handle.now(), log::Level::Warn, line);
    }
}

/// How many pages the requests in service have at most, on a ring of that many slots.
pub fn most_pages(slots: usize, indirect_segments: usize) -> usize {
    let largest = indirect_segments.max(MAX_SEGMENTS);
    (slots * MAX_SEGMENTS).min(MOST_PAGES).max(largest)
}

/// The ring's pages as the protocol sees them.
#[allow(unsafe_code, reason = "a promise about pages that this module owns")]
fn shared_pages<H: Hypervisor>(pages: &MappedPages<H>) -> Result<SharedPages, BadPages> {
    // SAFETY: `Queue` keeps `pages` for longer than the ring that uses them (fields are dropped
    // in their order), and nothing refers into them.
    unsafe { SharedPages::new(pages.base(), pages.pages()) }
}
