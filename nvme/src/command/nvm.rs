//! Commands of the NVM command set.

use super::entry::{Command, Lba, NamespaceId};

/// Opcodes.
pub mod opcode {
    /// Flush.
    pub const FLUSH: u8 = 0x00;
    /// Write.
    pub const WRITE: u8 = 0x01;
    /// Read.
    pub const READ: u8 = 0x02;
    /// Write Zeroes.
    pub const WRITE_ZEROES: u8 = 0x08;
    /// Dataset Management.
    pub const DATASET_MANAGEMENT: u8 = 0x09;
}

/// The most blocks of one read, write or Write Zeroes (NLB has 16 bits).
pub const MOST_BLOCKS: u32 = 1 << 16;

/// Dword 12, bit 30 (FUA): the data is durable when the command completes.
const FORCE_UNIT_ACCESS: u32 = 1 << 30;
/// Dword 12, bit 25 (DEAC): the blocks may be deallocated.
const DEALLOCATE: u32 = 1 << 25;

/// Makes durable what was written to a namespace and completed before.
pub const fn flush(namespace: NamespaceId) -> Command {
    Command::new(opcode::FLUSH, namespace)
}

/// Reads from 1 to [`MOST_BLOCKS`] blocks.
#[inline]
pub const fn read(namespace: NamespaceId, start: Lba, blocks: u32) -> Command {
    transfer(opcode::READ, namespace, start, blocks - 1)
}

/// Writes from 1 to [`MOST_BLOCKS`] blocks.
#[inline]
pub const fn write(namespace: NamespaceId, start: Lba, blocks: u32) -> Command {
    transfer(opcode::WRITE, namespace, start, blocks - 1)
}

/// Writes blocks as [`write()`] does; they are durable when the command completes.
#[inline]
pub const fn write_through(namespace: NamespaceId, start: Lba, blocks: u32) -> Command {
    transfer(
        opcode::WRITE,
        namespace,
        start,
        (blocks - 1) | FORCE_UNIT_ACCESS,
    )
}

/// Clears from 1 to [`MOST_BLOCKS`] blocks, which the controller may deallocate. No data is transferred.
pub const fn write_zeroes(namespace: NamespaceId, start: Lba, blocks: u32) -> Command {
    transfer(
        opcode::WRITE_ZEROES,
        namespace,
        start,
        (blocks - 1) | DEALLOCATE,
    )
}

#[inline]
const fn transfer(opcode: u8, namespace: NamespaceId, start: Lba, low: u32) -> Command {
    Command::new(opcode, namespace)
        .with_10_11(start.0 as u32, (start.0 >> 32) as u32)
        .with_12_13(low, 0)
}

/// Deallocates the blocks in from 1 to 256 ranges ([`DeallocateRange`]), which are the command's data.
pub const fn deallocate(namespace: NamespaceId, ranges: u32) -> Command {
    const DEALLOCATE: u32 = 1 << 2;
    Command::new(opcode::DATASET_MANAGEMENT, namespace).with_10_11(ranges - 1, DEALLOCATE)
}

/// A range of [`deallocate`]: 16 bytes, as two words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeallocateRange {
    /// The first block.
    pub start: Lba,
    /// The number of blocks.
    pub blocks: u32,
}

impl DeallocateRange {
    /// The number of its bytes.
    pub const BYTES: usize = 16;

    /// Returns its words, each to be stored little-endian.
    pub const fn words(&self) -> [u64; 2] {
        [(self.blocks as u64) << 32, self.start.0]
    }

    /// Returns the range with these words.
    pub const fn from_words(words: [u64; 2]) -> DeallocateRange {
        DeallocateRange {
            start: Lba(words[1]),
            blocks: (words[0] >> 32) as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_where_the_specification_has_them() {
        let read = read(NamespaceId(1), Lba(0x1_2345_6789), MOST_BLOCKS);
        assert_eq!(read.opcode(), opcode::READ);
        assert_eq!((read.dword(10), read.dword(11)), (0x2345_6789, 1));
        assert_eq!(read.dword(12), 0xffff);
        let write = write_through(NamespaceId(1), Lba(8), 1);
        assert_eq!(write.dword(12), 1 << 30);
        assert_eq!(
            write_zeroes(NamespaceId(1), Lba(8), 2).dword(12),
            1 << 25 | 1
        );
        let deallocate = deallocate(NamespaceId(1), 3);
        assert_eq!((deallocate.dword(10), deallocate.dword(11)), (2, 4));
        let range = DeallocateRange {
            start: Lba(u64::MAX),
            blocks: 9,
        };
        assert_eq!(range.words(), [9 << 32, u64::MAX]);
        assert_eq!(DeallocateRange::from_words(range.words()), range);
    }
}
