//! The structures in which a controller describes its namespaces (Identify, CNS 00h and 02h).

use super::PAGE;
use super::entry::NamespaceId;
use super::field::{u16_at, u32_at, u64_at};
use bulkhead_images::{Sector, SectorSize};
use core::fmt;

/// The identify structure of a namespace that can be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamespaceData {
    /// Its size, in sectors of 512 bytes.
    pub sectors: Sector,
    /// The size of its logical blocks.
    pub sector_size: SectorSize,
    /// The unit in which it is best written (NPWG): 4096 bytes if it prefers a multiple of that, else a logical block.
    pub physical_sector_size: SectorSize,
    /// The unit in which it is best deallocated (NPDG), in sectors of 512 bytes.
    pub deallocation: Sector,
    /// It is write-protected.
    pub read_only: bool,
    /// Write Zeroes may deallocate, and what is deallocated reads as zeros.
    pub zeroes_deallocate: bool,
    /// Its globally unique identifiers, NGUID and EUI64; zeros where it has none.
    pub guid: [u8; 24],
}

/// The reason why a namespace cannot be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamespaceError {
    /// The controller describes none: its size is 0 blocks.
    Missing,
    /// It has blocks of neither 512 nor 4096 bytes.
    BlockSize {
        /// Their size in bytes, as a power of two.
        power: u8,
    },
    /// Its blocks have metadata.
    Metadata {
        /// The bytes of metadata for each block.
        bytes: u16,
    },
    /// Its size in bytes does not fit into 64 bits.
    TooLarge {
        /// Its size in blocks.
        blocks: u64,
    },
}

impl fmt::Display for NamespaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NamespaceError::Missing => f.write_str("it is not there"),
            NamespaceError::BlockSize { power } => write!(
                f,
                "it is formatted with blocks of 2^{power} bytes, expected 512 or 4096"
            ),
            NamespaceError::Metadata { bytes } => write!(
                f,
                "it is formatted with {bytes} bytes of metadata for each block, expected none"
            ),
            NamespaceError::TooLarge { blocks } => {
                write!(f, "it claims to have {blocks} blocks, which cannot be")
            }
        }
    }
}

impl core::error::Error for NamespaceError {}

impl NamespaceData {
    /// Reads the structure.
    pub fn parse(bytes: &[u8; PAGE]) -> Result<NamespaceData, NamespaceError> {
        let blocks = u64_at(bytes, 0);
        if blocks == 0 {
            return Err(NamespaceError::Missing);
        }
        let (formats, chosen) = (bytes[25], bytes[26]);
        // The upper bits of FLBAS count only if there are more formats than the lower four can name.
        let upper = if formats >= 16 { chosen >> 5 & 3 } else { 0 };
        let format = usize::from(chosen & 0xf | upper << 4);
        let at = 128 + format * 4;
        let (metadata, power) = (u16_at(bytes, at), bytes[at + 2]);
        let sector_size = match power {
            9 => SectorSize::B512,
            12 => SectorSize::B4096,
            power => return Err(NamespaceError::BlockSize { power }),
        };
        if metadata != 0 {
            return Err(NamespaceError::Metadata { bytes: metadata });
        }
        let unit = sector_size.sectors().0;
        let sectors = blocks.checked_mul(unit).filter(|sectors| {
            // Sums of byte offsets cannot overflow later.
            *sectors <= u64::MAX / Sector::SIZE as u64
        });
        let sectors = sectors.ok_or(NamespaceError::TooLarge { blocks })?;
        // Bit 4 of the features: the preferred units are given.
        let preferred = |at| match bytes[24] >> 4 & 1 {
            1 => (u64::from(u16_at(bytes, at)) + 1) * unit,
            _ => unit,
        };
        let writes_best = preferred(64).is_multiple_of(SectorSize::B4096.sectors().0);
        Ok(NamespaceData {
            sectors: Sector(sectors),
            sector_size,
            physical_sector_size: match writes_best {
                true => SectorSize::B4096,
                false => sector_size,
            },
            deallocation: Sector(preferred(68)),
            read_only: bytes[99] & 1 == 1,
            zeroes_deallocate: bytes[33] & 0xf == 0b1001,
            guid: core::array::from_fn(|index| bytes[104 + index]),
        })
    }
}

/// Reads a list of active namespaces. They are in ascending order; a list that is not ends where the order does.
pub fn active_namespaces(bytes: &[u8; PAGE]) -> impl Iterator<Item = NamespaceId> {
    let mut last = 0;
    let numbers = (0..PAGE / 4).map(|index| u32_at(bytes, index * 4));
    numbers
        .take_while(move |number| {
            let ascends = *number > last && *number < u32::MAX - 1;
            last = *number;
            ascends
        })
        .map(NamespaceId)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn structure(blocks: u64, format: u8, power: u8) -> [u8; PAGE] {
        let mut bytes = [0; PAGE];
        bytes[..8].copy_from_slice(&blocks.to_le_bytes());
        bytes[25] = 63;
        bytes[26] = format & 0xf | format >> 4 << 5;
        bytes[128 + usize::from(format) * 4 + 2] = power;
        bytes
    }

    #[test]
    fn blocks_of_both_sizes_make_sectors() {
        let data = NamespaceData::parse(&structure(1000, 0, 9)).expect("usual");
        assert_eq!(data.sectors, Sector(1000));
        assert_eq!(data.physical_sector_size, SectorSize::B512);
        let data = NamespaceData::parse(&structure(1000, 33, 12)).expect("usual");
        assert_eq!(
            (data.sectors, data.sector_size),
            (Sector(8000), SectorSize::B4096)
        );
        // With few formats the upper bits mean nothing.
        let mut few = structure(1000, 1, 12);
        (few[25], few[26]) = (3, 0x61);
        assert!(NamespaceData::parse(&few).is_ok());
    }

    #[test]
    fn what_cannot_be_served_is_refused_with_the_reason() {
        let refused = |bytes| NamespaceData::parse(&bytes).expect_err("refused");
        assert_eq!(refused(structure(0, 0, 9)), NamespaceError::Missing);
        for power in [0, 8, 10, 11, 13, 255] {
            assert_eq!(
                refused(structure(9, 0, power)),
                NamespaceError::BlockSize { power }
            );
        }
        let mut bytes = structure(9, 2, 9);
        bytes[136] = 8;
        assert_eq!(refused(bytes), NamespaceError::Metadata { bytes: 8 });
        for (blocks, power) in [(u64::MAX, 9), (1 << 61, 12), (1 << 55, 9)] {
            let error = refused(structure(blocks, 0, power));
            assert_eq!(error, NamespaceError::TooLarge { blocks });
        }
    }

    #[test]
    fn preferred_units_count_only_where_they_are_given() {
        let mut bytes = structure(64, 0, 9);
        (bytes[64], bytes[68]) = (7, 15);
        let data = NamespaceData::parse(&bytes).expect("usual");
        assert_eq!(data.deallocation, Sector(1));
        assert_eq!(data.physical_sector_size, SectorSize::B512);
        bytes[24] = 1 << 4;
        let data = NamespaceData::parse(&bytes).expect("usual");
        assert_eq!(data.deallocation, Sector(16));
        assert_eq!(data.physical_sector_size, SectorSize::B4096);
    }

    #[test]
    fn a_list_of_namespaces_ends_where_it_stops_to_ascend() {
        let list = |numbers: &[u32]| -> Vec<u32> {
            let mut bytes = [0; PAGE];
            for (index, number) in numbers.iter().enumerate() {
                bytes[index * 4..index * 4 + 4].copy_from_slice(&number.to_le_bytes());
            }
            active_namespaces(&bytes).map(|number| number.0).collect()
        };
        assert_eq!(list(&[]), []);
        assert_eq!(list(&[1, 2, 7, 0, 9]), [1, 2, 7]);
        assert_eq!(list(&[3, 3]), [3]);
        assert_eq!(list(&[3, 2]), [3]);
        assert_eq!(list(&[u32::MAX]), []);
        let all: Vec<u32> = (1..=1024).collect();
        assert_eq!(list(&all), all);
    }

    proptest! {
        #[test]
        fn any_bytes_can_be_read(bytes in proptest::collection::vec(any::<u8>(), PAGE)) {
            let bytes: [u8; PAGE] = bytes.try_into().expect("a page");
            if let Ok(data) = NamespaceData::parse(&bytes) {
                prop_assert!(data.sectors.bytes().is_some());
                prop_assert!(data.deallocation.0 > 0);
            }
            prop_assert!(active_namespaces(&bytes).count() <= 1024);
        }
    }
}
