//! The messages of the block protocol (`io/blkif.h`), in the layouts of its ABIs.
//!
//! A slot's private copy goes in, a typed [`Request`] or a [`Malformed`] that can be answered
//! comes out. Nothing past this module sees raw bytes.
//!
//! ```
//! use bulkhead_ring::Format;
//! use bulkhead_ring::blkif::{Abi, Blkif, Fault, Opcode, RequestId, Status};
//!
//! let mut slot = [0; 112];
//! slot[0] = 77; // no such operation
//! slot[8] = 5; // the identifier's lowest byte in the 64-bit layout
//! let malformed = Blkif::new(Abi::X86_64).decode_request(&slot).unwrap_err();
//! assert_eq!(malformed.fault, Fault::UnknownOperation(Opcode(77)));
//! let response = malformed.response();
//! assert_eq!((response.id, response.status), (RequestId(5), Status::NotSupported));
//! ```

mod abi;
mod layout;
mod malformed;
mod request;
mod response;
mod segment;

pub use abi::{Abi, UnknownProtocol};
pub use malformed::{Fault, Malformed};
pub use request::{
    BlkifSector, Discard, Handle, Indirect, Opcode, Operation, Request, RequestId, SlotRequest,
    Transfer, TransferKind,
};
pub use response::{Response, Status};
pub use segment::{
    BadSegment, INDIRECT_SEGMENT_SIZE, SEGMENTS_PER_INDIRECT_PAGE, Segment, Segments, SlotSegments,
};

use crate::memory::RingMemory;
use crate::message::Format;

/// The most segments of a request without indirection (`BLKIF_MAX_SEGMENTS_PER_REQUEST`).
pub const MAX_SEGMENTS: usize = 11;
/// The most pages of segments of an indirect request (`BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST`).
pub const MAX_INDIRECT_PAGES: usize = 8;
/// Bytes of a sector where the protocol counts in sectors.
pub const SECTOR_SIZE: usize = 512;
/// Bytes of the largest layout of a slot.
pub const SLOT_SIZE: usize = 112;
/// Bytes of the largest layout of a response.
pub const RESPONSE_SIZE: usize = 16;

/// The block protocol in one of its ABIs, chosen when a frontend connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blkif {
    abi: Abi,
}

impl Blkif {
    /// The protocol as a frontend of this ABI speaks it.
    pub const fn new(abi: Abi) -> Blkif {
        Blkif { abi }
    }

    /// The ABI.
    pub const fn abi(self) -> Abi {
        self.abi
    }

    /// Reads a request that moves data with segments of its own, the common case, from the private copy
    /// of a slot; `None` where [`view_request`](Self::view_request) has to say what it is.
    #[inline]
    pub fn view_transfer(
        self,
        slot: &[u8; SLOT_SIZE],
    ) -> Option<(RequestId, Transfer<SlotSegments<'_>>)> {
        match self.abi {
            Abi::X86_64 => layout::decode_transfer::<8>(slot),
            Abi::X86_32 => layout::decode_transfer::<4>(slot),
        }
    }

    /// Writes a transfer with segments of its own into an empty slot: as many as it has room for
    /// ([`MAX_SEGMENTS`]). Returns their number. It is the request that [`Request::transfer`] makes, which would hold
    /// all of that before.
    #[inline]
    pub fn encode_transfer(
        self,
        slot: &mut [u8; SLOT_SIZE],
        id: RequestId,
        place: (TransferKind, BlkifSector),
        segments: impl Iterator<Item = Segment>,
    ) -> usize {
        match self.abi {
            Abi::X86_64 => layout::encode_transfer::<8>(slot, id, place, segments),
            Abi::X86_32 => layout::encode_transfer::<4>(slot, id, place, segments),
        }
    }

    /// Reads a request from the private copy of a slot, and leaves its segments there.
    pub fn view_request(self, slot: &[u8; SLOT_SIZE]) -> Result<SlotRequest<'_>, Malformed> {
        match self.abi {
            Abi::X86_64 => layout::decode_request::<8>(slot),
            Abi::X86_32 => layout::decode_request::<4>(slot),
        }
    }
}

impl Format for Blkif {
    type Request = Request;
    type Response = Response;
    type Malformed = Malformed;
    type Slot = [u8; SLOT_SIZE];
    type ResponseSlot = [u8; RESPONSE_SIZE];

    #[inline]
    fn empty_slot(&self) -> Self::Slot {
        [0; SLOT_SIZE]
    }

    #[inline]
    fn request_size(&self) -> usize {
        self.abi.request_size()
    }

    #[inline]
    fn response_size(&self) -> usize {
        self.abi.response_size()
    }

    #[inline(always)]
    fn copy_request(&self, memory: &impl RingMemory, offset: usize, slot: &mut Self::Slot) {
        match self.abi {
            Abi::X86_64 => memory.read(offset, &mut slot[..Abi::X86_64.request_size()]),
            Abi::X86_32 => memory.read(offset, &mut slot[..Abi::X86_32.request_size()]),
        }
    }

    #[inline(always)]
    fn copy_response(
        &self,
        memory: &impl RingMemory,
        offset: usize,
        response: &Self::ResponseSlot,
    ) {
        match self.abi {
            Abi::X86_64 => memory.write(offset, &response[..Abi::X86_64.response_size()]),
            Abi::X86_32 => memory.write(offset, &response[..Abi::X86_32.response_size()]),
        }
    }

    #[inline]
    fn decode_request(&self, slot: &Self::Slot) -> Result<Request, Malformed> {
        self.view_request(slot).map(Request::from)
    }

    fn encode_request(&self, request: &Request, slot: &mut Self::Slot) {
        match self.abi {
            Abi::X86_64 => layout::encode_request::<8>(request, slot),
            Abi::X86_32 => layout::encode_request::<4>(request, slot),
        }
    }

    fn decode_response(&self, slot: &Self::ResponseSlot) -> Response {
        layout::decode_response(slot)
    }

    #[inline]
    fn encode_response(&self, response: &Response) -> Self::ResponseSlot {
        layout::encode_response(response)
    }
}
