//! Targets that name a device without data.

use super::NullDevice;
use crate::catalog::{Catalog, OpenError};
use crate::claim::Access;
use crate::device::{BlockDevice, SectorSize};
use crate::io::Sector;
use crate::target::{Options, StoreTarget, TargetError, parse_size};
use alloc::string::ToString;
use alloc::sync::Arc;

/// `null:SIZE[,sector-size=512|4096][,physical-sector-size=512|4096]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NullTarget {
    /// The size, in units of 512 bytes.
    pub sectors: Sector,
    /// The unit in which the guest addresses it.
    pub sector_size: SectorSize,
    /// The unit that it is told to prefer; not smaller.
    pub physical_sector_size: SectorSize,
}

impl StoreTarget for NullTarget {
    const KIND: &'static str = "null";
    const EXPECTED: &'static str = "null:SIZE";

    fn parse(value: &str, options: Option<&str>) -> Result<Self, TargetError> {
        let size = parse_size(value)?;
        let options = Options::parse(options)?;
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
            return Err(TargetError::Size(value.to_string()));
        }
        Ok(NullTarget {
            sectors: Sector(size / Sector::SIZE as u64),
            sector_size,
            physical_sector_size,
        })
    }

    fn open(
        &self,
        _catalog: &Catalog,
        access: Access,
        _owner: &str,
    ) -> Result<Arc<dyn BlockDevice>, OpenError> {
        let device = NullDevice::new(self.sectors, self.sector_size, access);
        Ok(Arc::new(
            device.with_physical_sectors(self.physical_sector_size),
        ))
    }
}
