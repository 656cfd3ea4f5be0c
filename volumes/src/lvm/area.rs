//! A metadata area: a header of 512 bytes, and behind it the text of the group, which goes on at the start when it
//! reaches the end.

use super::label::{ByteRange, number32, number64};
use crate::checksum::Checksum;
use crate::memory::filled;
use alloc::vec::Vec;
use bulkhead_images::{DeviceReader, ReadError};
use core::fmt;

/// The bytes of the header.
const HEADER: u64 = 512;

/// The longest text that is read: that of thousands of volumes. LVM itself makes areas of a megabyte, which hold two
/// texts.
const LONGEST: u64 = 1 << 20;

/// The copy is not in use, because the administrator has chosen others.
const IGNORED: u32 = 1;

/// The reason why a copy of the metadata is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AreaFault {
    /// It lies past the end of the physical volume.
    Outside,
    /// The header is none.
    Header(&'static str),
    /// The text lies outside of the area.
    Text,
    /// The text is longer than what is read.
    TooLong(u64),
    /// The text does not have the checksum that the header says.
    Checksum,
    /// The disk cannot be read.
    Read(ReadError),
    /// There is no memory for it.
    NoMemory,
}

impl fmt::Display for AreaFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AreaFault::Outside => f.write_str("it lies past the end of the physical volume"),
            AreaFault::Header(what) => f.write_str(what),
            AreaFault::Text => f.write_str("its text lies outside of it"),
            AreaFault::TooLong(len) => {
                write!(
                    f,
                    "its text has {len} bytes, more than {LONGEST} are not read"
                )
            }
            AreaFault::Checksum => f.write_str("the checksum of its text is wrong"),
            AreaFault::Read(error) => error.fmt(f),
            AreaFault::NoMemory => f.write_str("there is no memory for it"),
        }
    }
}

/// Reads the text in an area of the physical volume that begins at byte `base` of the disk and has `size` bytes. `None` if the
/// volume belongs to no group, or the copy is not in use.
pub(super) async fn read(
    reader: &mut DeviceReader,
    base: u64,
    size: u64,
    area: ByteRange,
) -> Result<Option<Vec<u8>>, AreaFault> {
    let end = area.start.checked_add(area.len);
    if area.len <= HEADER || end.is_none_or(|end| end > size) {
        return Err(AreaFault::Outside);
    }
    let start = base + area.start;
    let mut header = [0; HEADER as usize];
    let read = reader.read(start, &mut header).await;
    read.map_err(AreaFault::Read)?;
    let Some(text) = locate(&header, area)? else {
        return Ok(None);
    };
    let mut bytes = filled(text.len as usize).ok_or(AreaFault::NoMemory)?;
    // The rest of a text that reaches the end lies behind the header.
    let until_end = text.len.min(area.len - text.start) as usize;
    let (before, after) = bytes.split_at_mut(until_end);
    let read = reader.read(start + text.start, before).await;
    read.map_err(AreaFault::Read)?;
    let read = reader.read(start + HEADER, after).await;
    read.map_err(AreaFault::Read)?;
    let mut checksum = Checksum::of_lvm();
    checksum.update(&bytes);
    if Some(checksum.value()) != number32(&header, 40 + 16) {
        return Err(AreaFault::Checksum);
    }
    Ok(Some(bytes))
}

/// Returns where the text is that the header names first: the one that was committed.
fn locate(header: &[u8], area: ByteRange) -> Result<Option<ByteRange>, AreaFault> {
    let fault = AreaFault::Header("its header is damaged");
    let mut checksum = Checksum::of_lvm();
    checksum.update(&header[4..]);
    if header[4..20] != *b" LVM2 x[5A%r0N*>" {
        return Err(AreaFault::Header("it has no header"));
    }
    if Some(checksum.value()) != number32(header, 0) {
        return Err(AreaFault::Header("the checksum of its header is wrong"));
    }
    if number32(header, 20) != Some(1) {
        return Err(AreaFault::Header("its header has another version than 1"));
    }
    if number64(header, 24) != Some(area.start) || number64(header, 32) != Some(area.len) {
        return Err(AreaFault::Header("its header belongs elsewhere"));
    }
    let text = ByteRange {
        start: number64(header, 40).ok_or(fault)?,
        len: number64(header, 48).ok_or(fault)?,
    };
    let flags = number32(header, 60).ok_or(fault)?;
    if text.start == 0 || flags & IGNORED != 0 {
        return Ok(None);
    }
    if text.start < HEADER || text.start >= area.len || text.len > area.len - HEADER {
        return Err(AreaFault::Text);
    }
    if text.len > LONGEST {
        return Err(AreaFault::TooLong(text.len));
    }
    Ok(Some(text))
}
