//! The parser of `target=`.

use crate::heap;
use bulkhead_images::target::{NullTarget, RamTarget};
use bulkhead_images::{Access, Sector, Stores, Target};

/// Fuzzes the parser of `target=`. The input is the text.
pub fn target(bytes: &[u8]) {
    let _heap = heap::of_parser(bytes);
    let text = String::from_utf8_lossy(bytes);
    if let Ok(target) = Target::parse(&text) {
        assert!(text.starts_with(target.scheme));
        if let Ok(ram) = RamTarget::parse(target) {
            assert!(!ram.name.is_empty());
            assert!(text.contains(&ram.name));
        }
        if let Ok(null) = NullTarget::parse(target) {
            assert_ne!(null.sectors, Sector(0));
            let bytes = null.sectors.bytes().expect("a size has a number of bytes");
            assert!(bytes.is_multiple_of(null.sector_size.bytes() as u64));
        }
    }
    let opened = Stores::default().open_now(&text, Access::ReadOnly, "the guest");
    if let Err(error) = opened {
        let error = error.to_string();
        let explains = ["expected", "twice", "no images"];
        let explains = explains.iter().any(|words| error.contains(words));
        assert!(explains, "{error:?} does not say what was expected");
    }
}
