//! The registers of a BAR that a driver has mapped.

use crate::holders::Holder;
use alloc::sync::Arc;
use bulkhead_xen::{Registers, is_register};

/// Registers within the pages that were mapped for them. An access that is not within the registers, or not aligned, is
/// not done; it reads as all ones.
pub struct Window<R> {
    /// Dropped before the holder, so that the function is unmapped before it counts as released.
    pages: R,
    /// The offset of the first register in the pages, in bytes.
    start: usize,
    len: usize,
    _holder: Arc<Holder>,
}

impl<R: Registers> Window<R> {
    /// Returns `len` bytes of registers from `start` on.
    pub fn new(pages: R, start: usize, len: usize, holder: Arc<Holder>) -> Self {
        Window {
            pages,
            start,
            len,
            _holder: holder,
        }
    }
}

macro_rules! accesses {
    ($($read:ident, $write:ident, $type:ty;)*) => {
        $(
            #[inline]
            fn $read(&self, offset: usize) -> $type {
                match is_register(offset, size_of::<$type>(), self.len) {
                    true => self.pages.$read(self.start + offset),
                    false => <$type>::MAX,
                }
            }

            #[inline]
            fn $write(&self, offset: usize, value: $type) {
                if is_register(offset, size_of::<$type>(), self.len) {
                    self.pages.$write(self.start + offset, value);
                }
            }
        )*
    };
}

impl<R: Registers> Registers for Window<R> {
    fn len(&self) -> usize {
        self.len
    }

    accesses! {
        read8, write8, u8;
        read16, write16, u16;
        read32, write32, u32;
    }
}
