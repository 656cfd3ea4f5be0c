//! Requests and the slots that they lie in.

#![allow(dead_code, reason = "each test file uses a part of it")]

use bulkhead_ring::Format;
use bulkhead_ring::blkif::*;

/// All there are.
pub const ABIS: [Abi; 2] = [Abi::X86_64, Abi::X86_32];

/// A request as it lies on the ring.
pub fn encode(abi: Abi, request: &Request) -> [u8; SLOT_SIZE] {
    let mut slot = [0; SLOT_SIZE];
    Blkif::new(abi).encode_request(request, &mut slot);
    slot
}

/// What a slot says.
pub fn decode(abi: Abi, slot: &[u8; SLOT_SIZE]) -> Result<Request, Malformed> {
    Blkif::new(abi).decode_request(slot)
}
