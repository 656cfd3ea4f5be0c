//! The places of the fields. `ID` is the offset of the identifier: 8 in the 64-bit layout, 4 in the 32-bit one, which
//! has no padding before it. The offsets of all later fields depend on it.
//!
//! ```text
//!   0          1            2             ID  ID+8    ID+16        ID+18  ID+20
//!   operation  nr_segments  handle        id  sector  seg[11] ...                   READ, WRITE...
//!   operation  flag         handle        id  sector  nr_sectors                    DISCARD
//!   operation  indirect_op  nr_segments   id  sector  handle       pad    gref[8]   INDIRECT
//! ```

use super::malformed::{Fault, Malformed};
use super::request::{
    BlkifSector, Discard, Handle, Indirect, Opcode, Operation, Request, RequestId, SlotRequest,
    Transfer, TransferKind,
};
use super::response::{Response, Status};
use super::segment::{Segment, SlotSegments};
use super::{MAX_INDIRECT_PAGES, MAX_SEGMENTS, RESPONSE_SIZE, SLOT_SIZE};
use bulkhead_xen::GrantRef;

type Slot = [u8; SLOT_SIZE];

/// `BLKIF_DISCARD_SECURE`; the other bits of the flag have no meaning.
const DISCARD_SECURE: u8 = 1;

/// Returns `N` bytes of a slot. All offsets are constants or bounded counts well within it.
#[inline(always)]
fn bytes<const N: usize>(slot: &Slot, offset: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&slot[offset..offset + N]);
    bytes
}

#[inline(always)]
fn put<const N: usize>(slot: &mut Slot, offset: usize, bytes: [u8; N]) {
    slot[offset..offset + N].copy_from_slice(&bytes);
}

/// Parses a transfer whose segments are in the request itself. Returns `None` for other requests, and for malformed
/// ones.
#[inline]
pub(super) fn decode_transfer<const ID: usize>(
    slot: &Slot,
) -> Option<(RequestId, Transfer<SlotSegments<'_>>)> {
    let kind = match Opcode(slot[0]) {
        Opcode::READ => TransferKind::Read,
        Opcode::WRITE => TransferKind::Write,
        Opcode::WRITE_BARRIER => TransferKind::WriteBarrier,
        Opcode::FLUSH_DISKCACHE if slot[1] > 0 => TransferKind::FlushAndWrite,
        _ => return None,
    };
    let segments = segments::<ID>(slot).ok()?;
    if segments.is_empty() && kind != TransferKind::WriteBarrier {
        return None;
    }
    let transfer = Transfer {
        kind,
        sector: BlkifSector(u64::from_le_bytes(bytes(slot, ID + 8))),
        segments,
    };
    Some((RequestId(u64::from_le_bytes(bytes(slot, ID))), transfer))
}

/// Parses a request. Any bytes give a request or an error.
pub(super) fn decode_request<const ID: usize>(slot: &Slot) -> Result<SlotRequest<'_>, Malformed> {
    let id = RequestId(u64::from_le_bytes(bytes(slot, ID)));
    let opcode = Opcode(slot[0]);
    let sector = BlkifSector(u64::from_le_bytes(bytes(slot, ID + 8)));
    let mut handle = Handle(u16::from_le_bytes(bytes(slot, 2)));
    let malformed = |fault| Malformed {
        id,
        operation: opcode,
        fault,
    };
    let operation = match opcode {
        Opcode::FLUSH_DISKCACHE if slot[1] == 0 => Operation::Flush,
        Opcode::READ | Opcode::WRITE | Opcode::WRITE_BARRIER | Opcode::FLUSH_DISKCACHE => {
            match decode_transfer::<ID>(slot) {
                Some((_, transfer)) => Operation::Transfer(transfer),
                None => {
                    let fault = segments::<ID>(slot).err().unwrap_or(Fault::NoSegments);
                    return Err(malformed(fault));
                }
            }
        }
        Opcode::DISCARD => Operation::Discard(Discard {
            sector,
            count: u64::from_le_bytes(bytes(slot, ID + 16)),
            secure: slot[1] & DISCARD_SECURE != 0,
        }),
        Opcode::INDIRECT => {
            handle = Handle(u16::from_le_bytes(bytes(slot, ID + 16)));
            let indirect = indirect::<ID>(slot, sector).map_err(|fault| Malformed {
                id,
                operation: Opcode(slot[1]),
                fault,
            })?;
            Operation::Indirect(indirect)
        }
        unknown => return Err(malformed(Fault::UnknownOperation(unknown))),
    };
    Ok(Request {
        id,
        handle,
        operation,
    })
}

/// Returns the segments of a transfer, each of them checked.
#[inline]
fn segments<const ID: usize>(slot: &Slot) -> Result<SlotSegments<'_>, Fault> {
    let count = slot[1];
    let (all, _) = slot[ID + 16..].as_chunks();
    let segments = all.get(..count.into()).ok_or(Fault::TooManySegments {
        found: count.into(),
        most: MAX_SEGMENTS as u16,
    })?;
    SlotSegments::check(segments).map_err(|(number, error)| Fault::Segment { number, error })
}

fn indirect<const ID: usize>(slot: &Slot, sector: BlkifSector) -> Result<Indirect, Fault> {
    let kind = match Opcode(slot[1]) {
        Opcode::READ => TransferKind::Read,
        Opcode::WRITE => TransferKind::Write,
        other => return Err(Fault::IndirectOperation(other)),
    };
    let segments = u16::from_le_bytes(bytes(slot, 2));
    let grefs: [GrantRef; MAX_INDIRECT_PAGES] = core::array::from_fn(|number| {
        GrantRef(u32::from_le_bytes(bytes(slot, ID + 20 + number * 4)))
    });
    match Indirect::new(kind, sector, segments, grefs) {
        Some(indirect) => Ok(indirect),
        None if segments == 0 => Err(Fault::NoSegments),
        None => Err(Fault::TooManySegments {
            found: segments,
            most: Indirect::MAX_SEGMENTS as u16,
        }),
    }
}

/// Writes a transfer with segments of its own into a slot of zeros, for the frontend's only device: up to
/// [`MAX_SEGMENTS`] segments. Returns their number.
#[inline]
pub(super) fn encode_transfer<const ID: usize>(
    slot: &mut Slot,
    id: RequestId,
    (kind, sector): (TransferKind, BlkifSector),
    segments: impl Iterator<Item = Segment>,
) -> usize {
    put(slot, ID, id.0.to_le_bytes());
    put(slot, ID + 8, sector.0.to_le_bytes());
    let (places, _) = slot[ID + 16..].as_chunks_mut();
    let mut count = 0;
    for (place, segment) in places[..MAX_SEGMENTS].iter_mut().zip(segments) {
        *place = segment.encode();
        count += 1;
    }
    (slot[0], slot[1]) = (kind.opcode().0, count);
    count.into()
}

/// Writes a request into a slot of zeros.
pub(super) fn encode_request<const ID: usize>(request: &Request, slot: &mut Slot) {
    let handle = request.handle.0.to_le_bytes();
    slot[0] = request.opcode().0;
    put(slot, ID, request.id.0.to_le_bytes());
    let mut sector = BlkifSector(0);
    match &request.operation {
        Operation::Transfer(transfer) => {
            sector = transfer.sector;
            put(slot, 2, handle);
            let segments = transfer.segments.iter().copied();
            encode_transfer::<ID>(slot, request.id, (transfer.kind, sector), segments);
        }
        Operation::Flush => put(slot, 2, handle),
        Operation::Discard(discard) => {
            sector = discard.sector;
            slot[1] = if discard.secure { DISCARD_SECURE } else { 0 };
            put(slot, 2, handle);
            put(slot, ID + 16, discard.count.to_le_bytes());
        }
        Operation::Indirect(indirect) => {
            sector = indirect.sector;
            slot[0] = Opcode::INDIRECT.0;
            slot[1] = request.opcode().0;
            put(slot, 2, (indirect.segments() as u16).to_le_bytes());
            put(slot, ID + 16, handle);
            for (number, gref) in indirect.pages().iter().enumerate() {
                put(slot, ID + 20 + number * 4, gref.0.to_le_bytes());
            }
        }
    }
    put(slot, ID + 8, sector.0.to_le_bytes());
}

/// Parses a response, whose bytes are the same in every ABI, but for the padding at the end.
pub(super) fn decode_response(slot: &[u8; RESPONSE_SIZE]) -> Response {
    let [i0, i1, i2, i3, i4, i5, i6, i7, operation, _, s0, s1, ..] = *slot;
    Response {
        id: RequestId(u64::from_le_bytes([i0, i1, i2, i3, i4, i5, i6, i7])),
        operation: Opcode(operation),
        status: Status::from_code(i16::from_le_bytes([s0, s1])),
    }
}

/// Returns the bytes of a response. Its padding is zeros, so that it shows the guest nothing.
#[inline]
pub(super) fn encode_response(response: &Response) -> [u8; RESPONSE_SIZE] {
    let [i0, i1, i2, i3, i4, i5, i6, i7] = response.id.0.to_le_bytes();
    let [s0, s1] = response.status.code().to_le_bytes();
    let operation = response.operation.0;
    [
        i0, i1, i2, i3, i4, i5, i6, i7, operation, 0, s0, s1, 0, 0, 0, 0,
    ]
}
