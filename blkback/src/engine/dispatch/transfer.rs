//! Begins reads and writes whose segments are in the request itself.

use super::super::data_path::PageAccess;
use super::super::inflight::Steps;
use super::{Begun, Dispatcher};
use bulkhead_ring::blkif::{RequestId, SlotSegments, Transfer, TransferKind};
use bulkhead_xen::Hypervisor;
use core::convert::Infallible;

impl<H: Hypervisor> Dispatcher<H> {
    #[inline(always)]
    pub(super) fn begin_transfer(
        &mut self,
        id: RequestId,
        transfer: &Transfer<SlotSegments<'_>>,
        page_access: &PageAccess<H>,
    ) -> Begun {
        let barrier = transfer.kind == TransferKind::WriteBarrier;
        if !self.has_room(transfer.segments.len(), page_access)
            || (barrier && self.inflight.in_flight() > 0)
        {
            return Begun::NotYet;
        }
        let is_empty = transfer.segments.is_empty();
        let steps = Steps::of_transfer(transfer.kind, transfer.sector, is_empty, self.fua);
        self.note_begin();
        let Some(tag) = self.inflight.begin(id, transfer.kind.opcode(), steps) else {
            debug_assert!(false, "`take` looked for a free place");
            return Begun::NotYet;
        };
        self.barrier = barrier;
        self.pages += transfer.segments.len();
        self.taken_pages += transfer.segments.len().max(1);
        let entry = self.inflight.get(tag);
        let segments = transfer.segments.iter().map(Ok::<_, Infallible>);
        let Ok(bytes) = self.pool.push(&mut entry.pages, segments);
        entry.bytes = bytes as u32;
        self.begun.push(tag.0 as u16);
        Begun::Yes
    }
}
