//! The registers of devices that were given to this domain.

use crate::{Errno, Mfn};

/// A device's registers: a part of a memory BAR, mapped uncached for as long as this value lives.
///
/// Each access is one access of that width on the bus, in program order with all other accesses to registers
/// and with this vCPU's writes to memory before it. An access that is not within the registers, or not aligned to its
/// width, is not done: reads return all ones, as they do from a device that is gone, and writes are dropped.
///
/// A write may make the device access memory. The IOMMU limits that to the domain's own memory, and pages of other
/// domains while these are mapped. A driver gives the device only addresses of its own memory
/// ([`DmaMemory`](crate::DmaMemory)), or of memory that it was given for the request.
pub trait Registers: Send + Sync {
    /// Returns the number of bytes.
    fn len(&self) -> usize;

    /// Returns whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads a byte.
    fn read8(&self, offset: usize) -> u8;

    /// Writes a byte.
    fn write8(&self, offset: usize, value: u8);

    /// Reads two bytes.
    fn read16(&self, offset: usize) -> u16;

    /// Writes two bytes.
    fn write16(&self, offset: usize, value: u16);

    /// Reads four bytes.
    fn read32(&self, offset: usize) -> u32;

    /// Writes four bytes.
    fn write32(&self, offset: usize, value: u32);

    /// Reads eight bytes as two halves, the lower one first: not all devices take more than four at a time.
    fn read64(&self, offset: usize) -> u64 {
        let low = self.read32(offset);
        let high = self.read32(offset.saturating_add(4));
        u64::from(high) << 32 | u64::from(low)
    }

    /// Writes eight bytes as two halves, the lower one first.
    fn write64(&self, offset: usize, value: u64) {
        self.write32(offset, value as u32);
        self.write32(offset.saturating_add(4), (value >> 32) as u32);
    }
}

/// Returns whether an access of `width` bytes at an offset is within `len` bytes, and aligned.
#[inline]
pub const fn is_register(offset: usize, width: usize, len: usize) -> bool {
    len >= width && offset <= len - width && offset.is_multiple_of(width)
}

/// Maps the registers of devices that were given to this domain.
///
/// Only PV domains have devices on x86: in others, this fails with [`Errno::NOSYS`].
///
/// # Safety
/// An implementer promises that the frames which it maps are not memory, neither this domain's nor another's, that
/// accesses stay within them, and that they stay mapped until the value is dropped.
pub unsafe trait Mmio {
    /// Registers that are mapped; dropping them unmaps.
    type Registers: Registers + 'static;

    /// Maps `pages` contiguous machine frames of registers, from `first` on, uncached and writable.
    ///
    /// Fails with [`Errno::PERM`] if the domain may not use one of them, with [`Errno::ACCES`] if Xen lets the domain
    /// only read one (the pages of an MSI-X table that dom0 has prepared), and with [`Errno::NOMEM`] if there is no
    /// address space left.
    fn map_registers(&self, first: Mfn, pages: usize) -> Result<Self::Registers, Errno>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// Sixteen bytes, and the accesses to them.
    #[derive(Default)]
    struct Sixteen(Mutex<Vec<(usize, u64)>>);

    impl Sixteen {
        fn read(&self, offset: usize, width: usize) -> u64 {
            match is_register(offset, width, 16) {
                true => 0x11 * (offset as u64 + 1),
                false => u64::MAX,
            }
        }

        fn write(&self, offset: usize, width: usize, value: u64) {
            if is_register(offset, width, 16) {
                self.0.lock().expect("one thread").push((offset, value));
            }
        }
    }

    impl Registers for Sixteen {
        fn len(&self) -> usize {
            16
        }

        fn read8(&self, offset: usize) -> u8 {
            self.read(offset, 1) as u8
        }

        fn write8(&self, offset: usize, value: u8) {
            self.write(offset, 1, value.into());
        }

        fn read16(&self, offset: usize) -> u16 {
            self.read(offset, 2) as u16
        }

        fn write16(&self, offset: usize, value: u16) {
            self.write(offset, 2, value.into());
        }

        fn read32(&self, offset: usize) -> u32 {
            self.read(offset, 4) as u32
        }

        fn write32(&self, offset: usize, value: u32) {
            self.write(offset, 4, value.into());
        }
    }

    #[test]
    fn eight_bytes_are_two_halves_the_lower_first() {
        let registers: &dyn Registers = &Sixteen::default();
        assert_eq!(registers.read64(8), 0xdd_0000_0099);
        let sixteen = Sixteen::default();
        sixteen.write64(8, 7 << 32 | 5);
        assert_eq!(*sixteen.0.lock().expect("one thread"), [(8, 5), (12, 7)]);
    }

    #[test]
    fn an_access_that_is_not_inside_touches_nothing() {
        for (offset, width) in [
            (16, 1),
            (15, 2),
            (14, 4),
            (13, 4),
            (2, 4),
            (1, 2),
            (usize::MAX, 1),
            (usize::MAX - 3, 4),
        ] {
            assert!(!is_register(offset, width, 16), "{offset} {width}");
        }
        for (offset, width) in [(15, 1), (14, 2), (12, 4), (0, 4)] {
            assert!(is_register(offset, width, 16), "{offset} {width}");
        }
        assert!(!is_register(0, 4, 3));
        assert!(!is_register(0, 1, 0));
        let sixteen = Sixteen::default();
        assert_eq!(sixteen.read64(16), u64::MAX);
        assert_eq!(sixteen.read64(usize::MAX - 3), u64::MAX);
        sixteen.write64(usize::MAX - 3, 1);
        assert!(sixteen.0.lock().expect("one thread").is_empty());
    }
}
