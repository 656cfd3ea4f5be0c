//! The numbers by which xenstore knows disks, and the names under which guests show them
//! (`xen/docs/man/xen-vbd-interface.7`).

use alloc::string::String;
use core::fmt;

/// Block major number of the xvd disks, whose low byte holds 16 disks of 16 partitions.
const XVD_MAJOR: u32 = 202;

/// Marks the scheme of more disks, of 256 partitions each.
const EXTENDED: u32 = 1 << 28;

/// A disk by its place among the guest's disks, and a partition of it (0 for the whole disk).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskName {
    /// 0 for xvda.
    pub disk: u32,
    /// 0 for the whole disk.
    pub partition: u32,
}

impl DiskName {
    /// Returns the name that a device number stands for, where the number follows one of both schemes.
    pub fn of(number: u32) -> Option<DiskName> {
        if number >> 8 == XVD_MAJOR {
            let low = number & 0xff;
            Some(DiskName {
                disk: low / 16,
                partition: low % 16,
            })
        } else if number >> 28 == 1 {
            Some(DiskName {
                disk: (number & !EXTENDED) >> 8,
                partition: number & 0xff,
            })
        } else {
            None
        }
    }
}

/// As Linux shows it: `xvda`, `xvdb1`, `xvdaa`.
impl fmt::Display for DiskName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut letters = String::new();
        let mut left = self.disk;
        loop {
            letters.insert(0, char::from(b'a' + (left % 26) as u8));
            match left / 26 {
                0 => break,
                more => left = more - 1,
            }
        }
        match self.partition {
            0 => write!(f, "xvd{letters}"),
            partition => write!(f, "xvd{letters}{partition}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    fn named(number: u32) -> Option<String> {
        DiskName::of(number).map(|name| name.to_string())
    }

    #[test]
    fn numbers_of_both_schemes_have_the_names_that_a_guest_shows() {
        for (number, name) in [
            (51712, "xvda"),
            (51729, "xvdb1"),
            (51952, "xvdp"),
            (EXTENDED | 16 << 8, "xvdq"),
            (EXTENDED | 25 << 8 | 17, "xvdz17"),
            (EXTENDED | 26 << 8, "xvdaa"),
            (EXTENDED | 701 << 8, "xvdzz"),
            (EXTENDED | 702 << 8, "xvdaaa"),
        ] {
            assert_eq!(named(number).as_deref(), Some(name));
        }
    }

    #[test]
    fn other_numbers_have_no_name() {
        for number in [0, 768, 2048, u32::MAX] {
            assert_eq!(named(number), None, "{number}");
        }
    }
}
