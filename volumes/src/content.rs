//! What is on a disk: partitions, and physical volumes of LVM on them or on the disk itself.

use crate::gpt::{self, GptError, PartitionTable};
use crate::lvm::{self, Found, GroupFault, LvmError, VolumeGroup};
use crate::memory::push;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_images::{DeviceReader, OpenQueueError, Sector};
use core::fmt;
use core::ops::Range;

/// The most partitions of a disk that are searched for physical volumes. Whoever has LVM needs one.
const MOST_PHYSICAL: usize = 64;

/// The content of a disk, as it was read last.
#[derive(Clone, Debug, Default)]
pub struct Content {
    /// The partitions, if there is a table.
    pub table: Option<PartitionTable>,
    /// The physical volumes.
    pub physical: Vec<Found>,
    /// Remarks for the operator, in sentences.
    pub notes: Vec<String>,
    /// The places that were not searched for a physical volume, because guests could write there: the numbers of
    /// partitions, or `None` for the disk itself.
    pub unsearched: Vec<Option<u32>>,
}

/// The reason why the content of a disk is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContentError {
    /// The disk cannot be opened.
    Open(OpenQueueError),
    /// The partition table cannot be used.
    Gpt(GptError),
    /// There is no partition table, and a damaged label of LVM.
    Lvm(LvmError),
}

impl fmt::Display for ContentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ContentError::Open(error) => write!(f, "it cannot be opened: {error}"),
            ContentError::Gpt(error) => error.fmt(f),
            ContentError::Lvm(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for ContentError {}

/// Returns whether one of the ranges has sectors of another one.
pub(crate) fn meets(ranges: &[Range<u64>], other: &Range<u64>) -> bool {
    let meets = |one: &Range<u64>| one.start < other.end && other.start < one.end;
    ranges.iter().any(meets)
}

impl Content {
    /// Reads the tables of a disk, through a reader of it.
    ///
    /// Physical volumes are looked for on partitions whose type says that they are some, or on a disk that
    /// has no partitions. Others belong to guests, who may write there what they like: a label of LVM too,
    /// with the names of other guests' volumes. For the same reason nothing is looked for in the sectors that
    /// guests could write to (`written`).
    pub async fn read(
        reader: &mut DeviceReader,
        written: &[Range<u64>],
    ) -> Result<Content, ContentError> {
        let mut content = Content::default();
        let table = gpt::read(reader, written)
            .await
            .map_err(ContentError::Gpt)?;
        let of_guest = |start: Sector| meets(written, &(start.0..start.0 + lvm::LABEL_SECTORS));
        let Some(table) = table else {
            if of_guest(Sector(0)) {
                content.unsearched.push(None);
                return Ok(content);
            }
            let sectors = reader.geometry().sectors;
            let found = lvm::read(reader, Sector(0), sectors).await;
            content.add(found.map_err(ContentError::Lvm)?, "")?;
            return Ok(content);
        };
        content
            .notes
            .extend(table.note.as_ref().map(ToString::to_string));
        let usable = table.partitions.iter();
        let usable =
            usable.filter(|partition| partition.fault.is_none() && partition.is_physical_volume());
        for (searched, partition) in usable.enumerate() {
            if searched == MOST_PHYSICAL {
                content.note(alloc::format!(
                    "more than {MOST_PHYSICAL} partitions are not searched for physical volumes of LVM"
                ))?;
                break;
            }
            if of_guest(partition.start) {
                content.unsearched.push(Some(partition.number));
                continue;
            }
            let on = alloc::format!(" on partition {}", partition.number);
            match lvm::read(reader, partition.start, partition.sectors).await {
                Ok(found) => content.add(found, &on)?,
                Err(LvmError::NoMemory) => return Err(ContentError::Lvm(LvmError::NoMemory)),
                Err(error) => {
                    content.note(alloc::format!("partition {}: {error}", partition.number))?
                }
            }
        }
        content.table = Some(table);
        Ok(content)
    }

    fn add(&mut self, found: Option<Found>, on: &str) -> Result<(), ContentError> {
        let Some(mut found) = found else {
            return Ok(());
        };
        if let Some(group) = found.group.take() {
            found.group = self.keep(group);
            if found.group.is_none() {
                let fault = lvm::CopyFault::Group(GroupFault::TooLarge);
                push(&mut found.faults, fault).ok_or(ContentError::Lvm(LvmError::NoMemory))?;
            }
        }
        for fault in &found.faults {
            self.note(alloc::format!(
                "a copy of the metadata of LVM{on} is not used: {fault}"
            ))?;
        }
        push(&mut self.physical, found).ok_or(ContentError::Lvm(LvmError::NoMemory))
    }

    /// Keeps the description of a group, once for all physical volumes that have the same one. `None` if there is
    /// too much already.
    fn keep(&self, group: Arc<VolumeGroup>) -> Option<Arc<VolumeGroup>> {
        let mut others = self
            .physical
            .iter()
            .filter_map(|found| found.group.as_ref());
        let same = others
            .find(|other| (other.id, other.seqno) == (group.id, group.seqno) && ***other == *group);
        if let Some(same) = same {
            return Some(same.clone());
        }
        let bytes = |number: usize, group: &Arc<VolumeGroup>| {
            let mut before = self.physical[..number].iter();
            let again = before.any(|it| it.group.as_ref().is_some_and(|it| Arc::ptr_eq(it, group)));
            if again { 0 } else { group.bytes() }
        };
        let kept = self.physical.iter().enumerate();
        let kept = kept.filter_map(|(number, found)| Some((number, found.group.as_ref()?)));
        let kept: usize = kept.map(|(number, group)| bytes(number, group)).sum();
        (kept + group.bytes() <= lvm::MOST_BYTES).then_some(group)
    }

    fn note(&mut self, note: String) -> Result<(), ContentError> {
        push(&mut self.notes, note).ok_or(ContentError::Lvm(LvmError::NoMemory))
    }

    /// Returns the number of the partition that begins with that sector; `None` if there is none.
    pub(crate) fn partition_at(&self, start: Sector) -> Option<u32> {
        let mut partitions = self.table.iter().flat_map(|table| &table.partitions);
        let partition = partitions.find(|partition| partition.start == start)?;
        Some(partition.number)
    }

    /// Returns the groups that have a physical volume here, as the newest copy here describes each.
    pub fn groups(&self) -> Vec<&Arc<VolumeGroup>> {
        newest_of(self.physical.iter())
    }
}

/// Returns the groups that these physical volumes belong to, as the newest copy of them describes each.
pub(crate) fn newest_of<'f>(
    physical: impl Iterator<Item = &'f Found>,
) -> Vec<&'f Arc<VolumeGroup>> {
    let mut groups: Vec<&Arc<VolumeGroup>> = Vec::new();
    for group in physical.filter_map(|found| found.group.as_ref()) {
        match groups.iter_mut().find(|known| known.id == group.id) {
            // One of several copies of the same group counts: the first of the newest.
            Some(known) if known.seqno < group.seqno => *known = group,
            Some(_) => {}
            None => groups.push(group),
        }
    }
    groups
}
