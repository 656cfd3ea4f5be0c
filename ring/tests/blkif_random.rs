//! The block messages: any bytes at all, and the way there and back.

mod support;

use bulkhead_ring::Format;
use bulkhead_ring::blkif::*;
use bulkhead_xen::GrantRef;
use proptest::prelude::*;
use support::messages::{ABIS, decode, encode};

fn segments() -> impl Strategy<Value = Vec<Segment>> {
    let segment = (any::<u32>(), 0..8_u8, 0..8_u8).prop_map(|(gref, a, b)| {
        Segment::new(GrantRef(gref), a.min(b), a.max(b)).expect("within the page")
    });
    prop::collection::vec(segment, 1..=MAX_SEGMENTS)
}

fn operation() -> impl Strategy<Value = Operation> {
    let kind = prop_oneof![
        Just(TransferKind::Read),
        Just(TransferKind::Write),
        Just(TransferKind::WriteBarrier),
        Just(TransferKind::FlushAndWrite),
    ];
    let plain = prop_oneof![Just(TransferKind::Read), Just(TransferKind::Write)];
    prop_oneof![
        Just(Operation::Flush),
        (kind, any::<u64>(), segments()).prop_map(|(kind, sector, segments)| {
            Request::transfer(RequestId(0), kind, BlkifSector(sector), &segments)
                .expect("few segments")
                .operation
        }),
        (any::<u64>(), any::<u64>(), any::<bool>()).prop_map(|(sector, count, secure)| {
            Operation::Discard(Discard {
                sector: BlkifSector(sector),
                count,
                secure,
            })
        }),
        (plain, any::<u64>(), 1..=4096_u16, any::<[u32; 8]>()).prop_map(
            |(kind, sector, segments, grefs)| {
                let indirect =
                    Indirect::new(kind, BlkifSector(sector), segments, grefs.map(GrantRef));
                Operation::Indirect(indirect.expect("few segments"))
            }
        ),
    ]
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded(id: u64, handle: u16, operation in operation()) {
        let request = Request { id: RequestId(id), handle: Handle(handle), operation };
        for abi in ABIS {
            prop_assert_eq!(decode(abi, &encode(abi, &request)), Ok(request));
        }
    }

    /// Any bytes give a request or a malformed one, either with the identifier that is there; and
    /// a request says all that counts in its bytes.
    #[test]
    fn any_bytes_are_understood_or_refused(
        bytes in prop::collection::vec(any::<u8>(), SLOT_SIZE),
        operation in 0..8_u8,
        second in 0..16_u8,
        tame in any::<bool>(),
    ) {
        let mut slot: [u8; SLOT_SIZE] = bytes.try_into().expect("that many bytes");
        if tame {
            // Rarely would random bytes get past the checks.
            (slot[0], slot[1]) = (operation, second);
            for segment in slot[20..].chunks_exact_mut(4) {
                segment[0] &= 3;
                segment[1] = segment[0] | segment[1] & 7;
            }
        }
        for (abi, at) in [(Abi::X86_64, 8), (Abi::X86_32, 4)] {
            let id = u64::from_le_bytes(slot[at..at + 8].try_into().expect("8 bytes"));
            match decode(abi, &slot) {
                Ok(request) => {
                    prop_assert_eq!(request.id, RequestId(id));
                    prop_assert_eq!(decode(abi, &encode(abi, &request)), Ok(request));
                }
                Err(malformed) => {
                    prop_assert_eq!(malformed.id, RequestId(id));
                    prop_assert_ne!(malformed.response().status, Status::Okay);
                    prop_assert!(!malformed.to_string().is_empty());
                }
            }
        }
    }

    #[test]
    fn responses_there_and_back(id: u64, operation: u8, status: i16) {
        let response = Response {
            id: RequestId(id),
            operation: Opcode(operation),
            status: Status::from_code(status),
        };
        for abi in ABIS {
            let slot = Blkif::new(abi).encode_response(&response);
            prop_assert_eq!(Blkif::new(abi).decode_response(&slot), response);
        }
    }

    #[test]
    fn segments_stay_within_their_page(bytes: [u8; 8]) {
        if let Ok(segment) = Segment::parse(&bytes) {
            prop_assert!(segment.offset() + segment.len() <= 4096);
            prop_assert_eq!(segment.len() % SECTOR_SIZE, 0);
            prop_assert!(segment.len() > 0);
            prop_assert_eq!(Segment::parse(&segment.encode()), Ok(segment));
        }
    }
}
