//! Requests of a frontend, the pages that they name, and their answers.

use super::link::Link;
use bulkhead_grant::{Grant, GrantAccess};
use bulkhead_ring::Overrun;
use bulkhead_ring::blkif::{
    BlkifSector, Indirect, MAX_INDIRECT_PAGES, MAX_SEGMENTS, Opcode, Operation, Request, RequestId,
    SEGMENTS_PER_INDIRECT_PAGE, SLOT_SIZE, Segment, Status, TransferKind,
};
use bulkhead_xen::{GrantRef, PAGE_SIZE};
use bulkhead_xen_sim::{SimDomain, SimVcpu};
use std::ptr::NonNull;

/// The byte that fills pages before anything is read into them.
pub const POISON: u8 = 0xee;

/// A granted page of the guest.
pub struct Page {
    /// The page's address.
    pub memory: NonNull<u8>,
    /// Its grant to the backend.
    pub grant: Grant<SimVcpu>,
    /// True if it is not to be granted again.
    once: bool,
}

impl Page {
    /// Returns the grant's reference.
    pub fn gref(&self) -> GrantRef {
        self.grant.gref()
    }

    /// Writes bytes into the page.
    pub fn fill(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= PAGE_SIZE);
        let from = NonNull::from(bytes).cast();
        // SAFETY: within the guest's own page, which nothing refers into; no other thread runs.
        unsafe {
            self.memory
                .add(offset)
                .copy_from_nonoverlapping(from, bytes.len())
        }
    }

    /// Returns the page's content.
    pub fn bytes(&self) -> Vec<u8> {
        // SAFETY: the guest's own page, which nothing refers into; no other thread runs.
        unsafe { self.memory.cast::<[u8; PAGE_SIZE]>().read() }.to_vec()
    }

    /// Ends the grant, which the backend must have let go of, and gives the memory back.
    pub fn end(self, domain: &SimDomain) {
        if let Err(in_use) = self.grant.end() {
            panic!("{in_use}: the backend holds on to a page of a request that it has answered");
        }
        domain.free_pages(self.memory, 1);
    }
}

/// A request without its answer.
#[derive(Default)]
pub(super) struct Pending {
    operation: Option<Opcode>,
    /// The data, then the pages of an indirect request.
    pub(super) pages: Vec<Page>,
    data_pages: usize,
    /// The offset of the data's first byte in the first page, and the number of bytes.
    offset: usize,
    len: usize,
}

/// A response of the backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The request that it is for.
    pub id: RequestId,
    /// The operation that it names.
    pub operation: Opcode,
    /// The outcome.
    pub status: Status,
    /// The content of the request's pages.
    pub data: Vec<u8>,
}

impl Link {
    /// Returns a page of data, granted to the backend.
    pub fn page(&mut self, access: GrantAccess) -> Page {
        if !self.style.persistent {
            return self.fresh_page(access);
        }
        let reused = self.pool.pop();
        reused.unwrap_or_else(|| Page {
            once: false,
            ..self.fresh_page(GrantAccess::ReadWrite)
        })
    }

    /// Returns a page that was not granted before and will not be again.
    pub fn fresh_page(&mut self, access: GrantAccess) -> Page {
        let memory = self.domain.alloc_page();
        let frame = self.domain.frame_of(memory);
        // SAFETY: the guest's own page, only accessed by volatile accesses.
        let grant = unsafe { self.grants.grant(self.backend, frame, access) };
        let grant = grant.expect("a free entry");
        let once = true;
        Page {
            memory,
            grant,
            once,
        }
    }

    /// Takes a page back that is not used any more.
    pub fn recycle(&mut self, page: Page) {
        // Where requests may name any page, another one may still be about this one; and a backend
        // that keeps pages mapped may keep any.
        if self.wild || (self.style.persistent && page.once) {
            self.kept.push(page);
        } else if self.style.persistent {
            self.pool.push(page);
        } else {
            page.end(&self.domain);
        }
    }

    /// Returns an id that no request has had.
    pub fn new_id(&mut self) -> RequestId {
        self.next_id += 1;
        RequestId(self.next_id << 32 | 0x5ead)
    }

    /// Puts a request into the ring, with pages that are kept until it is answered.
    pub fn push(&mut self, request: &Request, pages: Vec<Page>) {
        let pending = Pending {
            operation: Some(request.opcode()),
            data_pages: pages.len(),
            len: pages.len() * PAGE_SIZE,
            pages,
            ..Pending::default()
        };
        self.pending.insert(request.id, pending);
        self.ring.push(request).expect("room in the ring");
    }

    /// Puts bytes into the ring that need not be a request.
    pub fn push_slot(&mut self, slot: &[u8; SLOT_SIZE]) {
        self.wild = true;
        self.ring.push_slot(slot).expect("room in the ring");
    }

    /// Asks to read `sectors`.
    pub fn push_read(&mut self, sector: u64, sectors: usize) -> RequestId {
        self.push_transfer(TransferKind::Read, sector, sectors, &[])
    }

    /// Asks to write whole sectors.
    pub fn push_write(&mut self, sector: u64, data: &[u8]) -> RequestId {
        self.push_transfer(TransferKind::Write, sector, data.len() / 512, data)
    }

    /// Puts a flush into the ring.
    pub fn push_flush(&mut self) -> RequestId {
        let request = Request::flush(self.new_id());
        self.push(&request, Vec::new());
        request.id
    }

    /// Asks to move data. The place of the data in its pages depends on the sector, so that all layouts come up.
    pub fn push_transfer(
        &mut self,
        kind: TransferKind,
        sector: u64,
        sectors: usize,
        data: &[u8],
    ) -> RequestId {
        let first = (sector % 8) as usize;
        let count = (first + sectors).div_ceil(8);
        let access = match kind.is_write() {
            true => GrantAccess::ReadOnly,
            false => GrantAccess::ReadWrite,
        };
        let mut pages: Vec<Page> = (0..count).map(|_| self.page(access)).collect();
        let mut segments = Vec::new();
        for (number, page) in pages.iter().enumerate() {
            page.fill(0, &[POISON; PAGE_SIZE]);
            let from = if number == 0 { first } else { 0 };
            let to = (first + sectors - number * 8).min(8);
            let segment = Segment::new(page.gref(), from as u8, to as u8 - 1);
            segments.push(segment.expect("within the page"));
        }
        for (number, sector) in data.chunks(512).enumerate() {
            let at = first + number;
            pages[at / 8].fill(at % 8 * 512, sector);
        }
        let id = self.new_id();
        let request = if segments.len() <= MAX_SEGMENTS {
            Request::transfer(id, kind, BlkifSector(sector), &segments).expect("not too many")
        } else {
            let (indirect, index) = self.indirect(kind, sector, &segments);
            pages.extend(index);
            Request::of(id, Operation::Indirect(indirect))
        };
        let pending = Pending {
            operation: Some(request.opcode()),
            pages,
            data_pages: count,
            offset: first * 512,
            len: sectors * 512,
        };
        self.pending.insert(id, pending);
        self.ring.push(&request).expect("room in the ring");
        id
    }

    /// Puts segments into pages of their own.
    pub fn indirect(
        &mut self,
        kind: TransferKind,
        sector: u64,
        segments: &[Segment],
    ) -> (Indirect, Vec<Page>) {
        let mut grefs = [GrantRef(0); MAX_INDIRECT_PAGES];
        let mut pages = Vec::new();
        for (number, part) in segments.chunks(SEGMENTS_PER_INDIRECT_PAGE).enumerate() {
            let page = self.page(GrantAccess::ReadOnly);
            grefs[number] = page.gref();
            for (at, segment) in part.iter().enumerate() {
                page.fill(at * 8, &segment.encode());
            }
            pages.push(page);
        }
        let indirect = Indirect::new(kind, BlkifSector(sector), segments.len() as u16, grefs);
        (indirect.expect("not too many segments"), pages)
    }

    /// Returns the grants of all pages of requests without an answer.
    pub fn data_refs(&self) -> Vec<GrantRef> {
        let pages = self.pending.values().flat_map(|pending| &pending.pages);
        pages.map(Page::gref).collect()
    }

    /// Returns the places of the segments of indirect requests without an answer.
    pub fn index_addresses(&self) -> Vec<usize> {
        let index = |pending: &Pending| {
            let pages = &pending.pages[pending.data_pages..];
            let addresses = pages.iter().map(|page| page.memory.as_ptr().addr());
            addresses.collect::<Vec<_>>()
        };
        self.pending.values().flat_map(index).collect()
    }

    /// Returns the number of requests without an answer.
    pub fn outstanding(&self) -> usize {
        self.pending.len()
    }

    /// Takes the answers that have come.
    pub fn collect(&mut self) -> Vec<Answer> {
        let mut answers = Vec::new();
        let taken = self.collect_into(&mut answers);
        taken.expect("the backend answers what it was asked");
        answers
    }

    /// As [`collect`](Self::collect), for a frontend whose ring may hold anything.
    pub fn collect_whatever(&mut self) -> Vec<Answer> {
        self.wild = true;
        let mut answers = Vec::new();
        // Where the ring makes no sense any more, that is of the frontend's own making.
        let _ = self.collect_into(&mut answers);
        answers
    }

    fn collect_into(&mut self, answers: &mut Vec<Answer>) -> Result<(), Overrun> {
        loop {
            let Some(response) = self.ring.take()? else {
                if self.ring.final_check()? {
                    continue;
                }
                return Ok(());
            };
            let (id, operation, status) = (response.id, response.operation, response.status);
            let mut data = Vec::new();
            match self.pending.remove(&id) {
                Some(pending) => {
                    if let Some(asked) = pending.operation.filter(|_| !self.wild) {
                        assert_eq!(operation, asked, "the operation of an answer");
                    }
                    data = self.finish(pending);
                }
                None => assert!(self.wild, "an answer to nothing: {response:?}"),
            }
            answers.push(Answer {
                id,
                operation,
                status,
                data,
            });
        }
    }

    fn finish(&mut self, mut pending: Pending) -> Vec<u8> {
        let index = pending.pages.split_off(pending.data_pages);
        let whole: Vec<Vec<u8>> = pending.pages.iter().map(Page::bytes).collect();
        let whole = whole.concat();
        let (start, end) = (pending.offset, pending.offset + pending.len);
        // Less than a page on either side.
        let is_poison = |bytes: &[u8]| *bytes == [POISON; PAGE_SIZE][..bytes.len()];
        let untouched =
            pending.len == 0 || (is_poison(&whole[..start]) && is_poison(&whole[end..]));
        assert!(
            untouched || self.wild,
            "a byte outside of the segments was written"
        );
        for page in pending.pages.into_iter().chain(index) {
            self.recycle(page);
        }
        whole[start..end].to_vec()
    }
}
