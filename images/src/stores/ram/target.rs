//! Targets that name an image of the ramdisk.

use crate::catalog::{Catalog, OpenError};
use crate::claim::Access;
use crate::device::{BlockDevice, SectorSize};
use crate::discard::DiscardMode;
use crate::target::{Options, StoreTarget, TargetError};
use alloc::string::{String, ToString};
use alloc::sync::Arc;

/// `ram:NAME[,sector-size=512|4096][,physical-sector-size=512|4096][,discard=keep|release][,shared=yes|no]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RamTarget {
    /// The image's name: the file's path in the archive.
    pub name: String,
    /// The unit in which the guest addresses it.
    pub sector_size: SectorSize,
    /// The unit that it is told to prefer; not smaller.
    pub physical_sector_size: SectorSize,
    /// What becomes of discarded memory, if not what the driver domain does with all of it.
    pub discard: Option<DiscardMode>,
    /// The image may be open for others too, writers among them, whose targets say the same.
    pub shared: bool,
}

impl StoreTarget for RamTarget {
    const KIND: &'static str = "ram";
    const EXPECTED: &'static str = "ram:NAME";

    fn parse(value: &str, options: Option<&str>) -> Result<Self, TargetError> {
        if value.is_empty() {
            return Err(TargetError::NoName);
        }
        let options = Options::parse(options)?;
        let (sector_size, physical_sector_size) = options.sizes()?;
        Ok(RamTarget {
            name: value.to_string(),
            sector_size,
            physical_sector_size,
            discard: options.discard,
            shared: options.shared.unwrap_or(false),
        })
    }

    fn open(
        &self,
        catalog: &Catalog,
        access: Access,
        owner: &str,
    ) -> Result<Arc<dyn BlockDevice>, OpenError> {
        Ok(Arc::new(catalog.open_ram(self, access, owner)?))
    }
}
