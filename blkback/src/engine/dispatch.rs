//! Takes requests off the ring, as far as they may begin, and puts the responses on it.

mod indirect;
mod plain;
mod taking;
#[cfg(feature = "recover")]
mod taking_kept;
mod transfer;

pub(super) use plain::{PlainTransfer, ServePlain, Served};

use super::data_path::PageAccess;
use super::error_log::ErrorLog;
use super::indirect::{DescriptorRange, MOST_DESCRIPTOR_PAGES};
use super::inflight::{InflightTable, Steps};
use super::journal::Journal;
use super::needs::most_pages;
use super::pages::{Hold, InflightPages, Pages};
use super::setup::{QueueError, QueueSetupError};
use super::stats::QueueStats;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_grant::MappedPages;
use bulkhead_grant::memory::room_for;
use bulkhead_images::{Caps, IoError, Op, Sector, Tag};
use bulkhead_ring::blkif::{
    Abi, Blkif, Discard, Malformed, Opcode, Operation, RequestId, Response, SECTOR_SIZE, SLOT_SIZE,
    SlotRequest, Status,
};
use bulkhead_ring::{BackRing, SharedPages};
use bulkhead_xen::Hypervisor;
use core::num::NonZeroU32;

/// Owns the ring, the requests in flight and their pages: decides which requests may begin now and
/// which have to wait, and answers those that have ended.
pub(super) struct Dispatcher<H: Hypervisor> {
    ring: BackRing<SharedPages, Blkif>,
    /// The pages that `ring` lies in; dropped after it.
    _ring_pages: MappedPages<H>,
    pub inflight: InflightTable,
    pub pool: InflightPages,
    /// Requests of this sweep that are to be started.
    begun: Vec<u16>,
    /// Requests of this sweep whose segments have to be fetched first.
    fetching: Vec<(Tag, DescriptorRange)>,
    /// The number of pages that the requests of this sweep have.
    pages: usize,
    /// The number of these pages that are not in the pool yet.
    reserved: usize,
    /// The number of pages of all requests that this sweep has taken, whether they are served at once or started; one for each
    /// that has none.
    taken_pages: usize,
    /// A request that was taken off the ring and has to wait for the requests in flight. Later requests stay on
    /// the ring. One whose store answers in any order waits in the journal.
    held: Option<[u8; SLOT_SIZE]>,
    journal: Journal,
    /// True while a barrier is in flight: no request begins before it has ended.
    barrier: bool,
    indirect_segments: usize,
    discard: bool,
    /// The device takes writes that are durable when they complete.
    fua: bool,
    /// True if a response was put since the pages of answered requests were last unmapped.
    answered: bool,
    pub error_log: ErrorLog<H>,
    stats: Arc<QueueStats>,
}

/// The requests taken off the ring for one sweep.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taken {
    /// The number of requests, including those refused at once.
    pub requests: u32,
    /// The number of pages of the requests that are to be started.
    pub pages: usize,
}

/// The outcome of an attempt to begin a request.
enum Begun {
    /// The request was served at once: nothing has changed for others.
    Served,
    /// The request is in flight, or was answered.
    Yes,
    /// The request has to wait until one in flight has ended.
    NotYet,
}

impl<H: Hypervisor> Dispatcher<H> {
    /// Takes over the ring in `pages`. A ring that was served before goes on from its state: its first slots hold
    /// responses. `discard` and `indirect_segments` are what the frontend was offered; `caps` are those of the device.
    /// If the journal is that of a queue that was served before a crash, also returns the number of requests that are
    /// to be served again.
    pub fn attach(
        pages: MappedPages<H>,
        (abi, mut journal): (Abi, Journal),
        indirect_segments: usize,
        (discard, caps): (bool, &Caps),
        error_log: ErrorLog<H>,
        stats: Arc<QueueStats>,
    ) -> Result<(Self, Option<u32>), QueueSetupError> {
        let mut ring = attach(&pages, abi)?;
        let again = journal.begin(&mut ring, caps.at_once);
        let again = again.map_err(|overrun| QueueSetupError::Attach(overrun.into()))?;
        let slots = ring.slots() as usize;
        let dispatcher = Dispatcher {
            ring,
            _ring_pages: pages,
            inflight: InflightTable::new(slots)?,
            pool: InflightPages::new(most_pages(slots, indirect_segments))?,
            begun: room_for(slots)?,
            // Each of these requests has at least one descriptor page.
            fetching: room_for(slots.min(MOST_DESCRIPTOR_PAGES))?,
            pages: 0,
            reserved: 0,
            taken_pages: 0,
            held: None,
            journal,
            barrier: false,
            indirect_segments,
            discard,
            fua: caps.fua,
            answered: false,
            error_log,
            stats,
        };
        Ok((dispatcher, again))
    }

    /// Returns the number of requests that the frontend can have outstanding.
    pub fn slots(&self) -> u32 {
        self.ring.slots()
    }

    /// Returns the number of requests that could be taken.
    #[inline]
    pub fn waiting(&mut self) -> Result<u32, QueueError> {
        match self.is_stuck() {
            // While no request can begin, only the completion of one changes that.
            true => Ok(0),
            false => Ok(self.ring.look()? + self.held()),
        }
    }

    /// Takes no further requests but those that are on the ring at this moment.
    pub fn close(&mut self) -> Result<(), QueueError> {
        self.ring.close()?;
        Ok(())
    }

    /// Returns the number of requests of a [closed](Self::close) ring that are still to be taken.
    pub fn untaken(&self) -> u32 {
        self.ring.untaken() + self.held()
    }

    /// Returns the number of responses that the frontend has not been shown yet.
    pub fn unpublished(&self) -> u32 {
        self.ring.unpublished()
    }

    /// Keeps nothing for the time after a crash any more.
    pub fn keep_nothing(&mut self) {
        self.journal.break_seal();
    }

    /// Publishes the responses. Returns true if the frontend asked to be notified of them.
    #[inline]
    pub fn publish(&mut self) -> bool {
        match self.journal.is_in_order() {
            true => self.ring.publish(),
            false => self.publish_out_of_order(),
        }
    }

    #[inline(never)]
    fn publish_out_of_order(&mut self) -> bool {
        let at_rest = self.inflight.in_flight() == 0 || self.barrier;
        if self.journal.is_sealed_in_order() && !at_rest {
            // The store answers requests in an order of its own: the ring does not tell which.
            self.journal.break_seal();
            let in_flight = self.inflight.in_flight();
            self.error_log.warn(format_args!(
                "its store answers later than it said, {in_flight} request(s) are in flight: a crash of this domain ends the disk"
            ));
        }
        let count = self.ring.unpublished();
        let from = self.ring.answered().wrapping_sub(count);
        let notify = self.ring.publish();
        let at_rest = at_rest && self.held.is_none();
        self.journal.published(from, count, at_rest);
        notify
    }

    /// Asks the frontend to notify this end when there are `more` requests beside those that were
    /// [waiting](Self::waiting). Returns true if that many can be taken already.
    #[inline]
    pub fn final_check_for(&mut self, waiting: u32, more: NonZeroU32) -> Result<bool, QueueError> {
        let on_ring = waiting.saturating_sub(self.held());
        Ok(!self.is_stuck() && self.ring.final_check_for(more.saturating_add(on_ring))?)
    }

    /// Returns the number of requests that were taken off the ring and wait: one or none, or after a crash those that
    /// are to be served again.
    #[inline]
    fn held(&self) -> u32 {
        u32::from(self.held.is_some()) + self.journal.waiting()
    }

    /// Returns whether no request can be taken before one in flight has ended.
    #[inline(always)]
    fn is_stuck(&self) -> bool {
        self.inflight.in_flight() > 0
            && (self.inflight.free() == 0
                || self.barrier
                || self.held() > 0
                || !self.inflight.none_busy())
    }

    /// Returns one of the requests that are to be started in this sweep.
    pub fn begun(&self, index: usize) -> Tag {
        Tag(self.begun[index].into())
    }

    /// Returns the number of requests that are to be started in this sweep.
    pub fn how_many_begun(&self) -> usize {
        self.begun.len()
    }

    /// Forgets the requests of this sweep, which are started now.
    pub fn clear_begun(&mut self) {
        self.begun.clear();
    }

    /// Returns whether a response was put since [`clear_answered`](Self::clear_answered).
    pub fn has_answered(&self) -> bool {
        self.answered
    }

    /// Notes that the pages of all answered requests are unmapped.
    pub fn clear_answered(&mut self) {
        self.answered = false;
    }

    /// Answers a request that has ended. Calls `release` with the way in which each of its pages was held.
    #[inline]
    pub fn end(&mut self, tag: Tag, outcome: Result<(), IoError>, release: impl FnMut(Hold)) {
        let entry = self.inflight.get(tag);
        let (id, operation, bytes) = (entry.id, entry.opcode, entry.bytes as usize);
        let mut pages = core::mem::replace(&mut entry.pages, Pages::EMPTY);
        self.pool.drain(&mut pages, release);
        self.inflight.end(tag);
        // Nothing else was in flight.
        self.barrier = false;
        self.journal.answer(tag, self.ring.answered());
        self.conclude(id, operation, bytes, outcome);
    }

    /// Notes that the request that was taken last begins now, and is to be answered later.
    #[inline]
    fn note_begin(&mut self) {
        let index = self.ring.taken().wrapping_sub(1);
        self.journal.begin_later(self.inflight.next_place(), index);
    }

    /// Counts a request that has ended, complains if it failed, and answers it.
    #[inline(never)]
    fn conclude(
        &mut self,
        id: RequestId,
        operation: Opcode,
        bytes: usize,
        outcome: Result<(), IoError>,
    ) {
        let status = match outcome {
            Ok(()) => {
                self.stats.request(operation, (bytes / SECTOR_SIZE) as u64);
                Status::Okay
            }
            Err(error) => self.log_error(operation, error),
        };
        self.answer(&Response {
            id,
            operation,
            status,
        });
    }

    /// Complains of a request that has failed. Returns its status.
    #[cold]
    #[inline(never)]
    fn log_error(&mut self, operation: Opcode, error: IoError) -> Status {
        // One that was given up was so on purpose: there is nothing to complain of.
        if error != IoError::Cancelled {
            self.error_log
                .log(format_args!("{operation} failed: {error}"));
        }
        match error {
            IoError::NotSupported => Status::NotSupported,
            _ => Status::Error,
        }
    }

    /// Answers every request in flight with an error, once the device has let go of all of them. Calls `release` with
    /// the way in which each of their pages was held.
    pub fn abandon(&mut self, mut release: impl FnMut(Hold)) {
        for tag in self.inflight.clear_lists() {
            if self.inflight.is_in_flight(tag) {
                self.end(tag, Err(IoError::Cancelled), &mut release);
            }
        }
    }

    /// Puts a response on the ring. The frontend sees it after the next [`publish`](Self::publish).
    #[inline(always)]
    fn answer(&mut self, answer: &Response) {
        self.answered = true;
        if self.journal.put(&mut self.ring, answer).is_err() {
            // Cannot be: each request in flight was taken off the ring and is answered once.
            debug_assert!(false, "an answer that nobody waits for");
        }
    }

    /// Puts the response to a request that is refused on the ring, as [`answer`](Self::answer) does.
    #[cold]
    #[inline(never)]
    fn answer_refused(&mut self, answer: &Response) {
        self.answer(answer);
    }

    fn begin_other(
        &mut self,
        request: Result<SlotRequest<'_>, Malformed>,
        page_access: &mut PageAccess<H>,
    ) -> Begun {
        self.taken_pages += 1;
        let request = &match request {
            Ok(request) => request,
            Err(malformed) => return self.refuse_malformed(&malformed),
        };
        match &request.operation {
            // `take` has begun every valid transfer already.
            Operation::Transfer(_) => self.refuse(request, Status::Error),
            Operation::Indirect(indirect) => self.begin_indirect(request, indirect, page_access),
            Operation::Flush => self.begin_plain(request, Op::Flush),
            Operation::Discard(_) if !self.discard => self.refuse(request, Status::NotSupported),
            Operation::Discard(discard) if self.journal.is_sealed() => {
                self.begin_alone(request, discard_op(discard))
            }
            Operation::Discard(discard) => self.begin_plain(request, discard_op(discard)),
        }
    }

    /// Begins an operation without pages that may take a while, and that no later request overtakes. So the requests
    /// without a response are always the last that were taken.
    fn begin_alone(&mut self, request: &SlotRequest<'_>, op: Op) -> Begun {
        if self.inflight.in_flight() > 0 {
            return Begun::NotYet;
        }
        let begun = self.begin_plain(request, op);
        self.barrier = self.inflight.in_flight() > 0;
        begun
    }

    /// Begins an operation without pages.
    fn begin_plain(&mut self, request: &SlotRequest<'_>, op: Op) -> Begun {
        let steps = Steps::of(op);
        self.note_begin();
        match self.inflight.begin(request.id, request.opcode(), steps) {
            Some(tag) => self.begun.push(tag.0 as u16),
            None => return self.refuse(request, Status::Error),
        }
        Begun::Yes
    }

    /// Returns whether there is room for `pages` more pages. With no request in flight, waiting would not make
    /// room in `page_access`, so only the pool counts.
    fn has_room(&self, pages: usize, page_access: &PageAccess<H>) -> bool {
        let pool = self.pool.free() - self.reserved;
        let page_access = page_access.room().saturating_sub(self.pages);
        pages <= pool.min(page_access) || (self.inflight.in_flight() == 0 && pages <= pool)
    }

    #[cold]
    fn refuse_malformed(&mut self, malformed: &Malformed) -> Begun {
        self.error_log
            .log(format_args!("a malformed request: {}", malformed.fault));
        self.answer_refused(&malformed.response());
        Begun::Yes
    }

    /// Refuses an operation that the frontend was not offered.
    #[cold]
    fn refuse(&mut self, request: &SlotRequest<'_>, status: Status) -> Begun {
        self.error_log
            .log(format_args!("{} is not offered so", request.opcode()));
        self.answer_refused(&request.response(status));
        Begun::Yes
    }
}

fn discard_op(discard: &Discard) -> Op {
    Op::Discard {
        sector: Sector(discard.sector.0),
        count: Sector(discard.count),
        secure: discard.secure,
    }
}

/// Attaches the backend's end of the ring in `pages`.
#[allow(unsafe_code, reason = "a promise about pages that this module owns")]
fn attach<H: Hypervisor>(
    pages: &MappedPages<H>,
    abi: Abi,
) -> Result<BackRing<SharedPages, Blkif>, QueueSetupError> {
    // SAFETY: `Dispatcher` keeps `pages` for longer than the ring that uses them (fields are dropped
    // in their order), and nothing refers into them.
    let shared = unsafe { SharedPages::new(pages.base(), pages.pages()) };
    let shared = shared.map_err(QueueSetupError::Pages)?;
    BackRing::attach(shared, Blkif::new(abi)).map_err(QueueSetupError::Attach)
}
