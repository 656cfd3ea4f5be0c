//! Finding volumes in what is on the disks: where each lies.

use crate::claims::DiskId;
use crate::content::{Content, meets, newest_of};
use crate::error::{Unsearched, VolumeError};
use crate::gpt::Partition;
use crate::lvm::{Found, Id, LogicalVolume, VolumeGroup, shown};
use crate::memory::{filled, push};
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_images::{ExtentError, ExtentMap, Leg, Sector};
use core::ops::Range;
use gpt_disk_types::Guid;

/// The most names that a message has.
const MOST_NAMES: usize = 20;

/// A disk, and what is known of it.
pub(crate) struct Known {
    pub disk: DiskId,
    pub name: String,
    pub content: Option<Arc<Content>>,
    /// The sectors that guests could write to: what is there says nothing of others' volumes.
    pub written: Vec<Range<u64>>,
}

impl Known {
    /// Returns the physical volumes that describe others' volumes.
    fn physical(&self) -> impl Iterator<Item = &Found> {
        let content = self.content.iter();
        let all = content.flat_map(|content| &content.physical);
        all.filter(|found| self.is_believed(found))
    }

    fn is_believed(&self, found: &Found) -> bool {
        let mut reserved = found.reserved.iter();
        !reserved.any(|sectors| meets(&self.written, sectors))
    }

    /// Returns the places that are not searched, as messages name them.
    fn unsearched(&self) -> impl Iterator<Item = String> {
        let content = self.content.iter();
        let places = content.flat_map(|content| {
            let later = content.physical.iter().filter(|it| !self.is_believed(it));
            let later = later.map(|found| content.partition_at(found.start));
            content.unsearched.iter().copied().chain(later)
        });
        places.map(|place| match place {
            Some(number) => alloc::format!("partition {number} of {}", self.name),
            None => self.name.clone(),
        })
    }
}

/// Returns the places on those disks that are not searched.
fn unsearched<'k>(known: impl Iterator<Item = &'k Known>) -> Unsearched {
    let places = known.flat_map(Known::unsearched);
    Unsearched(places.take(MOST_NAMES).collect())
}

/// The content of the disks, as far as it is known.
pub(crate) type Contents<'c> = &'c [Known];

/// The identity of a volume, whatever it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VolumeIdentity {
    /// A partition of a disk.
    Partition(DiskId, Guid),
    /// A volume of a group that is known by a disk.
    Logical(DiskId, Id, Id),
}

impl VolumeIdentity {
    /// Returns the disk that it was named by.
    pub fn disk(&self) -> DiskId {
        match self {
            VolumeIdentity::Partition(disk, _) | VolumeIdentity::Logical(disk, ..) => *disk,
        }
    }
}

/// A volume, and where it lies.
#[derive(Debug)]
pub(crate) struct Resolved {
    pub identity: VolumeIdentity,
    /// The disks that the map's legs are on, in the order of their numbers there.
    pub disks: Vec<DiskId>,
    pub map: ExtentMap,
    pub read_only: bool,
    /// It is a partition for physical volumes.
    pub for_lvm: bool,
}

/// Finds the partitions that are meant, and takes it if it is one alone.
pub(crate) fn partition(
    contents: Contents<'_>,
    disk: DiskId,
    name: &str,
    wanted: &dyn Fn(&Partition) -> bool,
) -> Result<Resolved, VolumeError> {
    let table = content(contents, disk).and_then(|content| content.table.as_ref());
    let table = table.ok_or_else(|| VolumeError::NoTable { name: name.into() })?;
    let mut found = table
        .partitions
        .iter()
        .filter(|partition| wanted(partition));
    let Some(partition) = found.next() else {
        let labels = table.partitions.iter();
        let labels = labels.filter(|partition| !partition.label.is_empty());
        return Err(VolumeError::NotFound {
            name: name.into(),
            there: labels
                .take(MOST_NAMES)
                .map(|partition| shown(&partition.label))
                .collect(),
            unsearched: Unsearched::default(),
        });
    };
    let others: Vec<Guid> = found.map(|other| other.id).take(MOST_NAMES).collect();
    if !others.is_empty() {
        let mut partitions = alloc::vec![partition.id];
        partitions.extend(others);
        return Err(VolumeError::Ambiguous {
            name: name.into(),
            partitions,
        });
    }
    if let Some(fault) = partition.fault {
        return Err(VolumeError::Unusable {
            name: name.into(),
            fault: fault.to_string(),
        });
    }
    let mut map = ExtentMap::default();
    let leg = Leg {
        device: 0,
        start: partition.start,
    };
    map.push(partition.sectors, &[leg])
        .map_err(|error| extents(name, error))?;
    Ok(Resolved {
        identity: VolumeIdentity::Partition(disk, partition.id),
        disks: alloc::vec![disk],
        map,
        read_only: partition.read_only,
        for_lvm: partition.is_physical_volume(),
    })
}

/// Finds a logical volume. `disks` are those that it lies on already, in the order of their numbers.
pub(crate) fn logical(
    contents: Contents<'_>,
    disk: DiskId,
    name: &str,
    group: &dyn Fn(&VolumeGroup) -> bool,
    volume: &dyn Fn(&LogicalVolume) -> bool,
    disks: &[DiskId],
) -> Result<Resolved, VolumeError> {
    let group = newest(contents, disk, name, group)?;
    if group.exported {
        return Err(VolumeError::Unusable {
            name: name.into(),
            fault: "its volume group is exported, to be used elsewhere".into(),
        });
    }
    let volume = group.logical.iter().find(|logical| volume(logical));
    let volume = volume.ok_or_else(|| VolumeError::NotFound {
        name: name.into(),
        there: group.names(),
        unsearched: Unsearched::default(),
    })?;
    if let Some(fault) = &volume.fault {
        return Err(VolumeError::Unusable {
            name: name.into(),
            fault: fault.to_string(),
        });
    }
    let (map, disks) = lay_out(contents, name, &group, volume, disks)?;
    Ok(Resolved {
        identity: VolumeIdentity::Logical(disk, group.id, volume.id),
        disks,
        map,
        read_only: !volume.writable,
        for_lvm: false,
    })
}

impl VolumeGroup {
    /// Returns the names of volumes that can be opened, for messages.
    fn names(&self) -> Vec<String> {
        let usable = self
            .logical
            .iter()
            .filter(|logical| logical.fault.is_none());
        let names = usable.map(|logical| logical.name.clone());
        names.take(MOST_NAMES).collect()
    }
}

fn known(contents: Contents<'_>, disk: DiskId) -> Option<&Known> {
    contents.iter().find(|known| known.disk == disk)
}

fn content(contents: Contents<'_>, disk: DiskId) -> Option<&Content> {
    known(contents, disk)?.content.as_deref()
}

fn extents(name: &str, error: ExtentError) -> VolumeError {
    VolumeError::Unusable {
        name: name.into(),
        fault: error.to_string(),
    }
}

/// Returns the newest description of a group that a disk knows.
///
/// A newer one on another disk counts if that disk has a physical volume of the group by the description so far:
/// what somebody else wrote on a disk of theirs in the group's name does not.
pub(crate) fn newest(
    contents: Contents<'_>,
    disk: DiskId,
    name: &str,
    wanted: &dyn Fn(&VolumeGroup) -> bool,
) -> Result<Arc<VolumeGroup>, VolumeError> {
    let not_found = |there: Vec<String>| VolumeError::NotFound {
        name: name.into(),
        there,
        unsearched: unsearched(known(contents, disk).into_iter()),
    };
    let here = || known(contents, disk).into_iter().flat_map(Known::physical);
    let groups = newest_of(here());
    let mut found = groups.iter().filter(|group| wanted(group));
    let Some(first) = found.next() else {
        let names = groups.iter().flat_map(|group| {
            let names = group.names().into_iter();
            names.map(|name| alloc::format!("{}/{name}", group.name))
        });
        return Err(not_found(names.take(MOST_NAMES).collect()));
    };
    if let Some(other) = found.next() {
        return Err(VolumeError::Unusable {
            name: name.into(),
            fault: alloc::format!(
                "there are two volume groups of that name, {} and {}",
                first.id,
                other.id
            ),
        });
    }
    let mut group = (*first).clone();
    loop {
        let newer = contents.iter().flat_map(Known::physical).find(|found| {
            let newer = found.group.as_ref();
            let newer = newer.filter(|other| other.id == group.id && other.seqno > group.seqno);
            let mut members = group.physical.iter();
            newer.is_some()
                && members.any(|physical| physical.id == found.id)
                && places(contents, found.id).nth(1).is_none()
        });
        match newer.and_then(|found| found.group.clone()) {
            // Its number is higher each time.
            Some(newer) => group = newer,
            None => break,
        }
    }
    // It may have another name by now, or be elsewhere.
    let still_here = here().any(|found| {
        let mut members = group.physical.iter();
        members.any(|physical| physical.id == found.id)
    });
    match wanted(&group) && still_here {
        true => Ok(group),
        false => Err(not_found(Vec::new())),
    }
}

/// Returns where a physical volume was found.
fn places<'c>(contents: Contents<'c>, id: Id) -> impl Iterator<Item = (DiskId, &'c Found)> {
    contents.iter().flat_map(move |known| {
        let all = known.physical().filter(move |found| found.id == id);
        all.map(move |found| (known.disk, found))
    })
}

/// The place of a physical volume: the number of its disk in the list, and what was found there.
type FoundOn<'c> = (usize, &'c Found);

/// Finds out where the segments of a volume lie.
fn lay_out(
    contents: Contents<'_>,
    name: &str,
    group: &VolumeGroup,
    volume: &LogicalVolume,
    known: &[DiskId],
) -> Result<(ExtentMap, Vec<DiskId>), VolumeError> {
    let no_memory = || extents(name, ExtentError::NoMemory);
    let mut disks = known.to_vec();
    // By their position in the group: each is looked for once.
    let mut found: Vec<Option<FoundOn<'_>>> = Vec::new();
    found
        .try_reserve_exact(group.physical.len())
        .map_err(|_| no_memory())?;
    found.resize(group.physical.len(), None);
    let mut used = filled(group.physical.len()).ok_or_else(no_memory)?;
    for segment in &volume.segments {
        for (position, _) in &segment.stripes {
            used[*position as usize] = 1;
        }
    }
    let (mut missing, mut more_missing) = (Vec::new(), 0);
    for (position, physical) in group.physical.iter().enumerate() {
        if used[position] == 0 {
            continue;
        }
        let mut places = places(contents, physical.id);
        let Some((disk, place)) = places.next() else {
            if missing.len() == MOST_NAMES {
                more_missing += 1;
                continue;
            }
            let what = alloc::format!("{} ({})", shown(&physical.name), physical.id);
            push(&mut missing, what).ok_or_else(no_memory)?;
            continue;
        };
        if places.next().is_some() {
            return Err(VolumeError::Unusable {
                name: name.into(),
                fault: alloc::format!(
                    "its physical volume {} ({}) is there twice",
                    shown(&physical.name),
                    physical.id
                ),
            });
        }
        let number = match disks.iter().position(|other| *other == disk) {
            Some(number) => number,
            None => {
                push(&mut disks, disk).ok_or_else(no_memory)?;
                disks.len() - 1
            }
        };
        found[position] = Some((number, place));
    }
    if more_missing > 0 {
        let what = alloc::format!("{more_missing} more");
        push(&mut missing, what).ok_or_else(no_memory)?;
    }
    if !missing.is_empty() {
        return Err(VolumeError::Missing {
            name: name.into(),
            physical: missing,
            unsearched: unsearched(contents.iter()),
        });
    }
    let outside = || VolumeError::Unusable {
        name: name.into(),
        fault: "a part of it is past the end of its physical volume".into(),
    };
    let mut map = ExtentMap::default();
    let mut legs = Vec::new();
    for segment in &volume.segments {
        legs.clear();
        let each = segment.extents / segment.stripes.len() as u64;
        for (position, first) in &segment.stripes {
            let physical = &group.physical[*position as usize];
            let (device, place_of) = found[*position as usize].ok_or_else(outside)?;
            let place = |extent: u64| {
                let within = extent.checked_mul(group.extent_size)?;
                physical.start.checked_add(within)
            };
            let end = place(first + each).filter(|end| *end <= place_of.sectors.0);
            let start = end.and_then(|_| place(*first)).ok_or_else(outside)?;
            let base = place_of.start.0;
            let own = base + start..base + end.unwrap_or(start);
            if meets(&place_of.reserved, &own) {
                return Err(VolumeError::Unusable {
                    name: name.into(),
                    fault: "a part of it lies where its physical volume has its metadata".into(),
                });
            }
            let leg = Leg {
                device,
                start: Sector(own.start),
            };
            push(&mut legs, leg).ok_or_else(no_memory)?;
        }
        let sectors = segment.extents.checked_mul(group.extent_size);
        let sectors = Sector(sectors.ok_or_else(outside)?);
        map.push_striped(sectors, Sector(segment.chunk), &legs)
            .map_err(|error| extents(name, error))?;
    }
    Ok((map, disks))
}
