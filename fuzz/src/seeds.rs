//! Seeds of the targets: files in `seeds/`, and seeds that are made here because as files they would be binary.

use bulkhead_ring::Format;
use bulkhead_ring::blkif::{
    Abi, Blkif, BlkifSector, Discard, Indirect, MAX_INDIRECT_PAGES, Operation, Request, RequestId,
    Segment, TransferKind,
};
use bulkhead_xen::GrantRef;
use bulkhead_xenstore_client::wire::{Header, MessageType, RequestId as Question, TransactionId};
use std::path::{Path, PathBuf};

/// Returns the folder with the seed files of a target.
pub fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("seeds")
        .join(target)
}

/// Returns all seeds of a target, with their names, in the order of the names.
///
/// # Panics
/// If the folder or a file in it cannot be read, or if a file is neither `.hex` nor `.txt`, or not hexadecimal.
pub fn of(target: &str) -> Vec<(String, Vec<u8>)> {
    let mut seeds = made(target);
    let files = std::fs::read_dir(folder(target)).expect("each target has a folder of seeds");
    for file in files {
        let path = file.expect("the folder can be read").path();
        let text = std::fs::read(&path).expect("a seed can be read");
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let bytes = match path.extension().and_then(|extension| extension.to_str()) {
            Some("hex") => hex(&String::from_utf8_lossy(&text)),
            Some("txt") => text.trim_ascii_end().to_vec(),
            _ => panic!("{} is neither .hex nor .txt", path.display()),
        };
        seeds.push((name.into_owned(), bytes));
    }
    seeds.sort();
    seeds
}

/// Parses bytes in hexadecimal, with `#` before comments.
fn hex(text: &str) -> Vec<u8> {
    let code = text.lines().filter_map(|line| line.split('#').next());
    let digits: String = code.flat_map(str::split_whitespace).collect();
    let pairs = digits.as_bytes().chunks(2);
    let byte = |pair: &[u8]| {
        let pair = std::str::from_utf8(pair).ok()?;
        u8::from_str_radix(pair, 16).ok()
    };
    pairs
        .map(|pair| byte(pair).unwrap_or_else(|| panic!("{pair:?} is no hexadecimal byte")))
        .collect()
}

fn made(target: &str) -> Vec<(String, Vec<u8>)> {
    let named = |seeds: Vec<Vec<u8>>| {
        let numbered = seeds.into_iter().enumerate();
        numbered
            .map(|(number, seed)| (format!("made-{number}"), seed))
            .collect()
    };
    named(match target {
        "requests" => slots()
            .map(|(abi, slot)| [vec![abi], slot].concat())
            .collect(),
        "ring" => slots().map(|(abi, slot)| ring_with(abi, &slot)).collect(),
        "xenstore" => vec![replies()],
        "archive" => vec![bulkhead_blkback_testkit::archive_of(&[
            ("a", 700),
            ("b", 512),
            ("c", 0),
        ])],
        "tls" => crate::tls::seeds(),
        "upgrade" => crate::upgrade::seeds(),
        "volumes" => crate::volumes::seeds(),
        _ => Vec::new(),
    })
}

/// One request of each kind in each ABI.
fn slots() -> impl Iterator<Item = (u8, Vec<u8>)> {
    let segments: Vec<Segment> = (8..19).map(|gref| Segment::whole(GrantRef(gref))).collect();
    let transfer = |kind| Request::transfer(RequestId(7), kind, BlkifSector(8), &segments);
    let indirect = Indirect::new(
        TransferKind::Read,
        BlkifSector(8),
        1000,
        [GrantRef(9); MAX_INDIRECT_PAGES],
    );
    let discard = Discard {
        sector: BlkifSector(8),
        count: 100,
        secure: true,
    };
    let requests = [
        transfer(TransferKind::Read),
        transfer(TransferKind::Write),
        transfer(TransferKind::WriteBarrier),
        Some(Request::flush(RequestId(7))),
        Some(Request::of(RequestId(7), Operation::Discard(discard))),
        indirect.map(|indirect| Request::of(RequestId(7), Operation::Indirect(indirect))),
    ];
    let abis = [(0, Abi::X86_64), (1, Abi::X86_32)];
    requests.into_iter().flatten().flat_map(move |request| {
        abis.map(|(number, abi)| {
            let format = Blkif::new(abi);
            let mut slot = format.empty_slot();
            format.encode_request(&request, &mut slot);
            (number, slot.to_vec())
        })
    })
}

/// Returns a ring with five published requests, and a guest that then publishes four more, and eleven more.
fn ring_with(abi: u8, slot: &[u8]) -> Vec<u8> {
    let size = Blkif::new([Abi::X86_64, Abi::X86_32][usize::from(abi)]).slot_size();
    let mut bytes = vec![abi, 2, 0, 0, 9, 0, 0, 20, 5, 0, 0, 0, 1, 0, 0, 0];
    bytes.resize(8 + 64, 0);
    for _ in 0..20 {
        bytes.extend(&slot[..size]);
    }
    bytes
}

/// Returns the replies that the tasks of the target `xenstore` wait for, and a watch event; the first byte is how many
/// bytes arrive at a time.
fn replies() -> Vec<u8> {
    let answers: [(MessageType, u32, &[u8]); 7] = [
        (MessageType::READ, 1, b"value"),
        (MessageType::DIRECTORY, 2, b"a\0b\0"),
        (MessageType::WRITE, 3, b"OK\0"),
        (MessageType::WATCH, 4, b"OK\0"),
        (MessageType::WATCH_EVENT, 0, b"a\x001\0"),
        (MessageType::TRANSACTION_START, 5, b"17\0"),
        (MessageType::ERROR, 6, b"ENOENT\0"),
    ];
    let mut bytes = vec![5];
    for (message_type, request, payload) in answers {
        let header = Header {
            message_type,
            request: Question(request),
            transaction: TransactionId::NONE,
            length: payload.len() as u32,
        };
        bytes.extend(header.to_bytes());
        bytes.extend(payload);
    }
    bytes
}
