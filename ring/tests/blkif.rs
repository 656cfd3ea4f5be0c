//! The block messages: their bytes as a C compiler lays them out, and what is wrong with others.

mod support;

use bulkhead_ring::Format;
use bulkhead_ring::blkif::*;
use bulkhead_xen::GrantRef;
use support::messages::{ABIS, decode, encode};

/// A slot of zeros with some bytes set.
fn slot(fields: &[(usize, &[u8])]) -> [u8; SLOT_SIZE] {
    let mut slot = [0; SLOT_SIZE];
    for (offset, bytes) in fields {
        slot[*offset..offset + bytes.len()].copy_from_slice(bytes);
    }
    slot
}

const ID: u64 = 0x1122_3344_5566_7788;
const SECTOR: u64 = 0x0102_0304_0506_0708;

/// Offsets as `offsetof` gives them for the structures of io/blkif.h, compiled by gcc for x86-64
/// and with -m32.
#[test]
fn fields_lie_where_c_puts_them() {
    struct Offsets {
        abi: Abi,
        id: usize,
        sector: usize,
        segments: usize,
        discard_count: usize,
        indirect_handle: usize,
        indirect_grefs: usize,
    }
    let offsets = [
        Offsets {
            abi: Abi::X86_64,
            id: 8,
            sector: 16,
            segments: 24,
            discard_count: 24,
            indirect_handle: 24,
            indirect_grefs: 28,
        },
        Offsets {
            abi: Abi::X86_32,
            id: 4,
            sector: 12,
            segments: 20,
            discard_count: 20,
            indirect_handle: 20,
            indirect_grefs: 24,
        },
    ];
    for at in offsets {
        let id = (at.id, &ID.to_le_bytes()[..]);
        let sector = (at.sector, &SECTOR.to_le_bytes()[..]);
        let handle = Handle(0xCA00);

        let segments = [
            Segment::new(GrantRef(0xAABBCCDD), 1, 6).expect("a segment"),
            Segment::whole(GrantRef(9)),
        ];
        let mut write = Request::transfer(
            RequestId(ID),
            TransferKind::Write,
            BlkifSector(SECTOR),
            &segments,
        )
        .expect("few segments");
        write.handle = handle;
        let bytes = slot(&[
            (0, &[1, 2, 0x00, 0xCA]),
            id,
            sector,
            (at.segments, &[0xDD, 0xCC, 0xBB, 0xAA, 1, 6, 0, 0]),
            (at.segments + 8, &[9, 0, 0, 0, 0, 7, 0, 0]),
        ]);
        assert_eq!(encode(at.abi, &write), bytes);
        assert_eq!(decode(at.abi, &bytes), Ok(write));

        let discard = Request {
            id: RequestId(ID),
            handle,
            operation: Operation::Discard(Discard {
                sector: BlkifSector(SECTOR),
                count: 77,
                secure: true,
            }),
        };
        let bytes = slot(&[
            (0, &[5, 1, 0x00, 0xCA]),
            id,
            sector,
            (at.discard_count, &[77]),
        ]);
        assert_eq!(encode(at.abi, &discard), bytes);
        assert_eq!(decode(at.abi, &bytes), Ok(discard));

        let grefs = std::array::from_fn(|number| GrantRef(number as u32 + 1));
        let indirect = Indirect::new(TransferKind::Read, BlkifSector(SECTOR), 1025, grefs);
        let indirect = Request {
            id: RequestId(ID),
            handle,
            operation: Operation::Indirect(indirect.expect("few segments")),
        };
        let bytes = slot(&[
            (0, &[6, 0, 0x01, 0x04]),
            id,
            sector,
            (at.indirect_handle, &[0x00, 0xCA]),
            (at.indirect_grefs, &[1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0]),
        ]);
        assert_eq!(encode(at.abi, &indirect), bytes);
        assert_eq!(decode(at.abi, &bytes), Ok(indirect));
    }
}

#[test]
fn responses_lie_where_c_puts_them() {
    let response = Response {
        id: RequestId(ID),
        operation: Opcode::WRITE,
        status: Status::NotSupported,
    };
    for abi in ABIS {
        let bytes = Blkif::new(abi).encode_response(&response);
        let expected = slot(&[(0, &ID.to_le_bytes()), (8, &[1, 0, 0xFE, 0xFF])]);
        assert_eq!(bytes[..], expected[..RESPONSE_SIZE]);
        assert_eq!(Blkif::new(abi).decode_response(&bytes), response);
    }
    assert_eq!(ABIS.map(Abi::request_size), [112, 108]);
    assert_eq!(ABIS.map(Abi::response_size), [16, 12]);
}

#[test]
fn malformed_requests_are_answered_with_the_reason() {
    // Operation and second byte, third and fourth, first segment; what is wrong; the answer.
    let segment = |first, last| [3, 0, 0, 0, first, last];
    let bad = |number, first, last| Fault::Segment {
        number,
        error: BadSegment { first, last },
    };
    let too_many = |found, most| Fault::TooManySegments { found, most };
    let cases = [
        (
            [4, 0, 0, 0],
            segment(0, 0),
            Fault::UnknownOperation(Opcode(4)),
            (4, Status::NotSupported),
        ),
        (
            [255, 1, 0, 0],
            segment(0, 0),
            Fault::UnknownOperation(Opcode(255)),
            (255, Status::NotSupported),
        ),
        (
            [0, 0, 0, 0],
            segment(0, 0),
            Fault::NoSegments,
            (0, Status::Error),
        ),
        (
            [1, 0, 0, 0],
            segment(0, 0),
            Fault::NoSegments,
            (1, Status::Error),
        ),
        (
            [0, 12, 0, 0],
            segment(0, 0),
            too_many(12, 11),
            (0, Status::Error),
        ),
        (
            [3, 255, 0, 0],
            segment(0, 0),
            too_many(255, 11),
            (3, Status::Error),
        ),
        (
            [0, 1, 0, 0],
            segment(5, 4),
            bad(0, 5, 4),
            (0, Status::Error),
        ),
        (
            [1, 1, 0, 0],
            segment(0, 8),
            bad(0, 0, 8),
            (1, Status::Error),
        ),
        (
            [2, 1, 0, 0],
            segment(255, 255),
            bad(0, 255, 255),
            (2, Status::Error),
        ),
        (
            [6, 2, 1, 0],
            segment(0, 0),
            Fault::IndirectOperation(Opcode(2)),
            (2, Status::Error),
        ),
        (
            [6, 6, 1, 0],
            segment(0, 0),
            Fault::IndirectOperation(Opcode(6)),
            (6, Status::Error),
        ),
        (
            [6, 0, 0, 0],
            segment(0, 0),
            Fault::NoSegments,
            (0, Status::Error),
        ),
        (
            [6, 1, 0x01, 0x10],
            segment(0, 0),
            too_many(4097, 4096),
            (1, Status::Error),
        ),
    ];
    for (start, segment, fault, (operation, status)) in cases {
        for (abi, id) in [(Abi::X86_64, 8), (Abi::X86_32, 4)] {
            let bytes = slot(&[(0, &start), (id, &[9]), (id + 16, &segment)]);
            let malformed = decode(abi, &bytes).expect_err("a lie");
            assert_eq!(malformed.fault, fault, "{start:?}");
            assert_eq!(
                malformed.response(),
                Response {
                    id: RequestId(9),
                    operation: Opcode(operation),
                    status
                },
                "{start:?}"
            );
        }
    }
}

#[test]
fn the_last_of_eleven_segments_is_looked_at_too() {
    let good = [3, 0, 0, 0, 0, 7, 0, 0].repeat(10);
    let bytes = slot(&[(0, &[0, 11]), (24, &good), (24 + 80, &[3, 0, 0, 0, 2, 1])]);
    let fault = decode(Abi::X86_64, &bytes).expect_err("a lie").fault;
    let error = BadSegment { first: 2, last: 1 };
    assert_eq!(fault, Fault::Segment { number: 10, error });
    assert_eq!(
        fault.to_string(),
        "segment 10: first sector 2 after last sector 1"
    );
}

#[test]
fn flushes_and_barriers_may_come_with_data_or_without() {
    for abi in ABIS {
        let flush = decode(abi, &slot(&[(0, &[3, 0])])).expect("a flush");
        assert_eq!(flush.operation, Operation::Flush);
        for (opcode, segments, kind) in [
            (3, 1, TransferKind::FlushAndWrite),
            (2, 0, TransferKind::WriteBarrier),
            (2, 1, TransferKind::WriteBarrier),
        ] {
            let request = decode(abi, &slot(&[(0, &[opcode, segments])])).expect("a transfer");
            let Operation::Transfer(transfer) = request.operation else {
                panic!("{request:?} is no transfer");
            };
            assert_eq!(transfer.kind, kind);
            assert_eq!(transfer.segments.len(), usize::from(segments));
            assert_eq!(request.opcode(), Opcode(opcode));
        }
    }
}

#[test]
fn an_indirect_request_is_answered_as_the_operation_it_stands_for() {
    let indirect = Indirect::new(TransferKind::Write, BlkifSector(0), 12, [GrantRef(1); 8]);
    let operation = Operation::Indirect(indirect.expect("few segments"));
    let response = Request::of(RequestId(1), operation).response(Status::Okay);
    assert_eq!(response.operation, Opcode::WRITE);
}

#[test]
fn indirect_pages_are_as_many_as_the_segments_take() {
    for (segments, pages) in [(1, 1), (512, 1), (513, 2), (4096, 8)] {
        let indirect = Indirect::new(
            TransferKind::Read,
            BlkifSector(0),
            segments,
            [GrantRef(1); 8],
        );
        assert_eq!(indirect.expect("possible").pages().len(), pages);
    }
    for segments in [0, 4097, u16::MAX] {
        assert!(
            Indirect::new(
                TransferKind::Read,
                BlkifSector(0),
                segments,
                [GrantRef(1); 8]
            )
            .is_none()
        );
    }
}
