//! Memory for what a connection needs, refused instead of ending the domain where there is none.

use alloc::vec::Vec;
use core::fmt;

/// The domain's heap is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory {
    /// The bytes that were asked for.
    pub bytes: usize,
}

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the driver domain has no {} bytes of memory in one piece (memory= in its configuration)",
            self.bytes
        )
    }
}

impl core::error::Error for OutOfMemory {}

/// Returns an empty vector that holds up to `count` elements without allocating again.
pub fn room_for<T>(count: usize) -> Result<Vec<T>, OutOfMemory> {
    let mut room = Vec::new();
    match room.try_reserve_exact(count) {
        Ok(()) => Ok(room),
        Err(_) => Err(OutOfMemory {
            bytes: count.saturating_mul(size_of::<T>()),
        }),
    }
}

/// Returns a vector of `count` elements, each made by `make` from its index.
pub fn filled<T>(count: usize, make: impl FnMut(usize) -> T) -> Result<Vec<T>, OutOfMemory> {
    let mut all = room_for(count)?;
    all.extend((0..count).map(make));
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn what_does_not_fit_is_refused_with_its_size() {
        assert_eq!(filled(3, |index| index * 2), Ok(alloc::vec![0, 2, 4]));
        let refused = room_for::<u64>(usize::MAX / 16).unwrap_err();
        assert_eq!(refused.bytes, usize::MAX / 16 * 8);
        assert!(refused.to_string().contains("no 9223372036854775800 bytes"));
    }
}
