//! The checksums of the tables.

use crc::{Crc, Digest, Table};

/// The checksum of the UEFI specification: the CRC-32 of Ethernet.
static CRC: Crc<u32, Table<1>> = Crc::<u32, Table<1>>::new(&gpt_disk_types::Crc32::ALGORITHM);

/// The start of LVM's checksum: the same polynomial, and so the same table (`INITIAL_CRC` in its sources).
const LVM_START: u32 = 0xF597_A6CF;

/// A checksum that is being computed.
pub(crate) struct Checksum {
    digest: Digest<'static, u32, Table<1>>,
    /// The bits that are inverted at the end.
    inverted: u32,
}

impl Checksum {
    /// Returns that of a partition table's header or entries.
    pub fn of_gpt() -> Checksum {
        Checksum {
            digest: CRC.digest(),
            inverted: 0,
        }
    }

    /// Returns that of LVM's labels, headers and texts, which is not inverted at the end (`calc_crc` in its sources).
    pub fn of_lvm() -> Checksum {
        Checksum {
            digest: CRC.digest_with_initial(LVM_START.reverse_bits()),
            inverted: u32::MAX,
        }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        self.digest.update(bytes);
    }

    pub fn value(self) -> u32 {
        self.digest.finalize() ^ self.inverted
    }
}

#[cfg(test)]
mod tests {
    use super::Checksum;

    // What zlib's `crc32` makes of the same bytes; for LVM's, with the start and the result inverted.
    #[test]
    fn they_are_those_of_the_formats() {
        for (mut checksum, expected) in [
            (Checksum::of_gpt(), 0xCBF4_3926),
            (Checksum::of_lvm(), 0x4991_CF02),
        ] {
            checksum.update(b"12345");
            checksum.update(b"6789");
            assert_eq!(checksum.value(), expected);
        }
    }
}
