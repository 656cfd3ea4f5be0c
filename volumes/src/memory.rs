//! Memory for what a disk says: where there is none, the disk is refused.

use alloc::string::String;
use alloc::vec::Vec;

/// Returns that many zero bytes.
pub(crate) fn filled(len: usize) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).ok()?;
    bytes.resize(len, 0);
    Some(bytes)
}

/// Adds a value to a list.
pub(crate) fn push<T>(list: &mut Vec<T>, value: T) -> Option<()> {
    list.try_reserve(1).ok()?;
    list.push(value);
    Some(())
}

/// Returns a text of one's own.
pub(crate) fn owned(text: &str) -> Option<String> {
    let mut own = String::new();
    own.try_reserve_exact(text.len()).ok()?;
    own.push_str(text);
    Some(own)
}
