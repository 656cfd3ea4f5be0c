//! The guest that does as a script says. Its pages and grant references are the same for each input, so that to reset
//! them is cheap, and a script can name any of them.

use super::disk::Mark;
use bulkhead_blkback_testkit::{Guest, POISON, Script, World};
use bulkhead_ring::blkif::{
    Abi, Blkif, BlkifSector, Discard, Indirect, MAX_INDIRECT_PAGES, Operation, RESPONSE_SIZE,
    Request, RequestId, SEGMENTS_PER_INDIRECT_PAGE, SLOT_SIZE, Segment, TransferKind,
};
use bulkhead_ring::{Format, Index, RingMemory, SharedPages, ring_slots};
use bulkhead_xen::abi::grant_table::EntryFlags;
use bulkhead_xen::{DomId, Gfn, GrantRef, Hypervisor, PAGE_SIZE, Port};
use bulkhead_xen_sim::SimDomain;
use std::collections::HashSet;
use std::ptr::NonNull;

/// The guest's pages, in this order: the ring, the pages that list the segments of indirect requests, data.
const RING_PAGES: usize = 4;
const INDEX_PAGES: usize = 2;
const DATA_PAGES: usize = 18;
const PAGES: usize = RING_PAGES + INDEX_PAGES + DATA_PAGES;
/// The first of the pages that are granted read-only; all later ones are, too.
const READ_ONLY_FROM: usize = PAGES - 4;
/// The grant reference of the first page; those of the others follow.
const FIRST_GRANT: u32 = 8;
/// The offset of the first slot of a ring, in bytes (`ring.h`: four indices and 48 reserved bytes).
const RING_HEADER: usize = 64;

const KINDS: [TransferKind; 5] = [
    TransferKind::Read,
    TransferKind::Read,
    TransferKind::Write,
    TransferKind::FlushAndWrite,
    TransferKind::WriteBarrier,
];
const INDICES: [Index; 3] = [
    Index::RequestProducer,
    Index::RequestEvent,
    Index::ResponseEvent,
];

pub struct HostileGuest {
    domain: SimDomain,
    backend: DomId,
    memory: NonNull<u8>,
    abi: Abi,
    ring_pages: usize,
    port: Option<Port>,
    /// The request producer of this guest, which may not be published yet.
    produced: u32,
    /// False once the guest has done something that no well-behaved frontend does.
    good: bool,
    /// The requests in flight, as long as the guest is well-behaved.
    asked: HashSet<RequestId>,
    /// The index of the next response to take.
    taken: u32,
    next_id: u64,
}

impl HostileGuest {
    pub fn new(world: &'static World) -> HostileGuest {
        let domain = Guest::with_memory(world, PAGES + 64).domain;
        HostileGuest {
            backend: world.storage.id(),
            memory: domain.alloc_pages(PAGES),
            domain,
            abi: Abi::X86_64,
            ring_pages: 1,
            port: None,
            produced: 0,
            good: true,
            asked: HashSet::new(),
            taken: 0,
            next_id: 0,
        }
    }

    pub fn id(&self) -> DomId {
        self.domain.id()
    }

    /// Starts over: with an empty ring, data pages full of [`POISON`], and all pages granted to the backend.
    pub fn reset(&mut self, abi: Abi, ring_pages: usize) {
        (self.abi, self.ring_pages) = (abi, ring_pages);
        (self.produced, self.taken, self.next_id) = (0, 0, 0);
        self.good = true;
        self.asked.clear();
        let data = (RING_PAGES + INDEX_PAGES) * PAGE_SIZE;
        // SAFETY: the guest's own pages, which nothing refers into; no other thread runs.
        unsafe {
            self.memory.write_bytes(0, data);
            let data = self.memory.add(data);
            data.write_bytes(POISON, DATA_PAGES * PAGE_SIZE);
        }
        for page in 0..PAGES {
            self.grant(page, self.backend, EntryFlags::empty());
        }
        // Both ends ask to be notified of the first request or response.
        let ring = self.ring();
        ring.store(Index::RequestEvent, 1);
        ring.store(Index::ResponseEvent, 1);
    }

    fn grant(&self, page: usize, to: DomId, more: EntryFlags) {
        // SAFETY: one of the pages.
        let address = unsafe { self.memory.add(page * PAGE_SIZE) };
        let mut flags = EntryFlags::PERMIT_ACCESS | more;
        flags.set(
            EntryFlags::READONLY,
            more.contains(EntryFlags::READONLY) || page >= READ_ONLY_FROM,
        );
        self.domain
            .grant(gref(page), to, self.domain.frame_of(address), flags);
    }

    /// Notes that the guest has done something that no well-behaved frontend does: from here on, its responses are not
    /// checked.
    pub fn misbehaves(&mut self) {
        self.good = false;
    }

    /// Sets the ring's indices as if the ring had been in use before. Returns whether the backend may refuse the queue,
    /// because the indices may contradict each other.
    pub fn used_before(&mut self, script: &mut Script<'_>) -> bool {
        let (ring, answered) = (self.ring(), script.number() as u32);
        (self.produced, self.taken) = (answered, answered);
        let good = script.below(2) == 0;
        if !good {
            self.produced = script.number() as u32;
        }
        ring.store(Index::ResponseProducer, answered);
        ring.store(Index::RequestProducer, self.produced);
        ring.store(Index::RequestEvent, self.produced.wrapping_add(1));
        ring.store(Index::ResponseEvent, answered.wrapping_add(1));
        !good
    }

    pub fn ring_refs(&self) -> Vec<GrantRef> {
        (0..self.ring_pages).map(gref).collect()
    }

    pub fn open_port(&mut self) -> Port {
        let port = self.domain.hypervisor().alloc_unbound(self.backend);
        *self.port.insert(port.expect("a free port"))
    }

    pub fn close_port(&mut self) {
        if let Some(port) = self.port.take() {
            let closed = self.domain.hypervisor().close_port(port);
            closed.expect("the port is open");
        }
    }

    pub fn grants_in_use(&self) -> usize {
        self.domain.grants_in_use()
    }

    fn ring(&self) -> SharedPages {
        // SAFETY: domain memory stays mapped as long as the machine.
        let ring = unsafe { SharedPages::new(self.memory, self.ring_pages) };
        ring.expect("aligned pages")
    }

    fn slots(&self) -> u32 {
        let size = Blkif::new(self.abi).slot_size();
        ring_slots(self.ring_pages * PAGE_SIZE, size)
    }

    /// Publishes the requests, notifies the backend, lets it run, and takes the responses.
    pub fn show(&mut self, world: &World) {
        self.publish();
        self.notify();
        world.run_without_xenstored();
        self.take_answers();
    }

    fn publish(&self) {
        self.ring().store(Index::RequestProducer, self.produced);
    }

    fn notify(&self) {
        if let Some(port) = self.port {
            // Its other end may be gone.
            let _ = self.domain.hypervisor().notify(port);
        }
    }

    /// Does one thing that a guest can do by itself.
    pub fn act(&mut self, script: &mut Script<'_>) {
        match script.below(16) {
            0..5 => self.transfer(script),
            5..8 => self.indirect(script),
            8 => self.push(Operation::Flush),
            9 => {
                let discard = Discard {
                    sector: BlkifSector(script.number()),
                    count: script.number(),
                    secure: script.below(2) == 0,
                };
                self.push(Operation::Discard(discard));
            }
            10 | 11 => {
                self.misbehaves();
                let mut slot: [u8; SLOT_SIZE] = std::array::from_fn(|_| script.byte());
                slot[0] %= 8;
                self.put(&slot);
            }
            12 => {
                self.misbehaves();
                let (index, value) = (script.pick(&INDICES), script.number() as u32);
                self.ring().store(index, value);
                if index == Index::RequestProducer {
                    self.produced = value;
                }
            }
            13 => {
                self.misbehaves();
                let offset = script.number() as usize % (PAGES * PAGE_SIZE);
                // SAFETY: within the guest's own pages, which nothing refers into.
                unsafe { self.memory.add(offset).write_volatile(script.byte()) };
            }
            14 => self.change_a_grant(script),
            _ => match script.below(2) {
                0 => self.notify(),
                _ => self.publish(),
            },
        }
    }

    fn change_a_grant(&mut self, script: &mut Script<'_>) {
        self.misbehaves();
        let page = script.below(PAGES);
        match script.below(5) {
            0 => self.domain.revoke(gref(page)),
            1 => self.grant(page, self.backend, EntryFlags::READONLY),
            2 => self.grant(page, self.domain.id(), EntryFlags::empty()),
            3 => {
                let frame = Gfn(script.number());
                let flags = EntryFlags::PERMIT_ACCESS;
                self.domain.grant(gref(page), self.backend, frame, flags);
            }
            _ => self.grant(page, self.backend, EntryFlags::empty()),
        }
    }

    /// Returns up to `count` segments, any of which may lie in the ring itself or in a page that was never granted.
    fn segments(&mut self, count: usize, script: &mut Script<'_>) -> Vec<Segment> {
        let first = script.below(PAGES);
        // Most are plain: whole pages of data, one after the other.
        let plain = script.below(4) > 0;
        let page = |number: usize| RING_PAGES + INDEX_PAGES + (first + number) % DATA_PAGES;
        if plain {
            return (0..count)
                .map(|number| Segment::whole(gref(page(number))))
                .collect();
        }
        let good = &mut self.good;
        let any = |number| {
            let any = script.byte();
            let (from, to) = (any & 7, any >> 3 & 7);
            let page = match any >> 6 {
                3 => {
                    // Any page: one of the ring, perhaps, or one that was never granted.
                    *good = false;
                    usize::from(script.byte()) % (PAGES + 8)
                }
                _ => page(number),
            };
            Segment::new(gref(page), from.min(to), from.max(to)).ok()
        };
        (0..count).filter_map(any).collect()
    }

    fn transfer(&mut self, script: &mut Script<'_>) {
        let (kind, sector) = (script.pick(&KINDS), script.number() % 80);
        let count = few_or(script, 11);
        let segments = self.segments(count, script);
        let id = self.new_id();
        if let Some(request) = Request::transfer(id, kind, BlkifSector(sector), &segments) {
            self.put_request(&request);
        }
    }

    fn indirect(&mut self, script: &mut Script<'_>) {
        let (kind, sector) = (script.pick(&KINDS), script.number());
        let count = few_or(script, 600);
        let listed = count.min(INDEX_PAGES * SEGMENTS_PER_INDIRECT_PAGE);
        let segments = self.segments(listed, script);
        for (number, segment) in segments.iter().enumerate() {
            let at = RING_PAGES * PAGE_SIZE + number * 8;
            let bytes = segment.encode();
            // SAFETY: within the index pages, which nothing refers into.
            unsafe { self.memory.add(at).cast::<[u8; 8]>().write_volatile(bytes) };
        }
        let mut pages = [GrantRef(0); MAX_INDIRECT_PAGES];
        for (number, page) in pages.iter_mut().enumerate() {
            *page = gref(RING_PAGES + number % INDEX_PAGES);
        }
        if let Some(indirect) = Indirect::new(kind, BlkifSector(sector), count as u16, pages) {
            self.push(Operation::Indirect(indirect));
        }
    }

    fn new_id(&mut self) -> RequestId {
        self.next_id += 1;
        RequestId(self.next_id << 32 | 0x5ead)
    }

    fn push(&mut self, operation: Operation) {
        let id = self.new_id();
        self.put_request(&Request::of(id, operation));
    }

    /// Puts a request into the ring, if there is room.
    fn put_request(&mut self, request: &Request) {
        // A response that is not taken occupies its slot.
        self.take_answers();
        let free_from = match self.good {
            true => self.taken,
            false => self.ring().load(Index::ResponseProducer),
        };
        if self.produced.wrapping_sub(free_from) >= self.slots() {
            return;
        }
        let format = Blkif::new(self.abi);
        let mut slot = format.empty_slot();
        format.encode_request(request, &mut slot);
        self.asked.insert(request.id);
        self.put(&slot);
    }

    fn put(&mut self, slot: &[u8; SLOT_SIZE]) {
        let format = Blkif::new(self.abi);
        let size = format.slot_size();
        let at = RING_HEADER + (self.produced & (self.slots() - 1)) as usize * size;
        let len = format.request_size().next_multiple_of(4).min(size);
        self.ring().write(at, &slot[..len]);
        self.produced = self.produced.wrapping_add(1);
    }

    /// Takes the responses of a well-behaved guest, and checks that each is for a request in flight.
    fn take_answers(&mut self) {
        if !self.good {
            return;
        }
        let (ring, format) = (self.ring(), Blkif::new(self.abi));
        let answered = ring.load(Index::ResponseProducer);
        while self.taken != answered {
            let at = (self.taken & (self.slots() - 1)) as usize * format.slot_size();
            let mut slot = [0; RESPONSE_SIZE];
            let len = format.response_size().next_multiple_of(4);
            ring.read(RING_HEADER + at, &mut slot[..len]);
            let response = format.decode_response(&slot);
            let asked = self.asked.remove(&response.id);
            assert!(asked, "an answer to nothing: {response:?}");
            self.taken = self.taken.wrapping_add(1);
        }
        ring.store(Index::ResponseEvent, self.taken.wrapping_add(1));
    }

    /// Checks that no request of a well-behaved guest is in flight.
    pub fn assert_all_answered(&mut self) {
        self.take_answers();
        let left = self.asked.len();
        assert!(!self.good || left == 0, "{left} requests have no answer");
    }

    /// Checks that no sector of another image is in the guest's pages, by the first bytes of each sector: the backend
    /// moves whole sectors only.
    pub fn assert_has_none_of(&self, foreign: &HashSet<Mark>) {
        for at in (0..PAGES * PAGE_SIZE).step_by(512) {
            // SAFETY: within the guest's own pages, which nothing refers into.
            let mark = unsafe { self.memory.add(at).cast::<Mark>().read_volatile() };
            let own = mark == [POISON; 16] || mark == [0; 16];
            assert!(own || !foreign.contains(&mark), "bytes of another image");
        }
    }
}

/// Returns a count from 1 to 4, and sometimes one from 0 to `most`: the simulated Xen has to map the page of each
/// segment, which takes most of the time.
fn few_or(script: &mut Script<'_>, most: usize) -> usize {
    match script.byte() {
        few @ 0..224 => 1 + usize::from(few) % 4,
        _ => script.number() as usize % (most + 1),
    }
}

fn gref(page: usize) -> GrantRef {
    GrantRef(FIRST_GRANT + page as u32)
}
