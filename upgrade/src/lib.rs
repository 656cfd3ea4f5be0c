//! Checks of a new version of the unikernel that is to take over from the one that runs (`docs/recovery.md`).
//!
//! ```text
//!   data/upgrade ──► request      what the operator wants: target, checksum, words
//!   its bytes    ──► elf          headers, segments and notes, with every bound
//!                      └─► candidate     may this ELF take over from what runs? where does each part belong?
//! ```
//!
//! The file is read like hostile input: whoever has made it may be mistaken, and the store may be a guest's image. Nothing
//! in here panics, allocates without bound or follows a number that was not checked.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod candidate;
pub mod elf;
pub mod request;
#[cfg(any(test, feature = "test-support"))]
pub mod testing;

pub use candidate::{Candidate, GuestType, Refused, Running, Version};
pub use elf::{BadElf, Elf};
pub use request::{Request, RequestError};

#[cfg(test)]
mod tests;

/// The format of all that survives a crash or an upgrade: the kernel's record, the place within the streams to and from
/// xenstored, and what is kept of connected disks. Each change of any of these takes the next number.
pub const FORMAT: u32 = 1;

/// The format of what a domain with PCI devices leaves, the newest one: beside [`FORMAT`], there are the port of the channel
/// to dom0's pciback, 20 bytes before the end of the region's first page, and page frame 0xff, in which Xen tells which
/// interrupts need an acknowledgement.
pub const WITH_DEVICES: u32 = 2;

/// The oldest format that this version reads.
pub const OLDEST_FORMAT: u32 = 1;

/// Checks that the file is the one that the operator means.
pub fn has_checksum(file: &[u8], sha256: &[u8; 32]) -> bool {
    use sha2::{Digest, Sha256};
    let sum: [u8; 32] = Sha256::digest(file).into();
    sum == *sha256
}
