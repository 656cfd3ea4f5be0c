//! The entries of a partition table.

use super::header::Header;
use crate::order::order;
use alloc::string::String;
use bulkhead_images::Sector;
use core::fmt;
use gpt_disk_types::{GptPartitionEntry, GptPartitionType, Guid, guid};

/// The type of partitions that hold a physical volume of LVM.
const LVM: Guid = guid!("e6d6d379-f507-44c2-a23c-238f2a3df928");

/// The attribute that a partition is not to be written to, as Windows and systemd define it.
const READ_ONLY: u64 = 1 << 60;

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its number, from 1 on.
    pub number: u32,
    /// Its own identity.
    pub id: Guid,
    /// Its purpose.
    pub kind: Guid,
    /// Its name; empty if it has none.
    pub label: String,
    /// Its first sector, in units of 512 bytes.
    pub start: Sector,
    /// Its number of sectors, in units of 512 bytes.
    pub sectors: Sector,
    /// It is not to be written to.
    pub read_only: bool,
    /// The reason why it cannot be used.
    pub fault: Option<PartitionFault>,
}

/// The reason why a partition cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartitionFault {
    /// It ends before it begins, or has blocks that partitions may not have.
    Outside,
    /// It has blocks of the partition of that number too.
    Overlaps(u32),
}

impl fmt::Display for PartitionFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PartitionFault::Outside => f.write_str("it lies outside of where partitions may be"),
            PartitionFault::Overlaps(number) => write!(f, "it overlaps partition {number}"),
        }
    }
}

impl Partition {
    /// Reads an entry; `None` if it is not in use.
    pub(super) fn parse(bytes: &[u8], number: u32, header: &Header, unit: u64) -> Option<Self> {
        let fixed = bytes.get(..size_of::<GptPartitionEntry>())?;
        let entry: GptPartitionEntry = bytemuck::pod_read_unaligned(fixed);
        let kind = entry.partition_type_guid;
        if kind == GptPartitionType::UNUSED {
            return None;
        }
        let (first, last) = (entry.starting_lba.to_u64(), entry.ending_lba.to_u64());
        let inside = header.first <= first && first <= last && last <= header.last;
        let sectors = unit / Sector::SIZE as u64;
        // The header's blocks are few enough for that.
        let (start, len) = match inside {
            true => (first * sectors, (last - first + 1) * sectors),
            false => (0, 0),
        };
        let name = entry.name;
        let units = name.0.chunks_exact(2);
        let units = units.map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
        let label = char::decode_utf16(units.take_while(|unit| *unit != 0));
        Some(Partition {
            number,
            id: entry.unique_partition_guid,
            kind: kind.0,
            label: label
                .map(|letter| letter.unwrap_or(char::REPLACEMENT_CHARACTER))
                .collect(),
            start: Sector(start),
            sectors: Sector(len),
            read_only: entry.attributes.0.to_u64() & READ_ONLY != 0,
            fault: (!inside).then_some(PartitionFault::Outside),
        })
    }

    /// Returns whether it is for a physical volume of LVM.
    pub fn is_physical_volume(&self) -> bool {
        self.kind == LVM
    }
}

/// Finds partitions that have sectors together. `None` without memory.
pub(super) fn mark_overlaps(partitions: &mut [Partition]) -> Option<()> {
    let by_start = order(partitions.len(), &|one, other| {
        partitions[one].start.cmp(&partitions[other].start)
    })?;
    // The one that reaches furthest so far.
    let mut furthest: Option<usize> = None;
    for index in by_start {
        if partitions[index].fault == Some(PartitionFault::Outside) {
            continue;
        }
        let end = |partition: &Partition| partition.start.0 + partition.sectors.0;
        if let Some(before) = furthest
            && end(&partitions[before]) > partitions[index].start.0
        {
            let numbers = [before, index].map(|index| partitions[index].number);
            partitions[index].fault = Some(PartitionFault::Overlaps(numbers[0]));
            partitions[before].fault = Some(PartitionFault::Overlaps(numbers[1]));
        }
        if furthest.is_none_or(|before| end(&partitions[before]) < end(&partitions[index])) {
            furthest = Some(index);
        }
    }
    Some(())
}
