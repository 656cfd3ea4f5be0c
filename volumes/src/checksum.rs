//! The checksums of the tables.

use crc::{Algorithm, Crc, Digest, Table};

/// What the UEFI specification asks for: the CRC-32 of Ethernet.
static GPT: Crc<u32, Table<1>> = Crc::<u32, Table<1>>::new(&gpt_disk_types::Crc32::ALGORITHM);

/// LVM's: the same polynomial, another start, no inversion at the end (`INITIAL_CRC` and `calc_crc` in its sources).
static LVM: Crc<u32, Table<1>> = Crc::<u32, Table<1>>::new(&Algorithm {
    width: 32,
    poly: 0x04C1_1DB7,
    init: 0xF597_A6CF_u32.reverse_bits(),
    refin: true,
    refout: true,
    xorout: 0,
    check: 0,
    residue: 0,
});

/// A checksum that is being computed.
pub(crate) struct Checksum(Digest<'static, u32, Table<1>>);

impl Checksum {
    /// Returns that of a partition table's header or entries.
    pub fn of_gpt() -> Checksum {
        Checksum(GPT.digest())
    }

    /// Returns that of LVM's labels, headers and texts.
    pub fn of_lvm() -> Checksum {
        Checksum(LVM.digest())
    }

    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub fn value(self) -> u32 {
        self.0.finalize()
    }
}
