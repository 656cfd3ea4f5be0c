//! Reads and writes that are served as they come off the ring, without waiting for the rest of the sweep.

use super::super::data_path::PageAccess;
use super::super::inflight::Steps;
use super::{Begun, Dispatcher};
use bulkhead_grant::GrantAccess;
use bulkhead_images::{Op, Sector, Submitted, Tag};
use bulkhead_ring::blkif::{
    Blkif, Opcode, RequestId, SLOT_SIZE, SlotSegments, Transfer, TransferKind,
};
use bulkhead_xen::Hypervisor;

/// A read or a write, without flushes.
#[derive(Clone, Copy)]
pub struct PlainTransfer<'a> {
    /// The operation.
    pub op: Op,
    /// What is done with the granted pages: what the guest wants to read is written.
    pub access: GrantAccess,
    /// The segments, of which there is at least one.
    pub segments: SlotSegments<'a>,
    opcode: Opcode,
}

/// What became of a transfer that was handed to the device.
#[derive(Clone, Copy)]
pub struct Served {
    /// The bytes of its pages.
    pub bytes: usize,
    /// What the device said.
    pub submitted: Submitted,
}

/// Serves reads and writes as they come off the ring.
///
/// A trait, and not a closure: it has a place of use for each order in which requests are taken, and is inlined in all of them.
pub trait ServePlain<H: Hypervisor> {
    /// Hands a transfer to the device, which has that tag if the device keeps it. Returns `None` if it is to be begun like
    /// all others.
    fn serve(
        &mut self,
        tag: Tag,
        transfer: PlainTransfer<'_>,
        page_access: &mut PageAccess<H>,
    ) -> Option<Served>;
}

impl<'a> PlainTransfer<'a> {
    #[inline]
    fn of(transfer: &Transfer<SlotSegments<'a>>) -> Option<Self> {
        let sector = Sector(transfer.sector.0);
        let (op, access) = match transfer.kind {
            TransferKind::Read => (Op::Read { sector }, GrantAccess::ReadWrite),
            TransferKind::Write => (Op::write(sector), GrantAccess::ReadOnly),
            TransferKind::WriteBarrier | TransferKind::FlushAndWrite => return None,
        };
        Some(PlainTransfer {
            op,
            access,
            segments: transfer.segments,
            opcode: transfer.kind.opcode(),
        })
    }
}

impl<H: Hypervisor> Dispatcher<H> {
    /// Begins the request in a slot of the ring's format, wherever that was copied to. A transfer is offered to `serve`
    /// first.
    #[inline(always)]
    pub(super) fn begin(
        &mut self,
        slot: &[u8; SLOT_SIZE],
        format: Blkif,
        page_access: &mut PageAccess<H>,
        serve: &mut impl ServePlain<H>,
    ) -> Begun {
        match format.view_transfer(slot) {
            Some((id, transfer)) => match self.serve_plain(id, &transfer, page_access, serve) {
                true => Begun::Yes,
                false => self.begin_transfer(id, &transfer, page_access),
            },
            None => self.begin_other(format.view_request(slot), page_access),
        }
    }

    /// Offers a transfer to `serve`. Returns false if it is to be begun like all others.
    #[inline(always)]
    pub(super) fn serve_plain(
        &mut self,
        id: RequestId,
        transfer: &Transfer<SlotSegments<'_>>,
        page_access: &mut PageAccess<H>,
        serve: &mut impl ServePlain<H>,
    ) -> bool {
        let Some(plain) = PlainTransfer::of(transfer) else {
            return false;
        };
        // There is to be room for it, should the device keep it.
        if plain.segments.len() > self.pool.free() - self.reserved {
            return false;
        }
        let tag = self.inflight.next_place();
        let Some(Served { bytes, submitted }) = serve.serve(tag, plain, page_access) else {
            return false;
        };
        match submitted {
            Submitted::Done(outcome) => {
                page_access.count_found(plain.segments.len());
                self.conclude(id, plain.opcode, bytes, outcome);
            }
            Submitted::Pending => {
                self.keep(id, plain, None, page_access);
            }
            Submitted::Busy => {
                if let Some(tag) = self.keep(id, plain, Some(plain.op), page_access) {
                    self.inflight.wait_for_device(tag);
                }
            }
        }
        true
    }

    /// Begins a request that the device has, or is too busy for. `op` is what is to be done still.
    #[cold]
    fn keep(
        &mut self,
        id: RequestId,
        plain: PlainTransfer<'_>,
        op: Option<Op>,
        page_access: &mut PageAccess<H>,
    ) -> Option<Tag> {
        let steps = Steps {
            op,
            ..Steps::default()
        };
        self.note_begin();
        let tag = self.inflight.begin(id, plain.opcode, steps)?;
        let entry = self.inflight.get(tag);
        for segment in plain.segments.iter() {
            let fits = self.pool.push(&mut entry.pages, segment);
            debug_assert!(fits, "room was looked for");
            entry.bytes += segment.len() as u32;
        }
        page_access.keep_mapped(&mut self.pool, &entry.pages, plain.access);
        Some(tag)
    }
}
