//! What the text says of a group: its physical volumes, and where its logical volumes lie on them.

use super::logical::{LogicalFault, LogicalVolume, Reader};
use super::text::{Section, TextFault, Value, parse};
use super::{Id, is_name};
use crate::memory::{owned, push};
use crate::order::order;
use crate::turns::Turns;
use alloc::string::String;
use alloc::vec::Vec;
use bulkhead_images::Sector;
use core::fmt;

/// The most extents of a physical or logical volume: LVM counts them in 32 bits.
pub(super) const MOST_EXTENTS: u64 = u32::MAX as u64;

/// The most memory that the description of a group may take: that of thousands of volumes. As much is kept of
/// all groups of a disk.
pub(crate) const MOST_BYTES: usize = 2 << 20;

/// A volume group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeGroup {
    /// Its name.
    pub name: String,
    /// Its identity.
    pub id: Id,
    /// Counts its changes.
    pub seqno: u64,
    /// Sectors of an extent, in units of 512 bytes.
    pub extent_size: u64,
    /// Its administrator has made it ready to be moved to another machine: it is not to be used here.
    pub exported: bool,
    /// Its physical volumes.
    pub physical: Vec<PhysicalVolume>,
    /// Its logical volumes, with those that LVM has for itself.
    pub logical: Vec<LogicalVolume>,
}

/// A physical volume, as the group knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PhysicalVolume {
    /// Its name in the text: `pv0`.
    pub name: String,
    /// Its identity, by which it is found.
    pub id: Id,
    /// The first sector of its first extent.
    pub start: u64,
    /// Its number of extents.
    pub extents: u64,
}

/// The reason why a text describes no group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupFault {
    /// It is no text.
    Encoding,
    /// It does not follow the grammar.
    Text(TextFault),
    /// A value is missing, or out of its range.
    Field(&'static str),
    /// It would take more memory than is kept of a disk.
    TooLarge,
    /// There is no memory for it.
    NoMemory,
}

impl fmt::Display for GroupFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GroupFault::Encoding => f.write_str("its text is none"),
            GroupFault::Text(fault) => fault.fmt(f),
            GroupFault::Field(what) => write!(f, "its text has no valid {what}"),
            GroupFault::TooLarge => f.write_str("its text describes more than is kept of a disk"),
            GroupFault::NoMemory => f.write_str("there is no memory for it"),
        }
    }
}

pub(super) type Outcome<T> = Result<T, GroupFault>;

pub(super) const NO_MEMORY: GroupFault = GroupFault::NoMemory;

impl VolumeGroup {
    /// Reads a text as it lies in a metadata area: zeros may follow it. A long one takes several turns of the vCPU.
    pub async fn parse(bytes: &[u8]) -> Outcome<VolumeGroup> {
        let end = bytes.iter().position(|byte| *byte == 0);
        let text = core::str::from_utf8(&bytes[..end.unwrap_or(bytes.len())]);
        let text = text.map_err(|_| GroupFault::Encoding)?;
        let mut turns = Turns::default();
        let root = parse(text, &mut turns).await.map_err(GroupFault::Text)?;
        let (mut group, mut version, mut contents) = (None, None, None);
        for (name, value) in root.entries() {
            match value {
                Value::Section(section) if group.is_none() => group = Some((name, section)),
                Value::Section(_) => return Err(GroupFault::Field("single group")),
                _ if name == "version" => version = value.number(),
                _ if name == "contents" => contents = value.quoted(),
                _ => {}
            }
        }
        if version != Some(1) || contents != Some("Text Format Volume Group") {
            return Err(GroupFault::Field("version and contents"));
        }
        let (name, section) = group.ok_or(GroupFault::Field("group"))?;
        turns.next().await;
        VolumeGroup::of(name, section, &mut turns).await
    }

    async fn of(name: &str, section: Section<'_>, turns: &mut Turns) -> Outcome<VolumeGroup> {
        let (mut id, mut seqno, mut extent_size, mut format) = (None, None, None, None);
        let (mut exported, mut physical, mut logical) = (false, None, None);
        for (name, value) in section.entries() {
            match name {
                "id" => id = value.quoted().and_then(Id::from_text),
                "seqno" => seqno = value.number(),
                "extent_size" => extent_size = value.number(),
                "format" => format = value.quoted(),
                "status" => exported = value.has("EXPORTED"),
                "physical_volumes" => physical = value.section(),
                "logical_volumes" => logical = value.section(),
                _ => {}
            }
        }
        let field = GroupFault::Field;
        let size = extent_size.filter(|size| (1..1 << 32).contains(size));
        let mut group = VolumeGroup {
            name: owned(name).ok_or(NO_MEMORY)?,
            id: id.ok_or(field("identity"))?,
            seqno: seqno.ok_or(field("seqno"))?,
            extent_size: size.ok_or(field("extent_size"))?,
            exported,
            physical: Vec::new(),
            logical: Vec::new(),
        };
        if !is_name(name) {
            return Err(field("name"));
        }
        if format != Some("lvm2") {
            return Err(field("format"));
        }
        let mut bytes = 0;
        let sections = physical.ok_or(field("physical_volumes"))?.entries();
        for (name, value) in sections {
            let section = value.section().ok_or(field("physical volume"))?;
            turns.count().await;
            let volume = PhysicalVolume::of(name, section)?;
            bytes += volume.bytes();
            within_limit(bytes)?;
            push(&mut group.physical, volume).ok_or(NO_MEMORY)?;
        }
        turns.next().await;
        // Segments name physical volumes again and again.
        let by_name = order(group.physical.len(), &|one, other| {
            group.physical[one].name.cmp(&group.physical[other].name)
        });
        let by_name = by_name.ok_or(NO_MEMORY)?;
        let find = |name: &str| {
            let place = by_name.binary_search_by(|at| group.physical[*at].name.as_str().cmp(name));
            place.ok().map(|place| by_name[place])
        };
        let mut snapshots = Vec::new();
        let sections = logical.into_iter().flat_map(Section::entries);
        for (name, value) in sections {
            let section = value.section().ok_or(field("logical volume"))?;
            let reader = Reader {
                physical: &group.physical,
                find: &find,
                extent_size: group.extent_size,
            };
            let volume = reader.logical(name, section, &mut snapshots, turns).await?;
            bytes += volume.bytes();
            within_limit(bytes)?;
            push(&mut group.logical, volume).ok_or(NO_MEMORY)?;
        }
        let by_name = order(snapshots.len(), &|one, other| {
            snapshots[one].cmp(snapshots[other])
        });
        let by_name = by_name.ok_or(NO_MEMORY)?;
        for volume in &mut group.logical {
            let name = volume.name.as_str();
            let found = by_name.binary_search_by(|at| snapshots[*at].cmp(name));
            if volume.fault.is_none() && found.is_ok() {
                volume.fault = Some(LogicalFault::Snapshot);
            }
        }
        turns.next().await;
        group.mark_overlaps()?;
        Ok(group)
    }

    /// Returns about how many bytes of memory the description takes.
    pub(crate) fn bytes(&self) -> usize {
        let physical: usize = self.physical.iter().map(PhysicalVolume::bytes).sum();
        let logical: usize = self.logical.iter().map(LogicalVolume::bytes).sum();
        physical + logical
    }

    /// Returns how many sectors a volume has, in units of 512 bytes.
    pub fn sectors(&self, volume: &LogicalVolume) -> Sector {
        let extents: u64 = volume.segments.iter().map(|segment| segment.extents).sum();
        Sector(extents * self.extent_size)
    }

    /// Finds volumes that have extents together.
    fn mark_overlaps(&mut self) -> Outcome<()> {
        let mut all = Vec::new();
        for (number, volume) in self.logical.iter().enumerate() {
            for segment in &volume.segments {
                let len = segment.extents / segment.stripes.len() as u64;
                for (physical, start) in &segment.stripes {
                    push(&mut all, (*physical, *start, start + len, number)).ok_or(NO_MEMORY)?;
                }
            }
        }
        let in_order = order(all.len(), &|one, other| all[one].cmp(&all[other]));
        let mut furthest: Option<(u32, u64, usize)> = None;
        for position in in_order.ok_or(NO_MEMORY)? {
            let (physical, start, end, number) = all[position];
            let before = furthest.filter(|before| before.0 == physical);
            if let Some((_, until, other)) = before
                && until > start
            {
                for (one, another) in [(number, other), (other, number)] {
                    let name = owned(&self.logical[another].name).ok_or(NO_MEMORY)?;
                    self.logical[one].fault = Some(LogicalFault::Overlaps(name));
                }
            }
            if before.is_none_or(|(_, until, _)| until < end) {
                furthest = Some((physical, end, number));
            }
        }
        Ok(())
    }
}

fn within_limit(bytes: usize) -> Outcome<()> {
    match bytes <= MOST_BYTES {
        true => Ok(()),
        false => Err(GroupFault::TooLarge),
    }
}

impl PhysicalVolume {
    fn bytes(&self) -> usize {
        size_of::<PhysicalVolume>() + self.name.len()
    }

    fn of(name: &str, section: Section<'_>) -> Outcome<PhysicalVolume> {
        let (mut id, mut start, mut extents) = (None, None, None);
        for (name, value) in section.entries() {
            match name {
                "id" => id = value.quoted().and_then(Id::from_text),
                "pe_start" => start = value.number(),
                "pe_count" => extents = value.number(),
                _ => {}
            }
        }
        let field = GroupFault::Field;
        // So that no product of these overflows.
        let start = start.filter(|start| *start < 1 << 54);
        let extents = extents.filter(|extents| *extents <= MOST_EXTENTS);
        Ok(PhysicalVolume {
            name: owned(name).ok_or(NO_MEMORY)?,
            id: id.ok_or(field("identity of a physical volume"))?,
            start: start.ok_or(field("pe_start"))?,
            extents: extents.ok_or(field("pe_count"))?,
        })
    }
}
