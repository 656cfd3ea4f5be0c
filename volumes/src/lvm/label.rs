//! The label of a physical volume, and its header.

use super::Id;
use crate::checksum::Checksum;
use bulkhead_images::Sector;
use core::fmt;
use core::ops::Range;

/// The unit that labels are looked for in.
const SECTOR: usize = 512;

/// The first byte that the checksum covers.
const COVERED: usize = 20;

/// The reason why a label is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LabelFault {
    /// Its checksum is wrong.
    Checksum,
    /// It names another sector than the one it is in.
    Elsewhere,
    /// It says that the header is where it cannot be, or the header is none.
    Header,
    /// It has no physical volume's identity.
    Id,
}

impl fmt::Display for LabelFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LabelFault::Checksum => "the checksum is wrong",
            LabelFault::Elsewhere => "it belongs elsewhere",
            LabelFault::Header => "the header behind it has no end",
            LabelFault::Id => "it has no valid identity",
        })
    }
}

/// Bytes of a physical volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ByteRange {
    pub start: u64,
    pub len: u64,
}

impl ByteRange {
    /// Returns the sectors of the disk that have these bytes, where the physical volume begins with sector `base`.
    pub fn sectors(self, base: Sector) -> Option<Range<u64>> {
        const SECTOR: u64 = Sector::SIZE as u64;
        let end = self.start.checked_add(self.len)?.div_ceil(SECTOR);
        Some(base.0.checked_add(self.start / SECTOR)?..base.0.checked_add(end)?)
    }
}

/// The content of the label and the header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Label {
    pub id: Id,
    /// As many as a sector can name.
    places: [Option<ByteRange>; 28],
}

impl Label {
    /// Looks for a label in the first sectors of a physical volume, as LVM does: the first one counts.
    pub fn find(bytes: &[u8]) -> Option<Result<Label, LabelFault>> {
        let mut sectors = bytes.chunks_exact(SECTOR).enumerate();
        let (number, sector) = sectors.find(|(_, sector)| {
            sector.starts_with(b"LABELONE") && sector[24..32] == *b"LVM2 001"
        })?;
        Some(Label::parse(sector, number as u64))
    }

    fn parse(sector: &[u8], number: u64) -> Result<Label, LabelFault> {
        let mut checksum = Checksum::of_lvm();
        checksum.update(&sector[COVERED..]);
        if checksum.value() != number32(sector, 16).ok_or(LabelFault::Header)? {
            return Err(LabelFault::Checksum);
        }
        if number64(sector, 8) != Some(number) {
            return Err(LabelFault::Elsewhere);
        }
        let offset = number32(sector, 20).ok_or(LabelFault::Header)? as usize;
        let header = sector.get(offset..).filter(|_| offset >= 32);
        let header = header.ok_or(LabelFault::Header)?;
        let id = header.first_chunk().ok_or(LabelFault::Header)?;
        let id = Id::from_bytes(*id).ok_or(LabelFault::Id)?;
        // The size of the device comes next, then two lists: where the data is, which the text says better, and
        // where the metadata is.
        let mut rest = header.get(40..).ok_or(LabelFault::Header)?;
        while next(&mut rest)?.is_some() {}
        let mut places = [None; 28];
        for place in &mut places {
            *place = next(&mut rest)?;
            if place.is_none() {
                return Ok(Label { id, places });
            }
        }
        Err(LabelFault::Header)
    }

    /// Returns where copies of the metadata are.
    pub fn metadata(&self) -> impl Iterator<Item = ByteRange> + use<> {
        self.places.into_iter().flatten()
    }
}

/// Takes the next place from a list; `None` at its end, which is all zeros.
fn next(rest: &mut &[u8]) -> Result<Option<ByteRange>, LabelFault> {
    let start = number64(rest, 0).ok_or(LabelFault::Header)?;
    let len = number64(rest, 8).ok_or(LabelFault::Header)?;
    *rest = &rest[16..];
    Ok((start != 0).then_some(ByteRange { start, len }))
}

pub(super) fn number32(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*bytes))
}

pub(super) fn number64(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u64::from_le_bytes(*bytes))
}
