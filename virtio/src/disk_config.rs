//! The features of a disk that are used, and its configuration (virtio 1.2, sections 5.2.3 and 5.2.4).

use crate::error::StartError;
use crate::slots::MOST_SEGMENTS;
use crate::transport::Transport;
use alloc::format;
use alloc::string::ToString;
use bulkhead_images::{MOST_FORGOTTEN, Sector, SectorSize};
use bulkhead_xen::{PAGE_SIZE, Registers};
use virtio_spec::blk::{F, T};
use virtio_spec::le128;

// `virtio_blk_config`, by the offsets of its fields.
const CAPACITY: usize = 0;
const SIZE_MAX: usize = 8;
const SEG_MAX: usize = 12;
const BLK_SIZE: usize = 20;
const PHYSICAL_BLOCK_EXP: usize = 24;
const NUM_QUEUES: usize = 34;
const MAX_DISCARD_SECTORS: usize = 36;
const DISCARD_SECTOR_ALIGNMENT: usize = 44;
const MAX_WRITE_ZEROES_SECTORS: usize = 48;
const WRITE_ZEROES_MAY_UNMAP: usize = 56;

/// The features without which a device is not used.
const NEEDED: F = F::VERSION_1.union(F::ACCESS_PLATFORM);

/// The features that are used where they are offered.
const USED: F = NEEDED
    .union(F::SIZE_MAX)
    .union(F::SEG_MAX)
    .union(F::RO)
    .union(F::BLK_SIZE)
    .union(F::FLUSH)
    .union(F::TOPOLOGY)
    .union(F::MQ)
    .union(F::DISCARD)
    .union(F::WRITE_ZEROES)
    .union(F::INDIRECT_DESC)
    .union(F::EVENT_IDX)
    .union(F::ORDER_PLATFORM);

/// The largest disk, in sectors: its bytes are counted in 63 bits.
const MOST_SECTORS: u64 = 1 << 54;

/// The number of attempts to read the configuration without a change of it meanwhile.
const READS: usize = 16;

/// Chooses the features to accept from those that are offered. Fails if the device is a legacy one, or bypasses the
/// IOMMU.
pub fn negotiate(offered: u64) -> Result<F, StartError> {
    let offered = F::from_bits_truncate(le128::from_ne(offered.into()));
    let unusable = |reason: &str| Err(StartError::Unusable(reason.to_string()));
    if !offered.contains(F::VERSION_1) {
        return unusable("it is a legacy device (without VIRTIO_F_VERSION_1)");
    }
    if !offered.contains(F::ACCESS_PLATFORM) {
        return unusable(
            "its accesses to memory bypass the IOMMU (without VIRTIO_F_ACCESS_PLATFORM; with QEMU: \
             iommu_platform=on)",
        );
    }
    Ok(offered & USED)
}

/// Returns features as the bits of the two feature registers, the lower one first.
pub fn bits(features: F) -> u64 {
    features.bits().to_ne() as u64
}

/// The request by which a disk discards data, and its limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiscardRequest {
    /// The type of the request.
    pub request: T,
    /// The most sectors of one request, whole blocks.
    pub most: u32,
    /// The unit that the disk prefers, at least a block.
    pub granularity: Sector,
}

/// The configuration of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    /// Its size, in sectors of 512 bytes, whole blocks.
    pub sectors: Sector,
    /// The size of its blocks.
    pub sector_size: SectorSize,
    /// The size of its physical blocks, 4096 bytes if it is more than that.
    pub physical_sector_size: SectorSize,
    /// The most segments of a request, from 1 to [`MOST_SEGMENTS`].
    pub segments: usize,
    /// The number of its queues, at least 1.
    pub queues: u16,
    /// The request by which it discards data, if there is one.
    pub discards: Option<DiscardRequest>,
    /// It has a write cache: writes need a flush to be durable.
    pub flushes: bool,
    /// It can only be read.
    pub read_only: bool,
}

impl DiskConfig {
    /// Reads the configuration of a disk.
    ///
    /// # Errors
    /// If the device is gone, the configuration changes each time it is read, or its size, the size of its blocks or
    /// the size of its segments cannot be used.
    pub fn read(transport: &Transport, features: F) -> Result<DiskConfig, StartError> {
        for _ in 0..READS {
            let before = transport.generation();
            let config = Self::parse(transport.disk(), features);
            if transport.state().is_gone() {
                return Err(StartError::Gone);
            }
            if transport.generation() == before {
                return config;
            }
        }
        Err(StartError::Restless)
    }

    fn parse(disk: &dyn Registers, features: F) -> Result<DiskConfig, StartError> {
        let has = |feature: F| features.contains(feature);
        let unusable = |reason| Err(StartError::Unusable(reason));
        let capacity = disk.read64(CAPACITY);
        if capacity > MOST_SECTORS {
            return unusable(format!("its size of {capacity} sectors is impossible"));
        }
        let block = match has(F::BLK_SIZE) {
            true => disk.read32(BLK_SIZE),
            false => 512,
        };
        let sector_size = match block {
            512 => SectorSize::B512,
            4096 => SectorSize::B4096,
            other => {
                return unusable(format!(
                    "its blocks have {other} bytes, expected 512 or 4096"
                ));
            }
        };
        let exponent = match has(F::TOPOLOGY) {
            true => disk.read8(PHYSICAL_BLOCK_EXP).min(31),
            false => 0,
        };
        let physical_sector_size = match u64::from(block) << exponent {
            0..4096 => SectorSize::B512,
            _ => SectorSize::B4096,
        };
        if has(F::SIZE_MAX) && (disk.read32(SIZE_MAX) as usize) < PAGE_SIZE {
            let most = disk.read32(SIZE_MAX);
            return unusable(format!(
                "it takes segments of at most {most} bytes, expected a page"
            ));
        }
        let segments = match has(F::SEG_MAX) {
            true => disk.read32(SEG_MAX) as usize,
            // Without the feature, only one segment is promised.
            false => 1,
        };
        let queues = match has(F::MQ) {
            true => disk.read16(NUM_QUEUES),
            false => 1,
        };
        Ok(DiskConfig {
            sectors: Sector(capacity - capacity % sector_size.sectors().0),
            sector_size,
            physical_sector_size,
            segments: segments.clamp(1, MOST_SEGMENTS),
            queues: queues.max(1),
            discards: discards(disk, features, sector_size),
            flushes: has(F::FLUSH),
            read_only: has(F::RO),
        })
    }

    /// Returns whether this may be the disk that had the configuration `before`: all but its size is the same.
    pub fn is_like(&self, before: &DiskConfig) -> bool {
        let sectors = before.sectors;
        DiskConfig { sectors, ..*self } == *before
    }
}

/// Returns the request by which a disk discards data, if there is one.
fn discards(disk: &dyn Registers, features: F, sector_size: SectorSize) -> Option<DiscardRequest> {
    let unit = sector_size.sectors().0 as u32;
    let whole = |sectors: u32| sectors - sectors % unit;
    let at_once = |sectors: u32| whole(sectors.min((MOST_FORGOTTEN / Sector::SIZE as u64) as u32));
    let discard = features.contains(F::DISCARD);
    let most = at_once(disk.read32(MAX_DISCARD_SECTORS));
    if discard && most > 0 {
        let granularity = disk.read32(DISCARD_SECTOR_ALIGNMENT);
        return Some(DiscardRequest {
            request: T::Discard,
            most,
            granularity: Sector(whole(granularity).max(unit).into()),
        });
    }
    let most = at_once(disk.read32(MAX_WRITE_ZEROES_SECTORS));
    let zeroes = features.contains(F::WRITE_ZEROES) && disk.read8(WRITE_ZEROES_MAY_UNMAP) == 1;
    (zeroes && most > 0).then_some(DiscardRequest {
        request: T::WriteZeroes,
        most,
        granularity: sector_size.sectors(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    /// Registers that hold bytes.
    struct Bytes(Vec<u8>);

    impl Bytes {
        fn number<const N: usize>(&self, offset: usize) -> [u8; N] {
            let bytes = self.0.get(offset..offset + N);
            bytes.map_or([0xff; N], |bytes| bytes.try_into().expect("N bytes"))
        }
    }

    impl Registers for Bytes {
        fn len(&self) -> usize {
            self.0.len()
        }
        fn read8(&self, offset: usize) -> u8 {
            u8::from_le_bytes(self.number(offset))
        }
        fn write8(&self, _: usize, _: u8) {}
        fn read16(&self, offset: usize) -> u16 {
            u16::from_le_bytes(self.number(offset))
        }
        fn write16(&self, _: usize, _: u16) {}
        fn read32(&self, offset: usize) -> u32 {
            u32::from_le_bytes(self.number(offset))
        }
        fn write32(&self, _: usize, _: u32) {}
    }

    #[test]
    fn a_device_that_bypasses_the_iommu_is_not_used() {
        let refused = |offered: u64| negotiate(offered).expect_err("refused").to_string();
        assert!(refused(1 << 33).contains("legacy"));
        assert!(refused(1 << 32 | 1 << 9).contains("iommu_platform=on"));
        let all = negotiate(u64::MAX).expect("usable");
        // Neither a packed queue, nor what it would have to be asked for.
        assert_eq!(bits(all) & (1 << 34 | 1 << 11 | 1 << 4), 0);
        assert_eq!(bits(all) & 3 << 32, 3 << 32);
    }

    #[test]
    fn a_disk_with_nothing_is_served() {
        let mut bytes = vec![0; 8];
        bytes[0] = 100;
        let config = DiskConfig::parse(&Bytes(bytes), NEEDED).expect("usable");
        assert_eq!(config.sectors, Sector(100));
        assert_eq!((config.segments, config.queues), (1, 1));
        assert_eq!((config.discards, config.flushes), (None, false));
    }

    #[test]
    fn blocks_of_4096_bytes_are_whole() {
        let mut bytes = vec![0; 60];
        bytes[0] = 23;
        bytes[20..24].copy_from_slice(&4096_u32.to_le_bytes());
        bytes[36..40].copy_from_slice(&1001_u32.to_le_bytes());
        let features = NEEDED | F::BLK_SIZE | F::DISCARD;
        let config = DiskConfig::parse(&Bytes(bytes), features).expect("usable");
        assert_eq!(config.sectors, Sector(16));
        let discards = config.discards.expect("it discards");
        assert_eq!((discards.most, discards.granularity), (1000, Sector(8)));
    }

    proptest! {
        #[test]
        fn no_configuration_makes_an_impossible_disk(
            bytes in prop::collection::vec(any::<u8>(), 8..64),
            offered: u64,
        ) {
            let features = negotiate(offered | 3 << 32).expect("what is needed");
            let Ok(config) = DiskConfig::parse(&Bytes(bytes), features) else {
                return Ok(());
            };
            let unit = config.sector_size.sectors().0;
            prop_assert!(config.sectors.bytes().is_some());
            prop_assert_eq!(config.sectors.0 % unit, 0);
            prop_assert!(config.physical_sector_size >= config.sector_size);
            prop_assert!((1..=MOST_SEGMENTS).contains(&config.segments) && config.queues > 0);
            if let Some(discards) = config.discards {
                prop_assert!(discards.most > 0 && u64::from(discards.most) % unit == 0);
                prop_assert_eq!(discards.granularity.0 % unit, 0);
            }
        }
    }
}
