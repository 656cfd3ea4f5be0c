//! The parser of `target=`.

use crate::heap;
use bulkhead_images::{Sector, Target};

/// The text of a target.
pub fn target(bytes: &[u8]) {
    let _heap = heap::of_parser(bytes);
    let text = String::from_utf8_lossy(bytes);
    match text.parse::<Target>() {
        Ok(Target::Ram(ram)) => {
            assert!(!ram.name.is_empty());
            assert!(text.contains(&ram.name));
        }
        Ok(Target::Null(null)) => {
            assert_ne!(null.sectors, Sector(0));
            let bytes = null.sectors.bytes().expect("a size has a number of bytes");
            assert!(bytes.is_multiple_of(null.sector_size.bytes() as u64));
        }
        Err(error) => {
            let error = error.to_string();
            let explains = error.contains("expected") || error.contains("twice");
            assert!(explains, "{error:?} does not say what was expected");
        }
    }
}
