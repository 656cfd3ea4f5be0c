//! The parsers of a new version that is to take over, and of the request that names it.

use crate::heap;
use bulkhead_upgrade::candidate::{Candidate, Version};
use bulkhead_upgrade::testing::{file, running};
use bulkhead_upgrade::{GuestType, Request, Running, elf};

/// Fuzzes the checks of a new version, and the parser of the request. The input is used as the file, and as the
/// request.
pub fn upgrade(bytes: &[u8]) {
    let _heap = heap::of_parser(bytes);
    if let Ok(end) = elf::headers_end(bytes) {
        assert!(end <= elf::MOST_BYTES);
    }
    for guest_type in [GuestType::Pvh, GuestType::Pv] {
        take_over(
            bytes,
            &Running {
                guest_type,
                ..running()
            },
        );
    }
    if let Ok(text) = str::from_utf8(bytes)
        && let Ok(request) = Request::parse(text)
    {
        assert!(!request.target.is_empty() && text.contains(request.target));
    }
}

fn take_over(bytes: &[u8], running: &Running) {
    if let Ok(candidate) = Candidate::check(bytes, running, true) {
        assert!(elf::length(bytes).is_ok_and(|end| end <= bytes.len() as u64));
        let mut free = running.room.start;
        let (region, region_bytes) = (candidate.note.region, candidate.note.region_bytes);
        for (address, content, zero) in candidate.parts() {
            assert!(u64::from(address) >= free, "parts overlap");
            let content_end = u64::from(address) + content.len() as u64;
            free = content_end + u64::from(zero);
            let region = u64::from(region)..u64::from(region) + u64::from(region_bytes);
            let apart = region.end <= u64::from(address) || region.start >= content_end;
            assert!(apart, "what survives overwrites a part of the file");
            if let Some(page) = candidate.hypercall_page.map(u64::from) {
                let apart = page + 4096 <= u64::from(address) || page >= content_end;
                assert!(apart, "hypercalls overwrite a part of the file");
            }
        }
        assert!(free <= running.room.end, "the image has no room");
    }
}

/// Returns valid files of two versions.
pub fn seeds() -> Vec<Vec<u8>> {
    [[0, 1, 0], [9, 0, 0]]
        .map(|version| file(Version(version)))
        .to_vec()
}
