//! Begins indirect requests, once the segments of all those of a sweep are fetched together.

use super::super::data_path::PageAccess;
use super::super::indirect::IndirectFault;
use super::super::inflight::Steps;
use super::super::pages::Pages;
use super::{Begun, Dispatcher};
use bulkhead_images::Tag;
use bulkhead_ring::blkif::{Indirect, Response, SlotRequest, Status};
use bulkhead_xen::Hypervisor;

impl<H: Hypervisor> Dispatcher<H> {
    pub(super) fn begin_indirect(
        &mut self,
        request: &SlotRequest<'_>,
        indirect: &Indirect,
        page_access: &mut PageAccess<H>,
    ) -> Begun {
        let segments = indirect.segments();
        if segments > self.indirect_segments {
            return self.refuse(request, Status::Error);
        }
        if !self.has_room(segments, page_access) {
            return Begun::NotYet;
        }
        let Some(place) = page_access.queue_descriptors(indirect) else {
            // The next sweep starts with all room for descriptor pages.
            return Begun::NotYet;
        };
        let steps = Steps::of_transfer(indirect.kind, indirect.sector, false, false);
        self.note_begin();
        let Some(tag) = self.inflight.begin(request.id, request.opcode(), steps) else {
            return self.refuse(request, Status::Error);
        };
        self.pages += segments;
        self.taken_pages += segments;
        self.reserved += segments;
        self.fetching.push((tag, place));
        self.stats.indirect.add(1);
        Begun::Yes
    }

    /// Fetches the segments of indirect requests, all in one hypercall, and checks them.
    pub(super) fn begin_fetched(&mut self, page_access: &mut PageAccess<H>) {
        page_access.fetch_descriptors();
        for index in 0..self.fetching.len() {
            let (tag, place) = self.fetching[index];
            let entry = self.inflight.get(tag);
            match page_access.read_descriptors(place, &mut self.pool, &mut entry.pages) {
                Ok(bytes) => {
                    entry.bytes = bytes as u32;
                    self.begun.push(tag.0 as u16);
                }
                Err(fault) => self.refuse_indirect(tag, fault),
            }
        }
        page_access.clear_descriptors();
        self.fetching.clear();
        self.reserved = 0;
    }

    /// Refuses an indirect request whose segments cannot be read.
    #[cold]
    fn refuse_indirect(&mut self, tag: Tag, fault: IndirectFault) {
        let entry = self.inflight.get(tag);
        let (id, operation) = (entry.id, entry.opcode);
        let mut pages = core::mem::replace(&mut entry.pages, Pages::EMPTY);
        self.pool.drain(&mut pages, |_| ());
        self.inflight.end(tag);
        self.journal.answer(tag, self.ring.answered());
        self.error_log
            .log(format_args!("a malformed indirect request: {fault}"));
        let status = Status::Error;
        self.answer_refused(&Response {
            id,
            operation,
            status,
        });
    }
}
