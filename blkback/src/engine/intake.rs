//! Taking requests off the ring: which may begin now, and which have to wait.

use super::flight::Steps;
use super::indirect::{IndexFault, IndexPlace, MOST_INDEX_PAGES};
use super::pages::Pages;
use super::queue::Queue;
use super::setup::QueueError;
use alloc::vec::Vec;
use bulkhead_grant::OutOfMemory;
use bulkhead_grant::memory::room_for;
use bulkhead_images::{Op, Sector, Tag};
use bulkhead_ring::blkif::{
    Discard, Indirect, Opcode, Operation, Request, Status, Transfer, TransferKind,
};
use bulkhead_xen::Hypervisor;

/// What is known about the requests that were taken.
pub(super) struct Intake {
    /// Requests of this sweep that are to be started.
    begun: Vec<u16>,
    /// Requests of this sweep whose segments have to be fetched first.
    indexing: Vec<(Tag, IndexPlace)>,
    /// How many pages the requests of this sweep have.
    pages: usize,
    /// How many of them are not in the pool yet.
    reserved: usize,
    /// A request that was taken off the ring and has to wait for those in flight. Those after it
    /// stay on the ring.
    held: Option<Request>,
    /// A barrier is in flight: nothing begins before it has ended.
    barrier: bool,
    indirect_segments: usize,
    discard: bool,
}

/// What became of a request.
enum Begun {
    /// It is in flight, or was answered.
    Yes,
    /// It has to wait until something in flight has ended.
    NotYet,
}

impl Intake {
    pub(super) fn new(
        slots: usize,
        indirect_segments: usize,
        discard: bool,
    ) -> Result<Self, OutOfMemory> {
        Ok(Intake {
            begun: room_for(slots)?,
            // Each of them has an index page, at least.
            indexing: room_for(slots.min(MOST_INDEX_PAGES))?,
            pages: 0,
            reserved: 0,
            held: None,
            barrier: false,
            indirect_segments,
            discard,
        })
    }

    /// Notes a request that is to be started in this sweep.
    fn begin(&mut self, tag: Tag) {
        // A tag is the place of a request among at most 512.
        self.begun.push(tag.0 as u16);
    }

    /// One of the requests that are to be started in this sweep.
    pub(super) fn begun(&self, index: usize) -> Tag {
        Tag(self.begun[index].into())
    }

    /// The number of requests that are to be started in this sweep.
    pub(super) fn how_many_begun(&self) -> usize {
        self.begun.len()
    }

    /// Forgets them: they are started.
    pub(super) fn clear_begun(&mut self) {
        self.begun.clear();
    }

    /// How many pages the requests of this sweep have.
    pub(super) fn pages(&self) -> usize {
        self.pages
    }

    /// How many requests wait that are not on the ring any more.
    pub(super) fn held(&self) -> u32 {
        self.held.is_some().into()
    }

    /// A request has ended.
    pub(super) fn ended(&mut self, operation: Opcode) {
        if operation == Opcode::WRITE_BARRIER {
            self.barrier = false;
        }
    }
}

impl<H: Hypervisor> Queue<H> {
    /// Whether nothing more can be taken before something in flight has ended.
    pub(super) fn is_stuck(&self) -> bool {
        self.in_flight() > 0
            && (self.flights.free() == 0 || self.intake.barrier || self.intake.held() > 0)
    }

    /// Takes requests while there is room for them, and learns what pages they have. Answers how
    /// many were taken.
    pub(super) fn take(&mut self) -> Result<u32, QueueError> {
        let mut taken = 0;
        self.intake.pages = 0;
        self.intake.reserved = 0;
        while self.flights.free() > 0 && !self.intake.barrier {
            let request = match self.intake.held.take() {
                Some(request) => request,
                None => match self.ring.take()? {
                    None => break,
                    Some(Ok(request)) => request,
                    Some(Err(malformed)) => {
                        self.complain(format_args!("a malformed request: {}", malformed.fault));
                        self.answer(&malformed.response());
                        taken += 1;
                        continue;
                    }
                },
            };
            match self.begin(&request) {
                Begun::Yes => taken += 1,
                Begun::NotYet => {
                    self.intake.held = Some(request);
                    break;
                }
            }
        }
        if !self.intake.indexing.is_empty() {
            self.read_indexes();
        }
        Ok(taken)
    }

    fn begin(&mut self, request: &Request) -> Begun {
        match &request.operation {
            Operation::Transfer(transfer) => self.begin_transfer(request, transfer),
            Operation::Indirect(indirect) => self.begin_indirect(request, indirect),
            Operation::Flush => self.begin_plain(request, Op::Flush),
            Operation::Discard(_) if !self.intake.discard => {
                self.refuse(request, Status::NotSupported)
            }
            Operation::Discard(discard) => self.begin_plain(request, discard_op(discard)),
        }
    }

    fn begin_transfer(&mut self, request: &Request, transfer: &Transfer) -> Begun {
        let barrier = transfer.kind == TransferKind::WriteBarrier;
        if !self.has_room(transfer.segments.len()) || (barrier && self.in_flight() > 0) {
            return Begun::NotYet;
        }
        let op = transfer_op(transfer.kind, transfer.sector.0);
        let steps = Steps {
            flush_first: barrier || transfer.kind == TransferKind::FlushAndWrite,
            op: Some(op).filter(|_| !transfer.segments.is_empty()),
            flush_last: barrier,
        };
        // `take` looked for a free place.
        let Some(tag) = self.flights.begin(request.id, request.opcode(), steps) else {
            return self.refuse(request, Status::Error);
        };
        self.intake.barrier = barrier;
        self.intake.pages += transfer.segments.len();
        let flight = self.flights.get(tag);
        for segment in transfer.segments.iter() {
            let fits = self.pool.push(&mut flight.pages, *segment);
            debug_assert!(fits, "room was looked for");
            flight.bytes += segment.len() as u32;
        }
        self.intake.begin(tag);
        Begun::Yes
    }

    fn begin_indirect(&mut self, request: &Request, indirect: &Indirect) -> Begun {
        let segments = indirect.segments();
        if segments > self.intake.indirect_segments {
            return self.refuse(request, Status::Error);
        }
        if !self.has_room(segments) {
            return Begun::NotYet;
        }
        let Some(place) = self.reach.queue_index(indirect) else {
            // The next sweep starts with all room for index pages.
            return Begun::NotYet;
        };
        let steps = Steps {
            op: Some(transfer_op(indirect.kind, indirect.sector.0)),
            ..Steps::default()
        };
        let Some(tag) = self.flights.begin(request.id, request.opcode(), steps) else {
            return self.refuse(request, Status::Error);
        };
        self.intake.pages += segments;
        self.intake.reserved += segments;
        self.intake.indexing.push((tag, place));
        self.stats.indirect.add(1);
        Begun::Yes
    }

    /// An operation without pages.
    fn begin_plain(&mut self, request: &Request, op: Op) -> Begun {
        let steps = Steps {
            op: Some(op),
            ..Steps::default()
        };
        match self.flights.begin(request.id, request.opcode(), steps) {
            Some(tag) => self.intake.begin(tag),
            None => return self.refuse(request, Status::Error),
        }
        Begun::Yes
    }

    /// Whether there is room for so many pages more. With nothing in flight there is, or will
    /// never be.
    fn has_room(&self, pages: usize) -> bool {
        let pool = self.pool.free() - self.intake.reserved;
        let reach = self.reach.room().saturating_sub(self.intake.pages);
        pages <= pool.min(reach) || (self.in_flight() == 0 && pages <= pool)
    }

    /// An operation that was not offered.
    fn refuse(&mut self, request: &Request, status: Status) -> Begun {
        self.complain(format_args!("{} is not offered so", request.opcode()));
        self.answer(&request.response(status));
        Begun::Yes
    }

    /// Fetches the segments of indirect requests, all in one hypercall, and checks them.
    fn read_indexes(&mut self) {
        self.reach.fetch_indexes();
        for index in 0..self.intake.indexing.len() {
            let (tag, place) = self.intake.indexing[index];
            let flight = self.flights.get(tag);
            match self
                .reach
                .read_index(place, &mut self.pool, &mut flight.pages)
            {
                Ok(bytes) => {
                    flight.bytes = bytes as u32;
                    self.intake.begin(tag);
                }
                Err(fault) => self.refuse_indexed(tag, fault),
            }
        }
        self.reach.clear_indexes();
        self.intake.indexing.clear();
        self.intake.reserved = 0;
    }

    /// An indirect request whose segments cannot be had.
    #[cold]
    fn refuse_indexed(&mut self, tag: Tag, fault: IndexFault) {
        let flight = self.flights.get(tag);
        let (id, operation) = (flight.id, flight.opcode);
        let mut pages = core::mem::replace(&mut flight.pages, Pages::EMPTY);
        self.pool.drain(&mut pages, |_| ());
        self.flights.end(tag);
        self.complain(format_args!("a malformed indirect request: {fault}"));
        let status = Status::Error;
        self.answer(&bulkhead_ring::blkif::Response {
            id,
            operation,
            status,
        });
    }
}

fn transfer_op(kind: TransferKind, sector: u64) -> Op {
    let sector = Sector(sector);
    match kind.is_write() {
        true => Op::Write { sector },
        false => Op::Read { sector },
    }
}

fn discard_op(discard: &Discard) -> Op {
    Op::Discard {
        sector: Sector(discard.sector.0),
        count: Sector(discard.count),
        secure: discard.secure,
    }
}
