//! The archive reader, and the catalog over it.

use bulkhead_images::archive::members;
use bulkhead_images::{Catalog, ImageMemory};
use std::ptr::NonNull;

/// A ramdisk.
pub fn archive(bytes: &[u8]) {
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
