//! GUID partition tables: both copies, their checksums, and what is in them.
//!
//! The layout is that of the UEFI specification, section 5.3. Like Linux, this reader wants the protective MBR:
//! a disk that was given an old table later may have the remains of a new one.

mod entry;
mod header;

pub use entry::{Partition, PartitionFault};
pub use header::CopyFault;

use crate::checksum::Checksum;
use crate::content::meets;
use crate::memory::{filled, push};
use alloc::vec::Vec;
use bulkhead_images::{DeviceReader, ReadError, Sector};
use core::fmt;
use core::ops::Range;
use gpt_disk_types::Guid;
use header::Header;

/// The most partitions that a table may have. Tools make 128 by default.
const MOST_PARTITIONS: usize = 1024;

/// A table is read in pieces of that many bytes, which the size of an entry divides.
const PIECE: usize = 4096;

/// The partitions of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionTable {
    /// The disk's own identity.
    pub disk: Guid,
    /// Those there are, in the order of the table.
    pub partitions: Vec<Partition>,
    /// What is wrong with the other copy, if something is.
    pub note: Option<Note>,
}

/// Something that the operator of a disk wants to know, although its partitions can be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// The first copy is damaged, and the one at the end of the disk was used.
    BackupUsed(CopyFault),
    /// The copy at the end of the disk is damaged.
    BackupDamaged(CopyFault),
    /// Both are sound, and they are not the same.
    Different,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Note::BackupUsed(fault) => write!(
                f,
                "the partition table at its start is damaged ({fault}), the one at its end is used"
            ),
            Note::BackupDamaged(fault) => {
                write!(f, "the partition table at its end is damaged ({fault})")
            }
            Note::Different => f.write_str(
                "the partition tables at its start and at its end differ, the one at its start is used",
            ),
        }
    }
}

/// Why a partition table cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GptError {
    /// Neither copy is sound.
    Damaged {
        /// What is wrong at the start of the disk.
        first: CopyFault,
        /// What is wrong at its end.
        backup: CopyFault,
    },
    /// The disk cannot be read.
    Read(ReadError),
    /// There is no memory for it.
    NoMemory,
}

impl fmt::Display for GptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GptError::Damaged { first, backup } => write!(
                f,
                "both partition tables are damaged: at its start {first}, at its end {backup}"
            ),
            GptError::Read(error) => write!(f, "its partition table cannot be read: {error}"),
            GptError::NoMemory => f.write_str("there is no memory for its partition table"),
        }
    }
}

impl core::error::Error for GptError {}

/// What reading one copy came to, if the disk could be read at all.
type Copy = Result<(Header, Vec<Partition>), CopyFault>;

/// Reads the partition table of a disk. `None` if it has none of this kind.
///
/// The copy at the end is not looked for in the sectors that guests could write to: on a disk that has shrunk, the last
/// block may be one of a partition.
pub async fn read(
    reader: &mut DeviceReader,
    written: &[Range<u64>],
) -> Result<Option<PartitionTable>, GptError> {
    let unit = reader.geometry().sector_size.bytes() as u64;
    let blocks = reader.geometry().sectors.bytes().unwrap_or(0) / unit;
    // The MBR, two headers, two tables of a block at least.
    if blocks < 6 {
        return Ok(None);
    }
    let mut record = [0; 512];
    reader.read(0, &mut record).await.map_err(GptError::Read)?;
    if !is_protective(&record) {
        return Ok(None);
    }
    let first = read_copy(reader, 1, (blocks, unit), &[]).await?;
    let (header, partitions, note) = match first {
        Ok((header, partitions)) => {
            let backup = read_copy(reader, header.other, (blocks, unit), &[]).await?;
            let note = match backup {
                Err(fault) => Some(Note::BackupDamaged(fault)),
                Ok((other, _)) if other.same_content(&header) => None,
                Ok(_) => Some(Note::Different),
            };
            (header, partitions, note)
        }
        Err(fault) => match read_copy(reader, blocks - 1, (blocks, unit), written).await? {
            Ok((header, partitions)) => (header, partitions, Some(Note::BackupUsed(fault))),
            Err(backup) => {
                let first = fault;
                return Err(GptError::Damaged { first, backup });
            }
        },
    };
    let mut partitions = partitions;
    entry::mark_overlaps(&mut partitions).ok_or(GptError::NoMemory)?;
    Ok(Some(PartitionTable {
        disk: header.disk,
        partitions,
        note,
    }))
}

/// Whether an MBR says that the disk has a GUID partition table.
fn is_protective(record: &[u8; 512]) -> bool {
    let entries = record[446..510].chunks(16);
    record[510..] == [0x55, 0xAA] && entries.into_iter().any(|entry| entry[4] == 0xEE)
}

/// Reads the copy whose header is in that block, unless some of it is in sectors that are `written`.
async fn read_copy(
    reader: &mut DeviceReader,
    block: u64,
    (blocks, unit): (u64, u64),
    written: &[Range<u64>],
) -> Result<Copy, GptError> {
    let is_written = |start: u64, bytes: u64| {
        let sector = Sector::SIZE as u64;
        let sectors = start / sector..(start + bytes).div_ceil(sector);
        meets(written, &sectors)
    };
    let of_guest = CopyFault::Header("a guest could write to its sectors");
    if block == 0 || block >= blocks {
        return Ok(Err(CopyFault::Header(
            "its header would be past the end of the disk",
        )));
    }
    let mut bytes = filled(PIECE).ok_or(GptError::NoMemory)?;
    let in_block = bytes.get_mut(..unit as usize);
    let in_block = in_block.ok_or(GptError::NoMemory)?;
    let start = block * unit;
    if is_written(start, unit) {
        return Ok(Err(of_guest));
    }
    reader.read(start, in_block).await.map_err(GptError::Read)?;
    let header = match Header::parse(in_block, block, blocks) {
        Ok(header) => header,
        Err(fault) => return Ok(Err(fault)),
    };
    if is_written(header.table * unit, header.table_bytes()) {
        return Ok(Err(of_guest));
    }
    let mut partitions = Vec::new();
    let mut checksum = Checksum::of_gpt();
    let (mut done, all) = (0, header.table_bytes());
    let mut number = 0;
    while done < all {
        let len = (all - done).min(PIECE as u64) as usize;
        let piece = &mut bytes[..len];
        let start = header.table * unit + done;
        reader.read(start, piece).await.map_err(GptError::Read)?;
        checksum.update(piece);
        for entry in piece.chunks_exact(header.entry_size) {
            number += 1;
            let Some(partition) = Partition::parse(entry, number, &header, unit) else {
                continue;
            };
            if partitions.len() == MOST_PARTITIONS {
                return Ok(Err(CopyFault::TooMany(MOST_PARTITIONS)));
            }
            push(&mut partitions, partition).ok_or(GptError::NoMemory)?;
        }
        done += len as u64;
    }
    if checksum.value() != header.table_checksum {
        return Ok(Err(CopyFault::TableChecksum));
    }
    Ok(Ok((header, partitions)))
}
