//! The request parser.

use crate::heap;
use bulkhead_ring::Format;
use bulkhead_ring::blkif::{Abi, Blkif, Operation, SLOT_SIZE, Segment, Status};
use bulkhead_xen::PAGE_SIZE;

/// Fuzzes the request parser. The input is the ABI (even: 64-bit, odd: 32-bit), then the bytes of a slot.
pub fn requests(bytes: &[u8]) {
    let _heap = heap::of_parser(bytes);
    let Some((abi, bytes)) = bytes.split_first() else {
        return;
    };
    let abi = if abi.is_multiple_of(2) {
        Abi::X86_64
    } else {
        Abi::X86_32
    };
    let format = Blkif::new(abi);
    let mut slot = [0; SLOT_SIZE];
    let len = bytes.len().min(format.request_size());
    slot[..len].copy_from_slice(&bytes[..len]);
    let request = match format.decode_request(&slot) {
        Ok(request) => request,
        Err(malformed) => {
            assert_ne!(malformed.response().status, Status::Okay);
            assert!(!malformed.to_string().is_empty());
            return;
        }
    };
    match &request.operation {
        Operation::Transfer(transfer) => transfer.segments.iter().for_each(within_a_page),
        Operation::Indirect(indirect) => {
            let room = indirect.pages().len() * (PAGE_SIZE / 8);
            assert!((1..=room).contains(&indirect.segments()));
        }
        Operation::Flush | Operation::Discard(_) => {}
    }
    // A request that was accepted is the same after it is encoded and decoded again.
    let mut again = [0; SLOT_SIZE];
    format.encode_request(&request, &mut again);
    assert_eq!(format.decode_request(&again), Ok(request));
    assert_eq!(request.response(Status::Okay).id, request.id);
}

fn within_a_page(segment: &Segment) {
    assert!(segment.len() > 0 && segment.len().is_multiple_of(512));
    assert!(segment.offset() + segment.len() <= PAGE_SIZE);
}
