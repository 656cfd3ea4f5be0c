//! A ring to the backend: puts requests into it, and checks the backend's responses.

use crate::backend_nodes::FlushBy;
use crate::client::Entry;
use crate::counts::RingCounts;
use alloc::vec::Vec;
use bulkhead_grant::memory::filled;
use bulkhead_grant::{NotShared, SharedMemory};
use bulkhead_images::{IoError, Op};
use bulkhead_ring::blkif::{
    Abi, Blkif, BlkifSector, Discard, Indirect, MAX_INDIRECT_PAGES, MAX_SEGMENTS, Opcode,
    Operation, Request, RequestId, SEGMENTS_PER_INDIRECT_PAGE, SLOT_SIZE, Segment, Status,
    TransferKind,
};
use bulkhead_ring::{Format, FrontRing, Overrun, SharedPages};
use bulkhead_xen::{GrantRef, Hypervisor, PAGE_SIZE, Port};
use core::fmt;

/// A breach of the protocol by the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlkifViolation {
    /// Its producer index is ahead of the requests that were sent.
    Overrun(Overrun),
    /// It answered a request that was not sent, or answered it twice.
    Unasked(RequestId),
    /// It answered with another operation than the request's.
    Operation {
        /// The operation in the response.
        answered: Opcode,
        /// The operation of the request.
        asked: Opcode,
    },
    /// Its status is none of `BLKIF_RSP_*`.
    Status(i16),
}

impl fmt::Display for BlkifViolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Overrun(overrun) => overrun.fmt(f),
            Self::Unasked(RequestId(id)) => {
                write!(
                    f,
                    "the backend answered request {id}, which it was not asked"
                )
            }
            Self::Operation { answered, asked } => {
                write!(
                    f,
                    "the backend answered {answered} where it was asked for {asked}"
                )
            }
            Self::Status(code) => write!(f, "the backend answered with status {code}"),
        }
    }
}

impl core::error::Error for BlkifViolation {}

impl From<Overrun> for BlkifViolation {
    fn from(overrun: Overrun) -> BlkifViolation {
        BlkifViolation::Overrun(overrun)
    }
}

/// The format of the ring.
const FORMAT: Blkif = Blkif::new(Abi::NATIVE);

/// The number of the client in requests of this end's own.
pub const OWN: u16 = u16::MAX;

/// The form that requests to a backend take.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// The request that makes data durable.
    pub flush: FlushBy,
    /// The most segments of an indirect request; 0 if it takes none.
    pub indirect_segments: usize,
}

/// A response: the client and the entry that it is for, and the result.
pub type Answered = (u16, u16, Result<(), IoError>);

/// A ring that a backend is connected to, or will be.
pub struct Wire<H: Hypervisor> {
    // Dropped before the memory that it is in.
    front: FrontRing<SharedPages, Blkif>,
    memory: SharedMemory<H>,
    hypervisor: H,
    port: Port,
    slots: Vec<Slot>,
    free: Vec<u16>,
    rules: Rules,
    /// Requests put into the ring, and those that the backend answered with an error.
    sent: u64,
    errors: u64,
}

/// The use of a slot of the ring; its number is the request's identifier.
#[derive(Clone, Copy)]
struct Slot {
    client: u16,
    entry: u16,
    operation: Opcode,
    used: bool,
}

/// Returns the memory of a ring as both ends see it.
fn shared<H: Hypervisor>(memory: &SharedMemory<H>) -> Option<SharedPages> {
    // SAFETY: the memory is kept for as long as the ring, and used through it alone.
    unsafe { SharedPages::new(memory.base(), memory.pages()) }.ok()
}

/// Returns the slots of a ring of which none is in use, and the list of those that are not.
fn unused_slots(slots: u32) -> Option<(Vec<Slot>, Vec<u16>)> {
    let count = slots as usize;
    let unused = Slot {
        client: 0,
        entry: 0,
        operation: Opcode::READ,
        used: false,
    };
    let slots = filled(count, |_| unused).ok()?;
    let free = filled(count, |slot| (count - 1 - slot) as u16).ok()?;
    Some((slots, free))
}

impl<H: Hypervisor> Wire<H> {
    /// Makes an empty ring in memory that was granted to the backend. `port` notifies the backend.
    pub fn new(
        memory: SharedMemory<H>,
        hypervisor: H,
        port: Port,
        rules: Rules,
    ) -> Result<Self, NotShared> {
        let bytes = memory.pages() * PAGE_SIZE;
        let no_memory = NotShared::NoMemory { bytes };
        let shared = shared(&memory).ok_or(no_memory)?;
        let front = FrontRing::new(shared, FORMAT).map_err(|_| no_memory)?;
        let slots = unused_slots(front.slots()).ok_or(no_memory)?;
        Ok(Self::with(memory, (front, slots), hypervisor, port, rules))
    }

    /// Goes on with a ring of a boot before this one, on which the backend has answered everything. Gives the memory
    /// back if it has not, or if the ring's indices are impossible.
    pub fn left(
        memory: SharedMemory<H>,
        hypervisor: H,
        port: Port,
        rules: Rules,
    ) -> Result<Self, SharedMemory<H>> {
        let attach = || {
            let mut front = FrontRing::attach(shared(&memory)?, FORMAT).ok()?;
            // Also asks to be notified of the next response.
            let idle = !front.final_check().ok()?;
            let slots = unused_slots(front.slots())?;
            idle.then_some((front, slots))
        };
        match attach() {
            Some(ring) => {
                memory.drained();
                Ok(Self::with(memory, ring, hypervisor, port, rules))
            }
            None => Err(memory),
        }
    }

    fn with(
        memory: SharedMemory<H>,
        (front, (slots, free)): (FrontRing<SharedPages, Blkif>, (Vec<Slot>, Vec<u16>)),
        hypervisor: H,
        port: Port,
        rules: Rules,
    ) -> Self {
        Wire {
            slots,
            free,
            front,
            memory,
            hypervisor,
            port,
            rules,
            sent: 0,
            errors: 0,
        }
    }

    /// Returns the grants of the ring's pages.
    pub fn grefs(&self) -> Vec<GrantRef> {
        (0..self.memory.pages())
            .filter_map(|page| self.memory.gref(page))
            .collect()
    }

    /// Returns the event channel.
    pub fn port(&self) -> Port {
        self.port
    }

    /// Sets the form of requests, once the backend's properties are known.
    pub fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
    }

    /// Returns the requests that were sent so far, those of them that the backend has not answered, and those that
    /// it answered with an error.
    pub fn counts(&self) -> RingCounts {
        RingCounts {
            requests: self.sent,
            outstanding: self.front.outstanding().into(),
            errors: self.errors,
            ..RingCounts::default()
        }
    }

    /// Ends the ring, and returns its memory.
    pub fn into_memory(self) -> SharedMemory<H> {
        self.memory
    }

    /// Takes a response: the client and the entry that it is for, and the result.
    #[inline]
    pub fn take(&mut self) -> Result<Option<Answered>, BlkifViolation> {
        let Some(response) = self.front.take()? else {
            return Ok(None);
        };
        let id = response.id;
        let slot = usize::try_from(id.0).ok();
        let slot = slot.and_then(|slot| self.slots.get_mut(slot));
        let slot = slot
            .filter(|slot| slot.used)
            .ok_or(BlkifViolation::Unasked(id))?;
        if response.operation != slot.operation {
            return Err(BlkifViolation::Operation {
                answered: response.operation,
                asked: slot.operation,
            });
        }
        let outcome = match response.status {
            Status::Okay => Ok(()),
            Status::Error => Err(IoError::Medium),
            Status::NotSupported => Err(IoError::NotSupported),
            Status::Other(code) => return Err(BlkifViolation::Status(code)),
        };
        if outcome.is_err() {
            self.errors += 1;
        }
        slot.used = false;
        self.free.push(id.0 as u16);
        Ok(Some((slot.client, slot.entry, outcome)))
    }

    /// Asks the backend to notify us of its next response. Returns true if there is one already.
    #[inline]
    pub fn final_check(&mut self) -> Result<bool, BlkifViolation> {
        Ok(self.front.final_check()?)
    }

    /// Publishes the requests in the ring to the backend, and notifies it if it asked for that.
    #[inline]
    pub fn publish(&mut self) {
        if self.front.publish() && self.hypervisor.notify(self.port).is_err() {
            // The backend's domain is gone; its xenstore nodes will show that soon.
            log::debug!("event channel {}: not notified", self.port);
        }
    }

    /// Sends a request, or as much of it as the ring has room for. Returns false if that is not all.
    #[inline]
    pub fn ask(&mut self, client: (u16, &SharedMemory<H>), number: u16, entry: &mut Entry) -> bool {
        let (index, memory) = client;
        while entry.next < entry.steps() {
            let Some(id) = self.free.pop() else {
                return false;
            };
            let mut slot = FORMAT.empty_slot();
            let (opcode, steps) = self.encode(&mut slot, RequestId(id.into()), memory, entry);
            if self.front.push_slot(&slot).is_err() {
                self.free.push(id);
                return false;
            }
            self.slots[usize::from(id)] = Slot {
                client: index,
                entry: number,
                operation: opcode,
                used: true,
            };
            self.sent += 1;
            entry.next += steps;
            entry.parts += 1;
        }
        true
    }

    /// Returns whether the backend has answered everything.
    pub fn is_idle(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// Sends a flush of this end's own. Returns false if the ring has no room.
    pub fn ask_flush(&mut self) -> bool {
        let Some(id) = self.free.pop() else {
            return false;
        };
        let request = Request::of(RequestId(id.into()), self.flush());
        self.slots[usize::from(id)] = Slot {
            client: OWN,
            entry: 0,
            operation: request.opcode(),
            used: true,
        };
        self.sent += 1;
        self.front.push(&request).is_ok()
    }

    /// Returns the operation that makes data durable.
    fn flush(&self) -> Operation {
        let barrier = match self.rules.flush {
            FlushBy::Barrier => Request::transfer(
                RequestId(0),
                TransferKind::WriteBarrier,
                BlkifSector(0),
                &[],
            ),
            _ => None,
        };
        barrier.map_or(Operation::Flush, |request| request.operation)
    }

    /// Puts the next part of a request into an empty slot. Returns the operation, and the number of the part's steps.
    #[inline]
    fn encode(
        &self,
        slot: &mut [u8; SLOT_SIZE],
        id: RequestId,
        memory: &SharedMemory<H>,
        entry: &Entry,
    ) -> (Opcode, u16) {
        let (kind, sector) = match entry.op {
            Op::Read { sector } => (TransferKind::Read, sector),
            Op::Write { sector, .. } => (TransferKind::Write, sector),
            other => return (self.encode_other(slot, id, other), 1),
        };
        let left = entry.steps() - entry.next;
        let sector = BlkifSector(sector.0 + u64::from(entry.next) * (PAGE_SIZE / 512) as u64);
        let pages = usize::from(left);
        let mut bytes = entry.len as usize - usize::from(entry.next) * PAGE_SIZE;
        let grefs = memory.grefs(usize::from(entry.page + entry.next));
        let segments = grefs.take(pages).map(|gref| {
            let of_page = bytes.min(PAGE_SIZE);
            bytes -= of_page;
            match of_page {
                PAGE_SIZE => Segment::whole(gref),
                some => {
                    let last = some.div_ceil(512).max(1) - 1;
                    Segment::new(gref, 0, last as u8).unwrap_or_default()
                }
            }
        });
        if pages <= MAX_SEGMENTS
            || pages > self.rules.indirect_segments.min(SEGMENTS_PER_INDIRECT_PAGE)
        {
            let count = FORMAT.encode_transfer(slot, id, (kind, sector), segments);
            return (kind.opcode(), count as u16);
        }
        // The page behind the data.
        let place = usize::from(entry.page + entry.steps());
        memory.write_words(place, segments.map(Segment::encode));
        let mut grefs = [GrantRef(0); MAX_INDIRECT_PAGES];
        grefs[0] = memory.gref(place).unwrap_or_default();
        if let Some(indirect) = Indirect::new(kind, sector, left, grefs) {
            FORMAT.encode_request(&Request::of(id, Operation::Indirect(indirect)), slot);
        }
        (kind.opcode(), left)
    }

    /// Puts a request without data into an empty slot. Returns its operation.
    fn encode_other(&self, slot: &mut [u8; SLOT_SIZE], id: RequestId, op: Op) -> Opcode {
        let operation = match op {
            Op::Discard {
                sector,
                count,
                secure,
            } => Operation::Discard(Discard {
                sector: BlkifSector(sector.0),
                count: count.0,
                secure,
            }),
            _ => self.flush(),
        };
        let request = Request::of(id, operation);
        FORMAT.encode_request(&request, slot);
        request.opcode()
    }
}
