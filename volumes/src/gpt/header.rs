//! The header of a partition table.

use crate::checksum::Checksum;
use core::fmt;
use gpt_disk_types::{GptHeader, GptHeaderRevision, GptPartitionEntrySize, Guid};

/// The most bytes that the entries may have together: 64 times what tools make by default.
const MOST_BYTES: u64 = 1 << 20;

/// The largest entry that is read. The specification has no limit, tools make 128 bytes.
const LARGEST_ENTRY: u32 = 4096;

/// The reason why a copy of a partition table is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyFault {
    /// The header is none, or says something that cannot be.
    Header(&'static str),
    /// The entries do not have the checksum that the header says.
    TableChecksum,
    /// There are more partitions than that.
    TooMany(usize),
}

impl fmt::Display for CopyFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CopyFault::Header(what) => f.write_str(what),
            CopyFault::TableChecksum => f.write_str("the checksum of its entries is wrong"),
            CopyFault::TooMany(most) => write!(f, "it has more than {most} partitions"),
        }
    }
}

/// What a header says; all of it can be.
#[derive(Clone, Debug)]
pub(super) struct Header {
    pub disk: Guid,
    /// The block that has the other header.
    pub other: u64,
    /// The blocks that partitions may have.
    pub first: u64,
    pub last: u64,
    /// The first block of the entries.
    pub table: u64,
    pub entries: u32,
    pub entry_size: usize,
    pub table_checksum: u32,
}

impl Header {
    /// Reads the header in a block of a disk that has `blocks` blocks.
    pub fn parse(bytes: &[u8], block: u64, blocks: u64) -> Result<Header, CopyFault> {
        let fault = |what| Err(CopyFault::Header(what));
        let Some(fixed) = bytes.get(..size_of::<GptHeader>()) else {
            return fault("its header is too short");
        };
        let header: GptHeader = bytemuck::pod_read_unaligned(fixed);
        if !header.is_signature_valid() {
            return fault("it has no header");
        }
        if header.revision != GptHeaderRevision::VERSION_1_0 {
            return fault("its header has another version than 1.0");
        }
        let size = header.header_size.to_u32() as usize;
        let Some(covered) = bytes.get(..size).filter(|_| size >= fixed.len()) else {
            return fault("its header has a size that cannot be");
        };
        // The checksum's own place counts as zeros.
        let mut checksum = Checksum::of_gpt();
        checksum.update(&covered[..16]);
        checksum.update(&[0; 4]);
        checksum.update(&covered[20..]);
        if checksum.value() != header.header_crc32.0.to_u32() {
            return fault("the checksum of its header is wrong");
        }
        if header.my_lba.to_u64() != block {
            return fault("its header belongs elsewhere");
        }
        let entry_size = header.size_of_partition_entry.to_u32();
        let possible = GptPartitionEntrySize::new(entry_size).is_ok();
        if !possible || entry_size > LARGEST_ENTRY {
            return fault("its entries have a size that cannot be");
        }
        let header = Header {
            disk: header.disk_guid,
            other: header.alternate_lba.to_u64(),
            first: header.first_usable_lba.to_u64(),
            last: header.last_usable_lba.to_u64(),
            table: header.partition_entry_lba.to_u64(),
            entries: header.number_of_partition_entries.to_u32(),
            entry_size: entry_size as usize,
            table_checksum: header.partition_entry_array_crc32.0.to_u32(),
        };
        if header.table_bytes() > MOST_BYTES {
            return fault("it has more entries than are read");
        }
        // Nobody has a disk of 2^52 blocks; what follows cannot overflow then.
        if header.last >= blocks || header.first > header.last || blocks > 1 << 52 {
            return fault("its partitions would be past the end of the disk");
        }
        // Whoever has a partition there could make another table of it: the MBR, both headers, and the last
        // block, in which the backup is looked for.
        let usable = header.first..=header.last;
        let headers = [0, 1, block, header.other, blocks - 1];
        if headers.iter().any(|header| usable.contains(header)) {
            return fault("its partitions could have the sectors of its headers");
        }
        let used = header.table_bytes().div_ceil(bytes.len() as u64);
        let end = header.table.checked_add(used);
        let elsewhere = |end: u64| end <= header.first || header.table > header.last;
        if header.table < 2 || !end.is_some_and(|end| end <= blocks && elsewhere(end)) {
            return fault("its entries would be where partitions are, or past the end of the disk");
        }
        Ok(header)
    }

    /// Returns how many bytes the entries have.
    pub fn table_bytes(&self) -> u64 {
        u64::from(self.entries) * self.entry_size as u64
    }

    /// Whether another copy says the same.
    pub fn same_content(&self, other: &Header) -> bool {
        let content = |header: &Header| {
            let usable = (header.first, header.last);
            let entries = (header.entries, header.entry_size, header.table_checksum);
            (header.disk, usable, entries)
        };
        content(self) == content(other)
    }
}
