//! One queue: a ring, the pages its requests name, and the device that serves them.

use super::flight::{Flights, MappedSegment};
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;
use bulkhead_executor::{EventChannel, Handle};
use bulkhead_grant::{Access, MappedPages, OutOfSpace, Region, Window};
use bulkhead_images::{Io, IoError, IoQueue, IoSegment, Op, Sector, Submitted, Tag};
use bulkhead_ring::blkif::{
    Abi, Blkif, MAX_SEGMENTS, Malformed, Operation, Request, Response, Status, TransferKind,
};
use bulkhead_ring::{BackRing, BadPages, Overrun, SharedPages, TooSmall};
use bulkhead_xen::{DomId, Errno, GrantRef, GrantStatus, Hypervisor, Port};
use core::fmt;
use core::task::{Context, Poll};

/// How many of a frontend's mistakes a queue puts into the log; a hostile one has no end of them.
const MOST_COMPLAINTS: u32 = 10;

/// What it takes to serve a queue.
pub struct QueueSetup {
    /// The name of the disk and the queue, for the log.
    pub name: alloc::string::String,
    /// The domain that grants the pages.
    pub frontend: DomId,
    /// The layout of its messages.
    pub abi: Abi,
    /// The ring's pages.
    pub ring: Vec<GrantRef>,
    /// The frontend's event channel.
    pub event_channel: Port,
    /// The device's queue for this ring.
    pub device: Box<dyn IoQueue>,
}

/// One queue being served. Dropping it gives everything back: in-flight requests are abandoned,
/// then the pages are unmapped and the event channel closed.
pub struct Queue<H: Hypervisor> {
    name: alloc::string::String,
    // Dropped first: after that the device touches no page any more.
    device: Box<dyn IoQueue>,
    window: Window<H>,
    ring: BackRing<SharedPages, Blkif>,
    /// What `ring` lies in; dropped after it.
    _pages: MappedPages<H>,
    channel: Rc<EventChannel<H>>,
    flights: Flights,
    /// Requests of this sweep whose pages are to be mapped.
    begun: Vec<Tag>,
    /// Requests that the device has done with.
    done: Vec<(Tag, Result<(), IoError>)>,
    /// Answers that wait until the pages of their requests are unmapped.
    answers: Vec<Response>,
    /// The segments of one request, as the device gets them.
    segments: Vec<IoSegment>,
    complaints: u32,
}

/// Why a queue cannot be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectError {
    /// A page of the ring cannot be mapped.
    Ring(GrantRef, GrantStatus),
    /// There are too many or too few pages.
    Pages(BadPages),
    /// The pages hold no ring.
    TooSmall(TooSmall),
    /// The event channel cannot be bound.
    EventChannel(Port, Errno),
    /// We are full.
    OutOfSpace(OutOfSpace),
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ring(gref, status) => {
                write!(f, "the ring's grant {gref} cannot be mapped: {status}")
            }
            Self::Pages(error) => write!(f, "the ring cannot be used: {error}"),
            Self::TooSmall(error) => write!(f, "the ring cannot be used: {error}"),
            Self::EventChannel(port, error) => {
                write!(
                    f,
                    "the frontend's event channel {port} cannot be bound: {error}"
                )
            }
            Self::OutOfSpace(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for ConnectError {}

/// Why a queue ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueError {
    /// The frontend's producer index cannot be.
    Overrun(Overrun),
}

impl fmt::Display for QueueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Overrun(overrun) => overrun.fmt(f),
        }
    }
}

impl From<Overrun> for QueueError {
    fn from(overrun: Overrun) -> Self {
        QueueError::Overrun(overrun)
    }
}

impl<H: Hypervisor> Queue<H> {
    /// Maps the ring and binds the event channel. All memory that serving needs is taken here.
    pub fn connect(
        handle: &Handle<H>,
        region: &Region<H>,
        setup: QueueSetup,
    ) -> Result<Self, ConnectError> {
        let QueueSetup {
            name,
            frontend,
            abi,
            ring,
            event_channel,
            device,
        } = setup;
        let pages = region
            .map_pages(frontend, &ring)
            .map_err(ConnectError::OutOfSpace)?
            .map_err(|(gref, status)| ConnectError::Ring(gref, status))?;
        let shared = shared_pages(&pages).map_err(ConnectError::Pages)?;
        let ring = BackRing::new(shared, Blkif::new(abi)).map_err(ConnectError::TooSmall)?;
        let slots = ring.slots() as usize;
        let window = region
            .window(frontend, slots * MAX_SEGMENTS)
            .map_err(ConnectError::OutOfSpace)?;
        let port = handle
            .door()
            .bind_interdomain(frontend, event_channel)
            .map_err(|error| ConnectError::EventChannel(event_channel, error))?;
        Ok(Queue {
            name,
            device,
            window,
            ring,
            _pages: pages,
            channel: Rc::new(handle.event_channel(port)),
            flights: Flights::new(slots),
            begun: Vec::with_capacity(slots),
            done: Vec::with_capacity(slots),
            answers: Vec::with_capacity(slots),
            segments: Vec::with_capacity(MAX_SEGMENTS),
            complaints: 0,
        })
    }

    /// The frontend's event channel.
    pub fn channel(&self) -> Rc<EventChannel<H>> {
        self.channel.clone()
    }

    /// How many requests the device has not done yet.
    pub fn in_flight(&self) -> usize {
        self.flights.in_flight()
    }

    /// Takes what is on the ring, has it served, and answers what is done. True means that there
    /// is more to take already; false, that the frontend will notify us when there is.
    pub fn sweep(&mut self) -> Result<bool, QueueError> {
        self.take()?;
        self.window.map_queued();
        self.start();
        self.settle()?;
        // With no place left, the completion of a request is what goes on.
        Ok(self.flights.free() > 0 && self.ring.final_check()?)
    }

    /// Answers what the device has done.
    pub fn settle(&mut self) -> Result<(), QueueError> {
        let done = &mut self.done;
        self.device
            .complete(&mut |tag, outcome| done.push((tag, outcome)));
        // `finish` may add to it, where a request has another step to go.
        let mut next = 0;
        while let Some(&(tag, outcome)) = self.done.get(next) {
            self.finish(tag, outcome);
            next += 1;
        }
        self.done.clear();
        // Only then may the frontend use its pages again.
        self.window.unmap_queued();
        for answer in self.answers.drain(..) {
            if self.ring.respond(&answer).is_err() {
                // Cannot be: each request in flight was taken off the ring and is answered once.
                debug_assert!(false, "an answer that nobody waits for");
            }
        }
        if self.ring.publish() {
            self.channel.notify();
        }
        Ok(())
    }

    /// Ready when the device has completed something; else it wakes the task when it does.
    pub fn poll_completion(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.flights.in_flight() == 0 {
            return Poll::Pending;
        }
        self.device.wake_on_completion(context.waker());
        let done = &mut self.done;
        self.device
            .complete(&mut |tag, outcome| done.push((tag, outcome)));
        if self.done.is_empty() {
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    }

    /// Takes requests while there are places for them.
    fn take(&mut self) -> Result<(), QueueError> {
        while self.flights.free() > 0 && self.window.free_slots() >= MAX_SEGMENTS {
            match self.ring.take()? {
                None => break,
                Some(Ok(request)) => self.begin(&request),
                Some(Err(malformed)) => {
                    self.complain_of(&malformed);
                    self.answers.push(malformed.response());
                }
            }
        }
        Ok(())
    }

    /// Gives a request a place and notes its pages for mapping.
    fn begin(&mut self, request: &Request) {
        let mut flush_first = false;
        let op = match &request.operation {
            Operation::Transfer(transfer) => {
                let sector = Sector(transfer.sector.0);
                match transfer.kind {
                    TransferKind::Read => Op::Read { sector },
                    TransferKind::Write => Op::Write { sector },
                    TransferKind::FlushAndWrite => {
                        flush_first = true;
                        Op::Write { sector }
                    }
                    TransferKind::WriteBarrier => return self.refuse(request),
                }
            }
            Operation::Flush => Op::Flush,
            Operation::Discard(_) | Operation::Indirect(_) => return self.refuse(request),
        };
        let Some((tag, flight)) = self.flights.begin(request.id, request.opcode()) else {
            // Cannot be: `take` looked for a free place.
            return self.refuse(request);
        };
        flight.op = Some(op);
        flight.flush_first = flush_first;
        if let Operation::Transfer(transfer) = &request.operation {
            // What the guest wrote is only read; what it wants to read is written.
            let access = match transfer.kind.is_write() {
                true => Access::ReadOnly,
                false => Access::ReadWrite,
            };
            for segment in transfer.segments.iter() {
                // `take` looked for enough free slots for any request.
                if let Ok(slot) = self.window.queue_map(segment.gref(), access) {
                    let (offset, len) = (segment.offset(), segment.len());
                    flight.segments.push(MappedSegment { slot, offset, len });
                }
            }
        }
        self.begun.push(tag);
    }

    /// An operation that this device does not offer.
    fn refuse(&mut self, request: &Request) {
        self.complain(format_args!("{} is not offered", request.opcode()));
        self.answers.push(request.response(Status::NotSupported));
    }

    /// Hands the requests whose pages were just mapped to the device.
    fn start(&mut self) {
        for index in 0..self.begun.len() {
            let tag = self.begun[index];
            let flight = self.flights.get(tag);
            let refused = flight
                .segments
                .iter()
                .find_map(|segment| self.window.address(&segment.slot).err());
            if let Some(status) = refused {
                flight.op = None;
                self.complain(format_args!(
                    "a page of a request cannot be mapped: {status}"
                ));
                self.done.push((tag, Err(IoError::Medium)));
            } else if flight.flush_first {
                flight.flush_first = false;
                let flush = Io {
                    op: Op::Flush,
                    segments: &[],
                };
                if let Submitted::Done(outcome) = self.device.submit(tag, flush) {
                    self.done.push((tag, outcome));
                }
            } else {
                self.submit(tag);
            }
        }
        self.begun.clear();
    }

    /// Starts what a request is about; its pages are mapped.
    fn submit(&mut self, tag: Tag) {
        let flight = self.flights.get(tag);
        let Some(op) = flight.op.take() else { return };
        self.segments.clear();
        for segment in &flight.segments {
            if let Some(io) = io_segment(&self.window, segment) {
                self.segments.push(io);
            }
        }
        if let Submitted::Done(outcome) = self.device.submit(
            tag,
            Io {
                op,
                segments: &self.segments,
            },
        ) {
            self.done.push((tag, outcome));
        }
    }

    /// A request has come back from the device: gives up its pages and notes the answer, unless
    /// it has another step to go.
    fn finish(&mut self, tag: Tag, outcome: Result<(), IoError>) {
        let flight = self.flights.get(tag);
        if outcome.is_ok() && flight.op.is_some() {
            return self.submit(tag);
        }
        let (id, operation) = (flight.id, flight.opcode);
        for segment in flight.segments.drain(..) {
            self.window.queue_unmap(segment.slot);
        }
        self.flights.end(tag);
        let status = match outcome {
            Ok(()) => Status::Okay,
            Err(IoError::NotSupported) => Status::NotSupported,
            Err(_) => Status::Error,
        };
        if let Err(error) = outcome {
            self.complain(format_args!("{operation} failed: {error}"));
        }
        self.answers.push(Response {
            id,
            operation,
            status,
        });
    }

    fn complain_of(&mut self, malformed: &Malformed) {
        self.complain(format_args!("a malformed request: {}", malformed.fault));
    }

    /// Puts a frontend's mistake into the log, the first few times.
    #[cold]
    fn complain(&mut self, what: fmt::Arguments<'_>) {
        self.complaints = self.complaints.saturating_add(1);
        if self.complaints <= MOST_COMPLAINTS {
            log::warn!("{}: {what}", self.name);
        }
        if self.complaints == MOST_COMPLAINTS {
            log::warn!("{}: further mistakes are not logged", self.name);
        }
    }
}

/// The ring's pages as the protocol sees them.
#[allow(unsafe_code, reason = "a promise about pages that this module owns")]
fn shared_pages<H: Hypervisor>(pages: &MappedPages<H>) -> Result<SharedPages, BadPages> {
    // SAFETY: `Queue` keeps `pages` for longer than the ring that uses them (fields are dropped
    // in their order), and nothing refers into them.
    unsafe { SharedPages::new(pages.base(), pages.pages()) }
}

/// A mapped segment as the device gets it; `None` if it is not mapped.
#[allow(unsafe_code, reason = "a promise about pages that this module owns")]
fn io_segment<H: Hypervisor>(window: &Window<H>, segment: &MappedSegment) -> Option<IoSegment> {
    let page = window.address(&segment.slot).ok()?;
    // A segment lies within its page, as its parser checked, so the sum is within the page.
    let address = page.map_addr(|address| address.saturating_add(segment.offset));
    let frame = window.frame(&segment.slot);
    // SAFETY: the page stays mapped, writable where the request reads, until `finish` gives it up
    // after the device has told the completion; and `Queue` drops the device's queue before the
    // window. Nothing refers to guests' pages.
    Some(unsafe { IoSegment::new(address, segment.len, frame) })
}
