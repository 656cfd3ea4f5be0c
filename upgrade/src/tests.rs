use crate::WITH_DEVICES;
use crate::candidate::{Candidate, GuestType, Refused, Running, Version};
use crate::elf::{self, BadElf, Elf};
use crate::has_checksum;
use crate::request::{InjectedFault, Request, RequestError};
use crate::testing::{HYPERCALL_PAGE, NOTE, PV_NOTE, REGION, START, file, running};
use alloc::format;
use alloc::vec::Vec;
use proptest::prelude::*;
extern crate std;

const NEW: Version = Version([0, 3, 0]);
const OLD: Version = Version([0, 1, 9]);

/// The bytes of the list of segments: the number of a segment, the field's place in it.
fn field(segment: usize, at: usize) -> usize {
    64 + segment * 56 + at
}

fn check(change: impl FnOnce(&mut Vec<u8>)) -> Result<(), Refused> {
    let mut file = file(NEW);
    change(&mut file);
    Candidate::check(&file, &running(), false).map(drop)
}

fn with(at: usize, bytes: &[u8]) -> Result<(), Refused> {
    check(|file| file[at..at + bytes.len()].copy_from_slice(bytes))
}

#[test]
fn a_sound_file_is_taken_apart() {
    let file = file(NEW);
    let candidate = Candidate::check(&file, &running(), false).expect("sound");
    assert_eq!(candidate.note.version, NEW);
    assert_eq!(
        (candidate.entry, candidate.hypercall_page),
        (START + 0x10, None)
    );
    let parts: Vec<_> = candidate.parts().collect();
    assert_eq!(
        parts,
        [
            (START, &file[0x800..0x900], 0xf00),
            // No further than what it uses, though the segment has room behind that.
            (START + 0x2000, &file[0x900..0xa00], 0x5f00),
        ]
    );
}

/// The same version in a PV domain.
fn running_pv() -> Running {
    Running {
        guest_type: GuestType::Pv,
        ..running()
    }
}

#[test]
fn in_a_pv_domain_the_other_note_counts() {
    let with = |at: usize, bytes: &[u8]| {
        let mut file = file(NEW);
        file[at..at + bytes.len()].copy_from_slice(bytes);
        let checked = Candidate::check(&file, &running_pv(), false);
        checked.map(|candidate| (candidate.entry, candidate.hypercall_page))
    };
    let sound = Ok((START + 0x20, Some(HYPERCALL_PAGE)));
    assert_eq!(with(NOTE + 72, &[0; 4]), sound, "the entry for PVH");
    assert_eq!(with(PV_NOTE + 12, b"Somebody"), Err(Refused::NotInPv));
    assert_eq!(with(PV_NOTE + 4, &[7]), Err(Refused::Note));
    let entry = (START + 0x100).to_le_bytes();
    assert_eq!(with(PV_NOTE + 24, &entry), Err(Refused::Entry));
    let pages = [
        0,
        START,
        START - 0x1000,
        HYPERCALL_PAGE + 8,
        START + 0x2000,
        REGION,
        START + 0x8000,
        !0xfff,
    ];
    for page in pages {
        let refused = with(PV_NOTE + 28, &page.to_le_bytes());
        assert_eq!(refused, Err(Refused::HypercallPage), "{page:#x}");
    }
}

#[test]
fn older_versions_need_force() {
    let old = file(OLD);
    let refused = Candidate::check(&old, &running(), false).map(drop);
    assert_eq!(refused, Err(Refused::Older(OLD, Version([0, 2, 0]))));
    assert!(Candidate::check(&old, &running(), true).is_ok());
    let same = file(running().version);
    assert!(Candidate::check(&same, &running(), false).is_ok());
}

#[test]
fn what_is_no_elf_of_ours_is_refused() {
    let elf = |error| Err(Refused::Elf(error));
    assert_eq!(with(0, b"#!/bin/sh"), elf(BadElf::Magic));
    assert_eq!(with(4, &[1]), elf(BadElf::Kind), "32 bits");
    assert_eq!(with(16, &[3]), elf(BadElf::Kind), "position-independent");
    assert_eq!(with(18, &[183]), elf(BadElf::Kind), "AArch64");
    assert_eq!(with(56, &[0]), elf(BadElf::List));
    assert_eq!(with(56, &[17]), elf(BadElf::List));
    assert_eq!(with(32, &[0xff; 8]), elf(BadElf::TooLarge));
    assert_eq!(check(|file| file.truncate(0x104f)), elf(BadElf::CutOff));
    assert_eq!(with(NOTE, &[0xff; 4]), elf(BadElf::Note));
    assert_eq!(with(NOTE + 12, b"Somebody"), Err(Refused::NoNote));
    assert_eq!(with(NOTE + 68, b"Linu"), Err(Refused::NoEntry));
}

#[test]
fn impossible_segments_are_refused() {
    let elf = |error| Err(Refused::Elf(error));
    let huge = u64::MAX.to_le_bytes();
    assert_eq!(with(field(0, 8), &huge), elf(BadElf::TooLarge), "offset");
    assert_eq!(with(field(0, 16), &huge), elf(BadElf::Segment), "address");
    assert_eq!(with(field(0, 24), &[1]), elf(BadElf::Segment), "physical");
    assert_eq!(with(field(0, 32), &huge), elf(BadElf::TooLarge), "bytes");
    assert_eq!(with(field(0, 40), &huge), elf(BadElf::Segment), "in memory");
    assert_eq!(
        with(field(0, 40), &[1, 0]),
        elf(BadElf::Segment),
        "more in the file"
    );
    let overlap = 0x2001_u64.to_le_bytes();
    assert_eq!(with(field(0, 40), &overlap), elf(BadElf::Order));
}

#[test]
fn an_image_without_room_is_refused() {
    let below = (u64::from(START) - 0x1000).to_le_bytes();
    let moved = [below, below].concat();
    assert_eq!(
        with(field(0, 16), &moved),
        Err(Refused::Place(START - 0x1000))
    );
    let end = 0x30_0001_u32;
    assert_eq!(
        with(NOTE + 24 + 28, &end.to_le_bytes()),
        Err(Refused::Room(end, 0x30_0000))
    );
    let mut small = running();
    small.room.end = u64::from(START) + 0x7fff;
    let refused = Candidate::check(&file(NEW), &small, true).map(drop);
    assert_eq!(refused, Err(Refused::Room(START + 0x8000, small.room.end)));
}

#[test]
fn what_survives_needs_its_place() {
    let at = NOTE + 24 + 20;
    for region in [0, REGION + 1, START, START + 0x2000, START + 0x8000, !0xfff] {
        let refused = with(at, &region.to_le_bytes());
        assert_eq!(refused, Err(Refused::Region), "{region:#x}");
    }
    for bytes in [0, 0xfff, u32::MAX, 0x10_0000] {
        let refused = with(at + 4, &u32::to_le_bytes(bytes));
        assert_eq!(refused, Err(Refused::Region), "{bytes:#x}");
    }
    assert_eq!(with(NOTE + 72, &[0, 0, 0, 0]), Err(Refused::Entry));
    let data = (START + 0x2010).to_le_bytes();
    assert_eq!(with(NOTE + 72, &data), Err(Refused::Entry), "data");
}

#[test]
fn a_version_that_does_not_read_our_record_is_refused_even_with_force() {
    for (oldest, newest) in [(2_u32, 3_u32), (0, 0)] {
        let mut file = file(NEW);
        file[NOTE + 36..NOTE + 40].copy_from_slice(&oldest.to_le_bytes());
        file[NOTE + 40..NOTE + 44].copy_from_slice(&newest.to_le_bytes());
        let refused = Candidate::check(&file, &running(), true).map(drop);
        assert!(matches!(refused, Err(Refused::Format(_, 1))), "{refused:?}");
    }
}

#[test]
fn a_domain_with_devices_is_for_versions_that_know_of_them() {
    let with_devices = Running {
        format: WITH_DEVICES,
        ..running_pv()
    };
    let mut file = file(NEW);
    let refused = Candidate::check(&file, &with_devices, true).map(drop);
    assert!(matches!(refused, Err(Refused::Format(_, 2))), "{refused:?}");
    file[NOTE + 40..NOTE + 44].copy_from_slice(&WITH_DEVICES.to_le_bytes());
    for running in [with_devices, running_pv()] {
        let taken = Candidate::check(&file, &running, false);
        assert!(taken.is_ok(), "format {}: {taken:?}", running.format);
    }
}

/// Debian's shell is an ELF whose list of sections is its end, as ours are.
#[test]
fn a_real_file_ends_where_its_headers_say() {
    let mut start = std::fs::read("/bin/sh").expect("a shell");
    let bytes = start.len() as u64;
    // It could be loaded anywhere.
    start[16] = 2;
    start.truncate(4096);
    let end = elf::headers_end(&start);
    assert!(end.is_ok_and(|end| end < 4096), "{end:?}");
    assert_eq!(elf::length(&start), Ok(bytes));
}

#[test]
fn requests_are_read() {
    let sum = "0123456789abcdef".repeat(4);
    let text = format!("ram:new.elf sha256={sum} force");
    let request = Request::parse(&text).expect("sound");
    assert_eq!((request.target, request.force), ("ram:new.elf", true));
    assert_eq!(request.sha256[..3], [0x01, 0x23, 0x45]);
    assert_eq!(request.fault, InjectedFault::None);
    for (word, fault) in [
        ("panic", InjectedFault::Panic),
        ("wait", InjectedFault::Wait),
        ("late", InjectedFault::Late),
    ] {
        let text = format!("ram:a sha256={sum} test={word}");
        assert_eq!(Request::parse(&text).map(|one| one.fault), Ok(fault));
        assert_eq!(
            InjectedFault::of(fault as u32),
            fault,
            "what the record keeps"
        );
    }
    let parse = |text: &str| match Request::parse(text) {
        Ok(_) => panic!("{text:?} was read"),
        Err(error) => format!("{error}"),
    };
    assert!(parse("").starts_with("no target: expected"));
    assert!(parse("ram:a").starts_with("no checksum: expected"));
    for wrong in [
        "",
        "12",
        &sum[1..],
        &format!("{sum}0"),
        &sum.replace('0', "g"),
        &sum.replace("01", "é"),
    ] {
        let error = parse(&format!("ram:a sha256={wrong}"));
        assert!(error.starts_with("sha256= has not 64"), "{error}");
    }
    let text = format!("ram:a sha256={sum} forced");
    assert_eq!(Request::parse(&text), Err(RequestError::Word("forced")));
}

#[test]
fn the_checksum_is_that_of_sha256sum() {
    // FIPS 180-2, appendix B.1.
    let text = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let text = format!("ram:a sha256={text}");
    let sum = Request::parse(&text).expect("sound").sha256;
    assert!(has_checksum(b"abc", &sum));
    assert!(!has_checksum(b"abd", &sum));
}

/// Whatever a file holds, what is loaded of it lies in the room, in order, and what survives has its place.
pub fn expect_sound(file: &[u8]) {
    let _ = Elf::parse(file);
    for running in [running(), running_pv()] {
        let Ok(candidate) = Candidate::check(file, &running, true) else {
            continue;
        };
        let mut free = running.room.start;
        let page = candidate.hypercall_page.map(u64::from);
        for (address, content, zero) in candidate.parts() {
            let start = u64::from(address);
            assert!(start >= free);
            free = start + content.len() as u64 + u64::from(zero);
            assert!(page.is_none_or(|page| page + 0x1000 <= start || page >= free));
        }
        assert!(free <= running.room.end);
        assert!(page.is_none_or(|page| page + 0x1000 <= running.room.end));
    }
}

proptest! {
    #[test]
    fn damaged_files_are_refused_or_sound(
        changes in proptest::collection::vec((0_usize..0x1070, any::<u8>()), 1..12),
        near in proptest::collection::vec((0_usize..232, 0_u8..4), 0..4),
        cut in 0_usize..0x1100,
    ) {
        let mut file = file(NEW);
        for (at, byte) in changes {
            file[at] = byte;
        }
        for (at, byte) in near {
            file[at] = byte;
        }
        file.truncate(cut.max(0x100));
        expect_sound(&file);
    }

    #[test]
    fn no_header_makes_a_reader_go_beyond_the_limit(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut start = file(NEW)[..64].to_vec();
        for (at, byte) in bytes.iter().enumerate().skip(20) {
            if let Some(place) = start.get_mut(at) {
                *place = *byte;
            }
        }
        if let Ok(end) = elf::headers_end(&start) {
            prop_assert!(end <= elf::MOST_BYTES);
        }
        if let Ok(end) = elf::length(&bytes) {
            prop_assert!(end <= elf::MOST_BYTES);
        }
    }
}
