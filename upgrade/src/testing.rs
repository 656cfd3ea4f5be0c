//! A small ELF in memory that may take over, for tests to damage.

use crate::FORMAT;
use crate::candidate::{GuestType, Running, Version};
use alloc::vec;
use alloc::vec::Vec;

/// The address at which images begin.
pub const START: u32 = 0x10_0000;
/// The address of what survives in the [`file()`].
pub const REGION: u32 = START + 0x3000;
/// The place of its own note in the [`file()`]: 12 bytes of header, 12 of name, then the numbers.
pub const NOTE: usize = 0x1000;
/// The place of its note for PV domains in the [`file()`]: 12 bytes of header, 12 of name, then the numbers.
pub const PV_NOTE: usize = NOTE + 0x50;
/// The address of the page for hypercalls in the [`file()`].
pub const HYPERCALL_PAGE: u32 = START + 0x1000;

/// What runs, as far as the [`file()`] is concerned.
pub fn running() -> Running {
    Running {
        version: Version([0, 2, 0]),
        guest_type: GuestType::Pvh,
        format: FORMAT,
        region_bytes: 0x1000,
        room: START.into()..0x30_0000,
    }
}

/// Returns an ELF of that version: a page of code, notes, and data with a page for what survives.
pub fn file(version: Version) -> Vec<u8> {
    let mut file = vec![0; 0x1070];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    for (at, value) in [(16, 2_u16), (18, 62), (54, 56), (56, 3), (58, 64)] {
        put(at, &value.to_le_bytes());
    }
    put(32, &64_u64.to_le_bytes());
    let segments = [
        // Kind, flags; offset, address, bytes in the file and in memory.
        (1_u32, 5_u32, 0x800_u64, START, 0x100_u64, 0x1000_u64),
        (1, 6, 0x900, START + 0x2000, 0x100, 0x10_0000),
        (4, 4, NOTE as u64, 0, 0x70, 0x70),
    ];
    for (number, (kind, flags, offset, address, in_file, in_memory)) in
        segments.into_iter().enumerate()
    {
        let at = 64 + number * 56;
        put(at, &kind.to_le_bytes());
        put(at + 4, &flags.to_le_bytes());
        let address = u64::from(address);
        let numbers = [offset, address, address, in_file, in_memory];
        put(at + 8, numbers.map(u64::to_le_bytes).as_flattened());
    }
    for (at, byte) in (0x800..0xa00).zip(1_u8..=255) {
        put(at, &[byte]);
    }
    let [major, minor, patch] = version.0;
    let numbers = [9, 32, 1].map(u32::to_le_bytes);
    put(NOTE, numbers.as_flattened());
    put(NOTE + 12, b"Bulkhead\0");
    let numbers = [
        major,
        minor,
        patch,
        FORMAT,
        FORMAT,
        REGION,
        0x1000,
        START + 0x8000,
    ];
    put(NOTE + 24, numbers.map(u32::to_le_bytes).as_flattened());
    let numbers = [4, 8, 18].map(u32::to_le_bytes);
    put(NOTE + 56, numbers.as_flattened());
    put(NOTE + 68, b"Xen\0");
    put(NOTE + 72, &(u64::from(START) + 0x10).to_le_bytes());
    let numbers = [9, 8, 2].map(u32::to_le_bytes);
    put(PV_NOTE, numbers.as_flattened());
    put(PV_NOTE + 12, b"Bulkhead\0");
    let numbers = [START + 0x20, HYPERCALL_PAGE].map(u32::to_le_bytes);
    put(PV_NOTE + 24, numbers.as_flattened());
    file
}
