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
use core::convert::Infallible;

/// A read or a write, without flushes.
#[derive(Clone, Copy)]
pub struct PlainTransfer<'a> {
    sector: Sector,
    is_write: bool,
    /// The segments, of which there is at least one.
    pub segments: SlotSegments<'a>,
}

/// The outcome of handing a transfer to the device.
#[derive(Clone, Copy)]
pub struct Served {
    /// The bytes of its pages.
    pub bytes: usize,
    /// The device's answer.
    pub submitted: Submitted,
}

/// Serves reads and writes as they come off the ring.
pub trait ServePlain<H: Hypervisor> {
    /// Hands a transfer to the device, under that tag if the device keeps it. Returns `None` if the transfer is to be
    /// begun like all others.
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
        let is_write = match transfer.kind {
            TransferKind::Read => false,
            TransferKind::Write => true,
            TransferKind::WriteBarrier | TransferKind::FlushAndWrite => return None,
        };
        Some(PlainTransfer {
            sector: Sector(transfer.sector.0),
            is_write,
            segments: transfer.segments,
        })
    }

    /// Returns the operation. It is made only where it is needed: nothing of its parts has to be in memory before.
    #[inline(always)]
    pub fn op(&self) -> Op {
        match self.is_write {
            true => Op::write(self.sector),
            false => Op::Read {
                sector: self.sector,
            },
        }
    }

    /// Returns the access to the granted pages: a read by the guest writes to them.
    #[inline(always)]
    pub fn access(&self) -> GrantAccess {
        match self.is_write {
            true => GrantAccess::ReadOnly,
            false => GrantAccess::ReadWrite,
        }
    }

    #[inline(always)]
    fn opcode(&self) -> Opcode {
        match self.is_write {
            true => Opcode::WRITE,
            false => Opcode::READ,
        }
    }
}

impl<H: Hypervisor> Dispatcher<H> {
    /// Begins the request in a slot of the ring's format, wherever the slot was copied to. A transfer is offered to
    /// `serve` first.
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
                Some(begun) => begun,
                None => self.begin_transfer(id, &transfer, page_access),
            },
            None => self.begin_other(format.view_request(slot), page_access),
        }
    }

    /// Begins such a request without offering it to `serve`.
    #[cfg(feature = "recover")]
    pub(super) fn begin_later(
        &mut self,
        slot: &[u8; SLOT_SIZE],
        format: Blkif,
        page_access: &mut PageAccess<H>,
    ) -> Begun {
        match format.view_transfer(slot) {
            Some((id, transfer)) => self.begin_transfer(id, &transfer, page_access),
            None => self.begin_other(format.view_request(slot), page_access),
        }
    }

    /// Offers a transfer to `serve`. Returns `None` if it is to be begun like all others.
    #[inline(always)]
    pub(super) fn serve_plain(
        &mut self,
        id: RequestId,
        transfer: &Transfer<SlotSegments<'_>>,
        page_access: &mut PageAccess<H>,
        serve: &mut impl ServePlain<H>,
    ) -> Option<Begun> {
        let plain = PlainTransfer::of(transfer)?;
        // There is to be room for it, should the device keep it.
        if plain.segments.len() > self.pool.free() - self.reserved {
            return None;
        }
        let tag = self.inflight.next_place();
        let Served { bytes, submitted } = serve.serve(tag, plain, page_access)?;
        let PlainTransfer {
            sector,
            is_write,
            segments,
        } = plain;
        self.taken_pages += segments.len();
        match submitted {
            Submitted::Done(outcome) => {
                page_access.count_found(segments.len());
                self.conclude(id, plain.opcode(), bytes, outcome);
                return Some(Begun::Served);
            }
            Submitted::Pending => self.keep(id, (sector, is_write), segments, false, page_access),
            Submitted::Busy => self.keep(id, (sector, is_write), segments, true, page_access),
        }
        Some(Begun::Yes)
    }

    /// Begins a request that the device keeps, or is too `busy` for. Gets the transfer in parts: as a whole, it would
    /// be written to memory before it is known whether this function is called.
    #[cold]
    #[inline(never)]
    fn keep(
        &mut self,
        id: RequestId,
        (sector, is_write): (Sector, bool),
        segments: SlotSegments<'_>,
        busy: bool,
        page_access: &mut PageAccess<H>,
    ) {
        let plain = PlainTransfer {
            sector,
            is_write,
            segments,
        };
        let steps = Steps {
            op: busy.then(|| plain.op()),
            ..Steps::default()
        };
        self.note_begin();
        let Some(tag) = self.inflight.begin(id, plain.opcode(), steps) else {
            return;
        };
        let entry = self.inflight.get(tag);
        let segments = plain.segments.iter().map(Ok::<_, Infallible>);
        let Ok(bytes) = self.pool.push(&mut entry.pages, segments);
        entry.bytes = bytes as u32;
        page_access.keep_mapped(&mut self.pool, &entry.pages, plain.access());
        if busy {
            self.inflight.wait_for_device(tag);
        }
    }
}
