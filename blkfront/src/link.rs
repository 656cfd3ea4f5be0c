//! One ring to the backend, and the queues whose requests go over it: those of one vCPU, where the backend
//! takes a ring for each.
//!
//! Its vCPU is the only one that locks it while requests are served, so the lock is never waited for; the control
//! plane takes it to connect and to disconnect. A request stays in its client's table until the backend has
//! answered it, whatever becomes of the backend meanwhile: it is asked again on the next ring.

use crate::backend_nodes::FlushBy;
use crate::client::{Client, Entry};
use crate::memory::{NotShared, SharedMemory};
use alloc::vec::Vec;
use bulkhead_grant::memory::filled;
use bulkhead_images::{IoError, Op, Submitted, Tag};
use bulkhead_ring::blkif::{
    Blkif, Discard, Indirect, MAX_INDIRECT_PAGES, MAX_SEGMENTS, Opcode, Operation, Request,
    RequestId, SEGMENTS_PER_INDIRECT_PAGE, Sector, Segment, Status, TransferKind,
};
use bulkhead_ring::{FrontRing, Overrun, SharedPages};
use bulkhead_xen::{DomId, GrantRef, Hypervisor, PAGE_SIZE, Port};
use core::fmt;

/// What a backend did that no backend does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// Its producer index cannot be.
    Overrun(Overrun),
    /// It answered a request that it was not asked.
    Unasked(RequestId),
    /// It answered another operation than it was asked for.
    Operation {
        /// What it answered.
        answered: Opcode,
        /// What it was asked for.
        asked: Opcode,
    },
    /// Its status is none.
    Status(i16),
}

impl fmt::Display for Lie {
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

impl core::error::Error for Lie {}

impl From<Overrun> for Lie {
    fn from(overrun: Overrun) -> Lie {
        Lie::Overrun(overrun)
    }
}

/// How a backend is asked.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// How it is told to make data durable.
    pub flush: FlushBy,
    /// The most segments of an indirect request; 0 if it takes none.
    pub indirect_segments: usize,
}

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
}

/// What a slot of the ring is used for; its number is the request's identifier.
#[derive(Clone, Copy)]
struct Slot {
    client: u16,
    entry: u16,
    operation: Opcode,
    used: bool,
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
        let no_memory = |_| NotShared::NoMemory { bytes };
        // SAFETY: the memory is kept for as long as the ring, and used through it alone.
        let shared = unsafe { SharedPages::new(memory.base(), memory.pages()) };
        let shared = shared.map_err(|_| NotShared::NoMemory { bytes })?;
        let format = Blkif::new(bulkhead_ring::blkif::Abi::NATIVE);
        let front = FrontRing::new(shared, format).map_err(|_| NotShared::NoMemory { bytes })?;
        let count = front.slots() as usize;
        let unused = Slot {
            client: 0,
            entry: 0,
            operation: Opcode::READ,
            used: false,
        };
        Ok(Wire {
            slots: filled(count, |_| unused).map_err(no_memory)?,
            free: filled(count, |slot| (count - 1 - slot) as u16).map_err(no_memory)?,
            front,
            memory,
            hypervisor,
            port,
            rules,
        })
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

    /// Says how the backend is asked, once that is known.
    pub fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
    }

    /// Ends the ring, and returns its memory.
    pub fn into_memory(self) -> SharedMemory<H> {
        self.memory
    }

    /// Shows the backend what was put into the ring, and notifies it if it asked for that.
    #[inline]
    fn publish(&mut self) {
        if self.front.publish() && self.hypervisor.notify(self.port).is_err() {
            // Its domain is gone; xenstore tells soon.
            log::debug!("event channel {}: not notified", self.port);
        }
    }

    /// Asks for a request, or for as much of it as the ring has room for. False if that is not all.
    #[inline]
    fn ask(&mut self, client: (u16, &SharedMemory<H>), number: u16, entry: &mut Entry) -> bool {
        let (index, memory) = client;
        while entry.next < entry.steps() {
            let Some(id) = self.free.pop() else {
                return false;
            };
            let (operation, steps) = self.operation(memory, entry);
            let request = Request::of(RequestId(id.into()), operation);
            let opcode = request.opcode();
            if self.front.push(&request).is_err() {
                self.free.push(id);
                return false;
            }
            self.slots[usize::from(id)] = Slot {
                client: index,
                entry: number,
                operation: opcode,
                used: true,
            };
            entry.next += steps;
            entry.parts += 1;
        }
        true
    }

    /// The next part of a request, and how many of its steps that is.
    #[inline]
    fn operation(&self, memory: &SharedMemory<H>, entry: &Entry) -> (Operation, u16) {
        let (kind, sector) = match entry.op {
            Op::Read { sector } => (TransferKind::Read, sector),
            Op::Write { sector } => (TransferKind::Write, sector),
            Op::Discard {
                sector,
                count,
                secure,
            } => {
                let discard = Discard {
                    sector: Sector(sector.0),
                    count: count.0,
                    secure,
                };
                return (Operation::Discard(discard), 1);
            }
            Op::Flush => {
                let request = match self.rules.flush {
                    FlushBy::Barrier => {
                        Request::transfer(RequestId(0), TransferKind::WriteBarrier, Sector(0), &[])
                    }
                    _ => None,
                };
                return (
                    request.map_or(Operation::Flush, |request| request.operation),
                    1,
                );
            }
        };
        let left = entry.steps() - entry.next;
        let sector = Sector(sector.0 + u64::from(entry.next) * (PAGE_SIZE / 512) as u64);
        let segment = |page: u16| {
            let bytes = entry.len as usize - usize::from(page) * PAGE_SIZE;
            let last = bytes.min(PAGE_SIZE).div_ceil(512).max(1) - 1;
            let gref = memory.gref(usize::from(entry.page + page));
            Segment::new(gref.unwrap_or_default(), 0, last as u8).unwrap_or_default()
        };
        let pages = usize::from(left);
        if pages > MAX_SEGMENTS
            && pages <= self.rules.indirect_segments.min(SEGMENTS_PER_INDIRECT_PAGE)
        {
            // The page behind the data.
            let place = usize::from(entry.page + entry.steps());
            for (number, page) in (entry.next..entry.steps()).enumerate() {
                memory.write(place * PAGE_SIZE + number * 8, segment(page).encode());
            }
            let mut grefs = [GrantRef(0); MAX_INDIRECT_PAGES];
            grefs[0] = memory.gref(place).unwrap_or_default();
            if let Some(indirect) = Indirect::new(kind, sector, left, grefs) {
                return (Operation::Indirect(indirect), left);
            }
        }
        let count = pages.min(MAX_SEGMENTS);
        let mut segments = [Segment::default(); MAX_SEGMENTS];
        for (number, place) in segments[..count].iter_mut().enumerate() {
            *place = segment(entry.next + number as u16);
        }
        match Request::transfer(RequestId(0), kind, sector, &segments[..count]) {
            Some(request) => (request.operation, count as u16),
            // No request has no segment.
            None => (Operation::Flush, left),
        }
    }
}

/// A ring, connected or not, with the queues that use it.
pub struct Link<H: Hypervisor> {
    wire: Option<Wire<H>>,
    clients: Vec<Client<H>>,
    /// The queue that gets free slots of the ring first.
    turn: usize,
    /// The disk was given up.
    dead: bool,
    /// An earlier backend may still use the queues' memory: none of it may be used for anything else.
    held: bool,
    /// The domain that has the queues' memory.
    backend: Option<(H, DomId)>,
}

impl<H: Hypervisor> Default for Link<H> {
    fn default() -> Self {
        Link {
            wire: None,
            clients: Vec::new(),
            turn: 0,
            dead: false,
            held: false,
            backend: None,
        }
    }
}

impl<H: Hypervisor> Link<H> {
    /// Adds a queue for up to `depth` requests at a time, or one that was closed and whose requests have all
    /// ended. Its memory comes of `memory`. Returns its number.
    pub fn open(
        &mut self,
        depth: usize,
        memory: impl FnOnce() -> Result<SharedMemory<H>, NotShared>,
    ) -> Result<usize, NotShared> {
        let unused = |client: &Client<H>| !client.is_open() && client.is_idle();
        if !self.held
            && let Some(number) = self.clients.iter().position(unused)
            && self.clients[number].reopen(depth)
        {
            return Ok(number);
        }
        let mut memory = memory()?;
        if let Some((hypervisor, backend)) = &self.backend {
            memory.grant(hypervisor, *backend)?;
        }
        let bytes = depth * size_of::<Entry>();
        let client = Client::new(memory, depth).map_err(|_| NotShared::NoMemory { bytes })?;
        let reserved = self.clients.try_reserve(1);
        reserved.map_err(|_| NotShared::NoMemory { bytes })?;
        self.clients.push(client);
        Ok(self.clients.len() - 1)
    }

    /// Returns a queue.
    pub fn client(&mut self, number: usize) -> &mut Client<H> {
        &mut self.clients[number]
    }

    /// Gives up the requests of a queue with that tag, or all, of which no backend has seen anything.
    pub fn cancel(&mut self, number: usize, tag: Option<Tag>) {
        if !self.held {
            self.clients[number].cancel(tag);
        }
    }

    /// Closes a queue. Its memory is used again when the backend has answered what it was asked.
    pub fn close(&mut self, number: usize) {
        self.clients[number].close(self.wire.is_some());
    }

    /// Takes a request of a queue, and asks for it if the ring has room.
    #[inline]
    pub fn submit(&mut self, number: usize, tag: Tag, op: Op, page: u16, len: u32) -> Submitted {
        if self.dead {
            return Submitted::Done(Err(IoError::Medium));
        }
        let client = &mut self.clients[number];
        let Some(entry) = client.begin(tag, op, page, len) else {
            return Submitted::Busy;
        };
        let asked = match &mut self.wire {
            Some(wire) if client.none_waiting() => {
                let (memory, request) = client.parts(entry);
                wire.ask((number as u16, memory), entry, request)
            }
            _ => false,
        };
        if !asked {
            client.wait(entry);
        }
        Submitted::Pending
    }

    /// Shows the backend what was put into the ring.
    #[inline]
    pub fn publish(&mut self) {
        if let Some(wire) = &mut self.wire {
            wire.publish();
        }
    }

    /// Takes the backend's responses, and asks for what has waited for room on the ring. Queues that have
    /// completions are woken.
    #[inline]
    pub fn collect(&mut self) -> Result<(), Lie> {
        // A ring on which the backend has lied is not looked at again.
        let Some(wire) = self.wire.as_mut().filter(|_| !self.dead) else {
            return Ok(());
        };
        let mut any = false;
        while let Some(response) = wire.front.take()? {
            any = true;
            let id = response.id;
            let slot = usize::try_from(id.0).ok();
            let slot = slot.and_then(|slot| wire.slots.get_mut(slot));
            let slot = slot.filter(|slot| slot.used).ok_or(Lie::Unasked(id))?;
            if response.operation != slot.operation {
                return Err(Lie::Operation {
                    answered: response.operation,
                    asked: slot.operation,
                });
            }
            let outcome = match response.status {
                Status::Okay => Ok(()),
                Status::Error => Err(IoError::Medium),
                Status::NotSupported => Err(IoError::NotSupported),
                Status::Other(code) => return Err(Lie::Status(code)),
            };
            slot.used = false;
            wire.free.push(id.0 as u16);
            self.clients[usize::from(slot.client)].answered(slot.entry, outcome);
        }
        if any {
            self.ask_waiting();
        }
        Ok(())
    }

    /// Asks the backend to notify of its next response. True if there is one already.
    #[inline]
    pub fn final_check(&mut self) -> Result<bool, Lie> {
        match &mut self.wire {
            Some(wire) if !self.dead => Ok(wire.front.final_check()?),
            _ => Ok(false),
        }
    }

    /// Asks for the requests that wait, as far as the ring has room. The queues have their turns.
    fn ask_waiting(&mut self) {
        let Some(wire) = &mut self.wire else {
            return;
        };
        let count = self.clients.len();
        for step in 0..count {
            let number = (self.turn + step) % count;
            let client = &mut self.clients[number];
            while let Some(entry) = client.next_waiting() {
                let (memory, request) = client.parts(entry);
                if !wire.ask((number as u16, memory), entry, request) {
                    client.wait_first(entry);
                    self.turn = number + 1;
                    wire.publish();
                    return;
                }
            }
        }
        wire.publish();
    }

    /// Lets a backend have the memory of all queues.
    pub fn grant(&mut self, hypervisor: &H, backend: DomId) -> Result<(), NotShared> {
        self.backend = Some((hypervisor.clone(), backend));
        for client in &mut self.clients {
            client.memory().grant(hypervisor, backend)?;
        }
        Ok(())
    }

    /// Ends the grants of the queues' memory. False if the backend still uses some of it.
    pub fn revoke(&mut self) -> bool {
        self.backend = None;
        let mut all = true;
        for client in &mut self.clients {
            all &= client.memory().revoke();
        }
        self.held = !all;
        all
    }

    /// Uses a ring that the backend has connected to: asks again for what an earlier one has not answered.
    pub fn connect(&mut self, wire: Wire<H>) {
        self.wire = Some(wire);
        self.ask_waiting();
    }

    /// Gives up the ring. What was not answered waits for the next one.
    pub fn disconnect(&mut self) -> Option<Wire<H>> {
        let wire = self.wire.take()?;
        self.held = true;
        self.clients.iter_mut().for_each(Client::disconnected);
        Some(wire)
    }

    /// Fails everything, now and later.
    pub fn fail(&mut self) {
        self.dead = true;
        self.clients.iter_mut().for_each(Client::fail);
    }
}
