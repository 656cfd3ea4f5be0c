//! Targets that name a device without data.

use super::NullDevice;
use crate::claim::Access;
use crate::device::SectorSize;
use crate::io::Sector;
use crate::store::{OpenDevice, Owner, Store, open_with};
use crate::target::{Target, TargetError, TargetOptions, parse_size};
use alloc::string::ToString;
use alloc::sync::Arc;

/// `null:SIZE[,sector-size=512|4096][,physical-sector-size=512|4096]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NullTarget {
    /// The size, in units of 512 bytes.
    pub sectors: Sector,
    /// The unit in which the guest addresses it.
    pub sector_size: SectorSize,
    /// The unit that the guest is told to prefer; not smaller.
    pub physical_sector_size: SectorSize,
}

impl NullTarget {
    /// Reads the value and the options of such a target.
    pub fn parse(target: Target<'_>) -> Result<Self, TargetError> {
        let size = parse_size(target.value)?;
        let options = TargetOptions::parse(target.options)?;
        let (sector_size, physical_sector_size) = options.sizes()?;
        for (option, given) in [
            ("discard", options.discard.is_some()),
            ("shared", options.shared.is_some()),
        ] {
            if given {
                return Err(TargetError::WithoutData(option));
            }
        }
        // The physical sectors are not smaller than the others.
        if !size.is_multiple_of(physical_sector_size.bytes() as u64) {
            return Err(TargetError::Size(target.value.to_string()));
        }
        Ok(NullTarget {
            sectors: Sector(size / Sector::SIZE as u64),
            sector_size,
            physical_sector_size,
        })
    }
}

/// The store `null:`.
pub struct NullStore;

impl Store for NullStore {
    fn scheme(&self) -> &'static str {
        "null"
    }

    fn expected(&self) -> &'static str {
        "null:SIZE"
    }

    fn open<'a>(&'a self, target: Target<'a>, access: Access, _owner: Owner<'a>) -> OpenDevice<'a> {
        open_with(|| {
            let target = NullTarget::parse(target)?;
            let device = NullDevice::new(target.sectors, target.sector_size, access);
            Ok(Arc::new(
                device.with_physical_sectors(target.physical_sector_size),
            ))
        })
    }
}
