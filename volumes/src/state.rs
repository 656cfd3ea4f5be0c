//! The disks that are known, and what of them is open.

use crate::claims::{Claims, DiskId};
use crate::content::Content;
use crate::gpt::Partition;
use crate::lvm::VolumeGroup;
use crate::name::VolumePart;
use crate::open::Open;
use crate::order::order;
use crate::resolve::{self, Known};
use alloc::rc::{Rc, Weak};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_images::{Access, BlockDevice, Sector, WeakSharedDevice};

/// The disks that are known, and the volumes that are open.
#[derive(Default)]
pub(crate) struct VolumesState {
    pub next: u64,
    pub disks: Vec<Disk>,
    pub open: Vec<Open>,
    /// The disks whose readers were given up, as long as tasks wait for them to let go of the readers' memory.
    pub given_up: Vec<(DiskId, Weak<()>)>,
}

/// A disk that is known.
pub(crate) struct Disk {
    pub id: DiskId,
    pub name: String,
    pub source: Rc<Source>,
    /// As long as somebody uses it.
    pub device: WeakSharedDevice,
    /// Its size when it was opened last.
    pub sectors: Sector,
    pub content: Option<Arc<Content>>,
}

/// Opens a disk, to be written to if it can be, or says in a sentence why it is not there.
pub type Source = dyn Fn() -> Result<Arc<dyn BlockDevice>, String>;

/// A disk, for statistics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskState {
    /// Its name.
    pub name: String,
    /// Its size, in units of 512 bytes.
    pub sectors: Sector,
    /// The volumes on it, and the sectors of each by the newest copy on any disk. Empty as long as nobody
    /// wanted to know.
    pub volumes: Vec<(String, Sector)>,
    /// The parts of it that are open, by whom, and what for.
    pub users: Vec<(String, String, Access)>,
}

/// Returns for each partition whether its label names it alone. Without memory for that, none does.
fn unique_labels(partitions: &[Partition]) -> Vec<bool> {
    let label = |position: usize| partitions[position].label.as_str();
    let by_label = order(partitions.len(), &|one, other| label(one).cmp(label(other)));
    let mut unique = alloc::vec![false; partitions.len()];
    let by_label = by_label.unwrap_or_default();
    for (place, position) in by_label.iter().enumerate() {
        let beside = [place.wrapping_sub(1), place + 1];
        let mut beside = beside.iter().filter_map(|place| by_label.get(*place));
        let namesake = beside.any(|other| label(*other) == label(*position));
        unique[*position] = !namesake && !label(*position).is_empty();
    }
    unique
}

impl VolumesState {
    pub fn forget_closed(&mut self) {
        self.open.retain(|open| open.claim.strong_count() > 0);
    }

    pub fn contents(&self, claims: &Claims) -> Vec<Known> {
        let known = |disk: &Disk| Known {
            disk: disk.id,
            name: disk.name.clone(),
            content: disk.content.clone(),
            written: claims.written(disk.id),
        };
        self.disks.iter().map(known).collect()
    }

    pub fn disk_state(&self, id: DiskId, claims: &Claims) -> Option<DiskState> {
        let disk = self.disks.iter().find(|disk| disk.id == id)?;
        let mut volumes = Vec::new();
        if let Some(content) = &disk.content {
            let partitions = content
                .table
                .as_ref()
                .map_or(&[][..], |table| &table.partitions);
            for (partition, unique) in partitions.iter().zip(unique_labels(partitions)) {
                if partition.fault.is_some() {
                    continue;
                }
                let part = match unique {
                    true => VolumePart::Label(partition.label.clone()),
                    false => VolumePart::Guid(partition.id),
                };
                volumes.push((alloc::format!("{}{part}", disk.name), partition.sectors));
            }
            let contents = self.contents(claims);
            for group in content.groups() {
                // What is open is as large as the newest copy of all disks says, and so is what is shown.
                let wanted = |other: &VolumeGroup| other.id == group.id;
                let Ok(group) = resolve::newest(&contents, id, &group.name, &wanted) else {
                    continue;
                };
                let usable = group.logical.iter();
                for volume in usable.filter(|volume| volume.fault.is_none()) {
                    let name = alloc::format!("{}/{}/{}", disk.name, group.name, volume.name);
                    volumes.push((name, group.sectors(volume)));
                }
            }
        }
        Some(DiskState {
            name: disk.name.clone(),
            sectors: match disk.device.upgrade() {
                Some(device) => device.device().geometry().sectors,
                None => disk.sectors,
            },
            volumes,
            users: claims.users(id),
        })
    }
}
