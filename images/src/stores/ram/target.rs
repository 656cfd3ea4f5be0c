//! Targets that name an image of the ramdisk.

use crate::catalog::Catalog;
use crate::claim::Access;
use crate::device::SectorSize;
use crate::discard::DiscardMode;
use crate::store::{OpenDevice, Owner, Store, open_with};
use crate::target::{Target, TargetError, TargetOptions};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

/// `ram:NAME[,sector-size=512|4096][,physical-sector-size=512|4096][,discard=keep|release][,shared=yes|no]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RamTarget {
    /// The image's name: the file's path in the archive.
    pub name: String,
    /// The unit in which the guest addresses it.
    pub sector_size: SectorSize,
    /// The unit that the guest is told to prefer; not smaller.
    pub physical_sector_size: SectorSize,
    /// The use of discarded memory, if it differs from the driver domain's setting.
    pub discard: Option<DiscardMode>,
    /// True if other disks may have the image open too, writers among them, whose targets say the same.
    pub shared: bool,
}

impl RamTarget {
    /// Reads the value and the options of such a target.
    pub fn parse(target: Target<'_>) -> Result<Self, TargetError> {
        if target.value.is_empty() {
            return Err(TargetError::NoName);
        }
        let options = TargetOptions::parse(target.options)?;
        let (sector_size, physical_sector_size) = options.sizes()?;
        Ok(RamTarget {
            name: target.value.to_string(),
            sector_size,
            physical_sector_size,
            discard: options.discard,
            shared: options.shared.unwrap_or(false),
        })
    }
}

/// The store `ram:`.
pub struct RamStore {
    catalog: Arc<Catalog>,
}

impl RamStore {
    /// Returns the store of these images.
    pub(crate) fn new(catalog: Arc<Catalog>) -> RamStore {
        RamStore { catalog }
    }
}

impl Store for RamStore {
    fn scheme(&self) -> &'static str {
        "ram"
    }

    fn expected(&self) -> &'static str {
        "ram:NAME"
    }

    fn lines(&self) -> Vec<String> {
        // Loops: one chain of iterators takes a kilobyte more of the smallest unikernel.
        let mut lines = Vec::new();
        for (name, bytes, open) in self.catalog.images() {
            lines.push(format!(
                "image ram:{name}, {bytes} bytes, open {open} time(s)"
            ));
        }
        self.catalog.for_each_use(|name, access, owner| {
            lines.push(format!("ram:{name} is open for {access} by {owner}"));
        });
        lines
    }

    fn open<'a>(&'a self, target: Target<'a>, access: Access, owner: Owner<'a>) -> OpenDevice<'a> {
        open_with(|| {
            let target = RamTarget::parse(target)?;
            Ok(Arc::new(
                self.catalog.open_ram(&target, access, owner.name)?,
            ))
        })
    }
}
