//! A disk from which a guest boots, as an installer would leave it: a partition table, a file system with GRUB's
//! configuration and the files that it names, and a second partition for data.

use crate::image::ext2;
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

const SECTOR: u64 = 512;
const MIB: u64 = 1 << 20;

/// Start of the first partition, as partitioning programs place it.
const START: u64 = MIB;

/// The size of the second partition.
pub const DATA: u64 = 8 * MIB;

/// The contents of a file of the file system.
pub enum Contents<'a> {
    /// A text.
    Text(&'a str),
    /// The contents of a file.
    Copy(&'a Path),
}

/// Makes the disk's image at `path`, with these files in its first partition. A folder beside it is used meanwhile.
pub fn write(path: &Path, files: &[(&str, Contents)]) -> Result<()> {
    let tree = path.with_extension("tree");
    let filesystem = path.with_extension("ext2");
    let mut size = 0;
    for (name, contents) in files {
        let place = tree.join(name);
        fs::create_dir_all(place.parent().context("a file needs a folder")?)?;
        match contents {
            Contents::Text(text) => fs::write(&place, text)?,
            Contents::Copy(from) => drop(fs::copy(from, &place)?),
        }
        size += fs::metadata(&place)?.len();
    }
    // A tenth more for the file system's own blocks.
    let size = (size + size / 10 + MIB).next_multiple_of(MIB);
    const FILES: u64 = 64;
    ext2::write(&filesystem, ext2::Source::Folder(&tree), size, FILES)?;
    let mut image = File::create(path)?;
    image.write_all(&partition_table(&[(START, size), (START + size, DATA)]))?;
    image.seek(SeekFrom::Start(START))?;
    std::io::copy(&mut File::open(&filesystem)?, &mut image)?;
    image.set_len(START + size + DATA)?;
    fs::remove_dir_all(&tree)?;
    fs::remove_file(&filesystem).context("cannot remove the file system's own image")
}

/// Returns a master boot record that names Linux partitions, each with its first byte and its size.
fn partition_table(partitions: &[(u64, u64)]) -> [u8; SECTOR as usize] {
    const LINUX: u8 = 0x83;
    // Addresses by cylinder, head and sector: out of range, so that the others count.
    const NO_CHS: [u8; 3] = [0xfe, 0xff, 0xff];
    let mut record = [0; SECTOR as usize];
    for (index, (start, size)) in partitions.iter().enumerate() {
        let entry = &mut record[446 + 16 * index..][..16];
        entry[1..4].copy_from_slice(&NO_CHS);
        entry[4] = LINUX;
        entry[5..8].copy_from_slice(&NO_CHS);
        entry[8..12].copy_from_slice(&((start / SECTOR) as u32).to_le_bytes());
        entry[12..].copy_from_slice(&((size / SECTOR) as u32).to_le_bytes());
    }
    record[510..].copy_from_slice(&[0x55, 0xaa]);
    record
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_table_names_its_partitions() {
        let record = partition_table(&[(MIB, 2 * MIB), (3 * MIB, MIB)]);
        assert_eq!(record[446 + 4], 0x83);
        assert_eq!(record[446 + 8..446 + 16], [0, 8, 0, 0, 0, 16, 0, 0]);
        assert_eq!(record[462 + 8..462 + 16], [0, 24, 0, 0, 0, 8, 0, 0]);
        assert_eq!(record[478..], [[0; 32].as_slice(), &[0x55, 0xaa]].concat());
    }
}
