//! Base address registers: where a function's registers are, and how many (PCI Local Bus Specification 3.0, section
//! 6.2.5.1).

use core::fmt;
use core::ops::Range;

/// The register of the first BAR.
pub const FIRST: u16 = 0x10;
/// The number of BARs of a function that is not a bridge.
pub const COUNT: u8 = 6;

/// The bit of a BAR of I/O ports.
const IO: u32 = 1;
/// The bits for the width of a memory BAR, and their value for 64 bits.
const WIDTH: u32 = 6;
const WIDE: u32 = 4;
/// The bits of a memory BAR that are not part of the address.
const FLAGS: u32 = 0xf;

/// A memory BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// The bus address at which dom0 has placed it.
    pub address: u64,
    /// Its size in bytes, a power of two.
    pub size: u64,
}

/// The reason why a BAR cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadBar {
    /// The function has no such BAR.
    Missing {
        /// The BAR.
        bar: u8,
    },
    /// It is a BAR of I/O ports, not of memory.
    Ports {
        /// The BAR.
        bar: u8,
    },
    /// Its size is not a power of two, or dom0 has not placed it at a multiple of its size below 2^52.
    Nonsense {
        /// The BAR.
        bar: u8,
    },
    /// It is smaller than the driver needs.
    TooSmall {
        /// The BAR.
        bar: u8,
        /// Its size in bytes.
        size: u64,
    },
}

impl fmt::Display for BadBar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { bar } => write!(f, "it has no BAR {bar}"),
            Self::Ports { bar } => write!(f, "BAR {bar} is of I/O ports"),
            Self::Nonsense { bar } => write!(f, "BAR {bar} has an impossible size or place"),
            Self::TooSmall { bar, size } => {
                write!(f, "BAR {bar} has only {size} bytes")
            }
        }
    }
}

impl core::error::Error for BadBar {}

/// Returns whether a BAR is one of 64-bit memory, whose upper half is in the next register.
pub fn is_wide(low: u32) -> bool {
    low & (IO | WIDTH) == WIDE
}

impl Bar {
    /// Reads a BAR: the lower and upper value of its registers, and both after all ones were written to them. For a BAR
    /// of 32 bits, the upper values are 0 and all ones.
    pub fn new(bar: u8, (low, high): (u32, u32), sized: (u32, u32)) -> Result<Bar, BadBar> {
        if low & IO != 0 {
            return Err(BadBar::Ports { bar });
        }
        let wide = |high: u32, low: u32| u64::from(high) << 32 | u64::from(low & !FLAGS);
        let address = wide(high, low);
        let mask = wide(sized.1, sized.0);
        if sized.0 & !FLAGS == 0 && (!is_wide(low) || sized.1 == 0) {
            return Err(BadBar::Missing { bar });
        }
        let size = mask.wrapping_neg();
        // Placed, a size that is a power of two, a multiple of that size, and within the 52 bits that a physical
        // address has on x86.
        let sensible = address != 0
            && size.is_power_of_two()
            && address.is_multiple_of(size)
            && address
                .checked_add(size - 1)
                .is_some_and(|last| last >> 52 == 0);
        match sensible {
            true => Ok(Bar { address, size }),
            false => Err(BadBar::Nonsense { bar }),
        }
    }

    /// Returns the bus addresses of the bytes at `offsets`. An empty range is refused like one past the end.
    pub fn part(&self, bar: u8, offsets: &Range<u64>) -> Result<Range<u64>, BadBar> {
        let size = self.size;
        match offsets.start < offsets.end && offsets.end <= size {
            true => Ok(self.address + offsets.start..self.address + offsets.end),
            false => Err(BadBar::TooSmall { bar, size }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_bar_of_64_bits() {
        assert!(is_wide(0xfebe_4004));
        let bar = Bar::new(0, (0xfebe_4004, 0), (0xffff_c004, u32::MAX));
        let expected = Bar {
            address: 0xfebe_4000,
            size: 0x4000,
        };
        assert_eq!(bar, Ok(expected));
        let high = Bar::new(0, (0x4, 0x80), (0x4, 0xffff_fffe)).expect("a BAR of 8 GiB");
        assert_eq!((high.address, high.size), (0x80 << 32, 2 << 32));
    }

    #[test]
    fn a_bar_of_32_bits() {
        assert!(!is_wide(0xfebd_5000));
        let bar = Bar::new(1, (0xfebd_5000, 0), (0xffff_f000, u32::MAX)).expect("a BAR");
        assert_eq!((bar.address, bar.size), (0xfebd_5000, 0x1000));
        assert_eq!(bar.part(1, &(0..0x1000)), Ok(0xfebd_5000..0xfebd_6000));
        assert_eq!(bar.part(1, &(0xff0..0x1000)), Ok(0xfebd_5ff0..0xfebd_6000));
        let small = Err(BadBar::TooSmall {
            bar: 1,
            size: 0x1000,
        });
        for wrong in [0..0x1001, 0x1000..0x1001, 5..5, u64::MAX - 1..u64::MAX] {
            assert_eq!(bar.part(1, &wrong), small, "{wrong:?}");
        }
    }

    #[test]
    fn what_is_no_memory_bar_is_refused() {
        let refused = |registers, sized| Bar::new(2, registers, sized).expect_err("refused");
        assert_eq!(refused((0xc001, 0), (0xffe1, 0)), BadBar::Ports { bar: 2 });
        assert_eq!(refused((0, 0), (0, u32::MAX)), BadBar::Missing { bar: 2 });
        assert_eq!(refused((4, 0), (4, 0)), BadBar::Missing { bar: 2 });
        let nonsense = BadBar::Nonsense { bar: 2 };
        // Not placed, a mask with a hole, and a place that its size does not allow.
        assert_eq!(refused((0, 0), (0xffff_f000, u32::MAX)), nonsense);
        assert_eq!(refused((0xfeb0_0000, 0), (0xfff0_f000, u32::MAX)), nonsense);
        assert_eq!(refused((0xfeb0_1000, 0), (0xffff_0000, u32::MAX)), nonsense);
        assert_eq!(refused((4, 0xffff_ffff), (0xffff_c004, u32::MAX)), nonsense);
    }

    proptest! {
        #[test]
        fn no_registers_make_a_bar_that_wraps(low: u32, high: u32, sized_low: u32, sized_high: u32) {
            if let Ok(bar) = Bar::new(0, (low, high), (sized_low, sized_high)) {
                prop_assert!(bar.size.is_power_of_two());
                let end = bar.address.checked_add(bar.size);
                prop_assert!(end.is_some_and(|end| end <= 1 << 52));
            }
        }
    }
}
