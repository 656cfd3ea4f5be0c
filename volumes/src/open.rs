//! A volume that is open, and what becomes of it when the tables change.

use crate::claims::{DiskId, DiskRange, SectorsClaim};
use crate::rescan::Outcome;
use crate::resolve::{self, VolumeIdentity};
use alloc::string::{String, ToString};
use alloc::sync::Weak;
use alloc::vec::Vec;
use bulkhead_images::{ExtentMap, WeakMappedDevice};

/// A volume that is open, as long as it is.
pub(crate) struct Open {
    pub name: String,
    pub identity: VolumeIdentity,
    pub disks: Vec<DiskId>,
    pub device: WeakMappedDevice,
    pub claim: Weak<SectorsClaim>,
}

/// The sectors that a map is about.
pub(crate) fn ranges(map: &ExtentMap, disks: &[DiskId]) -> Vec<DiskRange> {
    let ranges = map.ranges().filter_map(|(device, start, len)| {
        Some(DiskRange {
            disk: *disks.get(device)?,
            sectors: start.0..start.0 + len.0,
        })
    });
    ranges.collect()
}

impl Open {
    /// Compares an open volume with what its disks say now, and makes it as large as it is there. `None` if it is
    /// as it was.
    pub fn compare(&self, contents: resolve::Contents<'_>) -> Option<Outcome> {
        let (device, claim) = (self.device.upgrade()?, self.claim.upgrade()?);
        let resolved = match self.identity {
            VolumeIdentity::Partition(disk, guid) => {
                resolve::partition(contents, disk, &self.name, &|it| it.id == guid)
            }
            VolumeIdentity::Logical(disk, group, volume) => resolve::logical(
                contents,
                disk,
                &self.name,
                &|it| it.id == group,
                &|it| it.id == volume,
                &self.disks,
            ),
        };
        let resolved = match resolved {
            Ok(resolved) => resolved,
            Err(error) => return Some(Outcome::Kept(error.to_string())),
        };
        let (old, new) = (device.map(), resolved.map);
        let kept = |reason: &str| Some(Outcome::Kept(reason.to_string()));
        if *old == new {
            return None;
        }
        if !old.is_start_of(&new) {
            return match new.is_start_of(&old) {
                true => kept("it is smaller now"),
                false => kept("it lies elsewhere now"),
            };
        }
        let (from, to) = (old.sectors(), new.sectors());
        if from == to {
            return None;
        }
        if resolved.disks.len() > self.disks.len() {
            return kept("it goes on on another disk, and has to be attached again for that");
        }
        let before = ranges(&old, &self.disks);
        if let Err(overlap) = claim.change(ranges(&new, &self.disks)) {
            return Some(Outcome::Kept(alloc::format!(
                "it cannot have what it has grown by: {overlap}"
            )));
        }
        if let Err(error) = device.extend(new) {
            // What it had is still its own.
            let _ = claim.change(before);
            return Some(Outcome::Kept(error.to_string()));
        }
        Some(Outcome::Grown { from, to })
    }
}
