//! Volume groups of LVM2, read and never written.
//!
//! A physical volume says who it is in a label (`lib/label/label.h` and `lib/format_text/layout.h` of LVM's sources
//! have the layout). Its metadata areas hold the text that describes the whole volume group, each the same.

mod area;
mod group;
mod label;
mod logical;
mod text;

pub use area::AreaFault;
pub(crate) use group::MOST_BYTES;
pub use group::{GroupFault, PhysicalVolume, VolumeGroup};
pub use label::LabelFault;
pub use logical::{LogicalFault, LogicalVolume};
pub use text::TextFault;

use crate::memory::push;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_images::{DeviceReader, ReadError, Sector};
use core::fmt;
use core::ops::Range;
use label::Label;

/// The identity of a physical volume, a group or a logical volume: 32 letters and digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id([u8; 32]);

impl Id {
    fn from_bytes(bytes: [u8; 32]) -> Option<Id> {
        bytes
            .iter()
            .all(|byte| byte.is_ascii_graphic() && *byte != b'-')
            .then_some(Id(bytes))
    }

    /// Reads one as it is written in the text: with hyphens.
    fn from_text(text: &str) -> Option<Id> {
        let mut id = [0; 32];
        let mut letters = text.bytes().filter(|byte| *byte != b'-');
        for place in &mut id {
            *place = letters.next()?;
        }
        letters.next().is_none().then(|| Id::from_bytes(id))?
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, byte) in self.0.iter().enumerate() {
            if [6, 10, 14, 18, 22, 26].contains(&place) {
                f.write_str("-")?;
            }
            write!(f, "{}", char::from(*byte))?;
        }
        Ok(())
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A physical volume that was found.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its identity.
    pub id: Id,
    /// Its first sector on the disk.
    pub start: Sector,
    /// The number of sectors of the disk that it may have.
    pub sectors: Sector,
    /// The group that it describes; `None` if it belongs to none, or has no metadata that is in use.
    pub group: Option<Arc<VolumeGroup>>,
    /// The faults of copies of its metadata.
    pub faults: Vec<CopyFault>,
    /// The sectors of the disk that hold its label and its metadata.
    pub(crate) reserved: Vec<Range<u64>>,
}

/// A fault of one copy of the metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopyFault {
    /// The area cannot be read.
    Area(AreaFault),
    /// The text in it describes no group.
    Group(GroupFault),
}

impl fmt::Display for CopyFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CopyFault::Area(fault) => fault.fmt(f),
            CopyFault::Group(fault) => fault.fmt(f),
        }
    }
}

/// The reason why a place cannot be searched for a physical volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LvmError {
    /// It has a label that is damaged.
    Label(LabelFault),
    /// The disk cannot be read.
    Read(ReadError),
    /// There is no memory for it.
    NoMemory,
}

impl fmt::Display for LvmError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LvmError::Label(fault) => write!(f, "its label of LVM is damaged: {fault}"),
            LvmError::Read(error) => write!(f, "its label of LVM cannot be read: {error}"),
            LvmError::NoMemory => f.write_str("there is no memory for its volume group"),
        }
    }
}

impl core::error::Error for LvmError {}

/// The sectors that a label may be in: four of 512 bytes, whatever the disk's.
pub(crate) const LABEL_SECTORS: u64 = 4;

const LABELS: usize = LABEL_SECTORS as usize * Sector::SIZE;

/// Reads the physical volume that begins at `start` and has up to `sectors` sectors. `None` if there is none.
pub async fn read(
    reader: &mut DeviceReader,
    start: Sector,
    sectors: Sector,
) -> Result<Option<Found>, LvmError> {
    let (Some(base), Some(size)) = (start.bytes(), sectors.bytes()) else {
        return Ok(None);
    };
    if size < LABELS as u64 {
        return Ok(None);
    }
    let mut bytes = [0; LABELS];
    reader
        .read(base, &mut bytes)
        .await
        .map_err(LvmError::Read)?;
    let label = match Label::find(&bytes) {
        None => return Ok(None),
        Some(label) => label.map_err(LvmError::Label)?,
    };
    let mut found = Found {
        id: label.id,
        start,
        sectors,
        group: None,
        faults: Vec::new(),
        reserved: Vec::new(),
    };
    let labels = start.0..start.0 + LABEL_SECTORS;
    push(&mut found.reserved, labels).ok_or(LvmError::NoMemory)?;
    for place in label.metadata() {
        if let Some(sectors) = place.sectors(start) {
            push(&mut found.reserved, sectors).ok_or(LvmError::NoMemory)?;
        }
        let text = match area::read(reader, base, size, place).await {
            Ok(Some(text)) => text,
            Ok(None) => continue,
            Err(AreaFault::NoMemory) => return Err(LvmError::NoMemory),
            Err(fault) => {
                push(&mut found.faults, CopyFault::Area(fault)).ok_or(LvmError::NoMemory)?;
                continue;
            }
        };
        match VolumeGroup::parse(&text).await {
            Ok(group) => {
                let newest = found.group.as_ref();
                if newest.is_none_or(|newest| newest.seqno < group.seqno) {
                    found.group = Some(Arc::new(group));
                }
            }
            Err(GroupFault::NoMemory) => return Err(LvmError::NoMemory),
            Err(fault) => {
                push(&mut found.faults, CopyFault::Group(fault)).ok_or(LvmError::NoMemory)?;
            }
        }
    }
    Ok(Some(found))
}

/// Returns whether a group or a volume may have that name: LVM's rule (`validate_name` in its sources).
pub fn is_name(text: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"+_.-".contains(&byte);
    text.len() <= 127
        && !text.is_empty()
        && !text.starts_with('-')
        && text != "."
        && text != ".."
        && text.bytes().all(letter)
}

/// Returns a name for messages, which may be no name at all.
pub(crate) fn shown(text: &str) -> String {
    text.chars()
        .take(127)
        .flat_map(char::escape_default)
        .collect()
}
