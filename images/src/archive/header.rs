//! The header block of a member of a tar archive.

use super::{ArchiveError, BLOCK};
use alloc::string::{String, ToString};

type Block = [u8; BLOCK];

/// The kind of member that a header describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Regular,
    /// Another name for a member before it; no data.
    Link,
    /// A directory, a device, a volume label, or metadata that does not matter here.
    Skipped,
    /// The data is the next member's name (GNU `L`).
    LongName,
    /// The data is records about the next member (pax `x`).
    Pax,
    /// The data is not the file's content: sparse files, parts of other volumes.
    Unsupported,
}

/// A header with an intact checksum.
pub(super) struct Header<'a> {
    block: &'a Block,
    pub(super) kind: Kind,
    pub(super) type_flag: u8,
    pub(super) size: u64,
}

/// Returns whether the block has the magic of ustar or GNU tar, which begin alike.
pub(super) fn has_magic(block: &Block) -> bool {
    block[257..262] == *b"ustar"
}

/// Returns the checksum: the sum of the block's bytes, with its own field counted as spaces.
fn checksum(block: &Block) -> u64 {
    let bytes = block.iter().enumerate();
    bytes
        .map(|(at, &byte)| match at {
            148..156 => u64::from(b' '),
            _ => u64::from(byte),
        })
        .sum()
}

/// Compares the block's checksum with its bytes.
pub(super) fn check(block: &Block, offset: usize) -> Result<(), ArchiveError> {
    let (stored, computed) = (number(&block[148..156]), checksum(block));
    if stored != Some(computed) {
        return Err(ArchiveError::Checksum {
            offset,
            stored,
            computed,
        });
    }
    Ok(())
}

impl<'a> Header<'a> {
    pub(super) fn parse(block: &'a Block, offset: usize) -> Result<Header<'a>, ArchiveError> {
        check(block, offset)?;
        let type_flag = block[156];
        let kind = match type_flag {
            b'0' | 0 | b'7' => Kind::Regular,
            b'1' | b'2' => Kind::Link,
            b'3'..=b'6' | b'g' | b'K' | b'V' | b'D' => Kind::Skipped,
            b'L' => Kind::LongName,
            b'x' => Kind::Pax,
            _ => Kind::Unsupported,
        };
        Ok(Header {
            block,
            kind,
            type_flag,
            size: number(&block[124..136]).ok_or(ArchiveError::Size { offset })?,
        })
    }

    /// Returns the name in the header itself: ustar has room for more of it in a prefix.
    pub(super) fn name(&self, offset: usize) -> Result<String, ArchiveError> {
        let name = text(&self.block[..100], offset)?;
        let prefix = match self.block[257..263] == *b"ustar\0" {
            true => text(&self.block[345..500], offset)?,
            false => "",
        };
        Ok(match prefix {
            "" => name.to_string(),
            prefix => alloc::format!("{prefix}/{name}"),
        })
    }
}

/// Returns the text up to the first zero byte.
pub(super) fn text(field: &[u8], offset: usize) -> Result<&str, ArchiveError> {
    let end = field.iter().position(|&byte| byte == 0);
    let text = &field[..end.unwrap_or(field.len())];
    core::str::from_utf8(text).map_err(|_| ArchiveError::Name { offset })
}

/// Returns a number: octal digits between spaces or zero bytes, or, with the first bit set, base 256.
fn number(field: &[u8]) -> Option<u64> {
    if let [first @ 0x80..=0xFF, rest @ ..] = field {
        // A second bit set would be a negative number.
        let start = (*first & 0x40 == 0).then_some(u64::from(*first & 0x3F))?;
        return rest.iter().try_fold(start, |number, &byte| {
            Some(number.checked_mul(256)? | u64::from(byte))
        });
    }
    let digits = field.trim_ascii_start();
    let end = digits.iter().position(|byte| matches!(byte, 0 | b' '));
    let (digits, rest) = digits.split_at(end.unwrap_or(digits.len()));
    if digits.is_empty() || !rest.iter().all(|byte| matches!(byte, 0 | b' ')) {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, &digit| {
        let digit = char::from(digit).to_digit(8)?;
        Some(number.checked_mul(8)? + u64::from(digit))
    })
}
