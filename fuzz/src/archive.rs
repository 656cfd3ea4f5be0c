//! The archive reader, and the catalog over it.

use crate::heap;
use bulkhead_images::archive::{ArchiveError, members};
use bulkhead_images::{Catalog, ImageMemory};
use std::ptr::NonNull;

/// The most checksums that the target corrects in one input.
const MENDED: usize = 12;

/// Fuzzes the archive reader. The input is a ramdisk; it is read as it is, and again with each wrong checksum of a
/// header corrected, since no fuzzer guesses checksums.
pub fn archive(bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    for _ in 0..MENDED {
        read(&bytes);
        let Err(ArchiveError::Checksum {
            offset, computed, ..
        }) = members(&bytes)
        else {
            return;
        };
        let field = &mut bytes[offset + 148..offset + 156];
        field.copy_from_slice(format!("{computed:06o}\0 ").as_bytes());
    }
}

fn read(bytes: &[u8]) {
    let _heap = heap::of_parser(bytes);
    if let Ok(members) = members(bytes) {
        let mut free = 0;
        for member in &members {
            assert!(!member.name.is_empty() && !member.name.starts_with("./"));
            assert!(member.offset.is_multiple_of(512));
            assert!(member.offset >= free, "images overlap");
            free = member.offset.checked_add(member.size).expect("no overflow");
            assert!(free <= bytes.len(), "an image past the end");
        }
    }
    let mut ramdisk = bytes.to_vec();
    let base = NonNull::from(&mut ramdisk[..]).cast();
    // SAFETY: the vector outlives the catalog, and is not used meanwhile.
    let memory = unsafe { ImageMemory::new(base, bytes.len()) };
    let catalog = Catalog::from_module(memory);
    let total: usize = catalog.images().map(|(_, size, _)| size).sum();
    assert!(total <= bytes.len());
}
