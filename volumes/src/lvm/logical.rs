//! Logical volumes of a group, and where they lie on its physical volumes.

use super::group::{GroupFault, MOST_EXTENTS, NO_MEMORY, Outcome, PhysicalVolume};
use super::text::{List, Section, Value, plain};
use super::{Id, is_name};
use crate::memory::{owned, push};
use crate::turns::Turns;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// The most stripes of a segment (`STRIPES_MAX` in LVM's sources).
const MOST_STRIPES: u64 = 128;

/// A logical volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogicalVolume {
    /// Its name.
    pub name: String,
    /// Its identity.
    pub id: Id,
    /// It may be written to.
    pub writable: bool,
    /// The reason why it cannot be used.
    pub fault: Option<LogicalFault>,
    /// The extents that it lies in, in order and without gaps; incomplete if there is a fault.
    pub(crate) segments: Vec<Segment>,
}

/// Extents of a logical volume in a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Their number.
    pub extents: u64,
    /// Sectors of a stripe's turn, if there are several stripes.
    pub chunk: u64,
    /// The position of a physical volume in the group's list, and its first extent.
    pub stripes: Box<[(u32, u64)]>,
}

/// The reason why a logical volume cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogicalFault {
    /// LVM has it for itself, as a part of another volume.
    Internal,
    /// A part of it is of a type that is not known here.
    Type(String),
    /// It has a snapshot, or is one, which is written where nobody here looks.
    Snapshot,
    /// A part of it lies on another volume or on a physical volume that the group does not have.
    Elsewhere(String),
    /// The text says of it what cannot be.
    Damaged(&'static str),
    /// It has extents of the volume of that name too.
    Overlaps(String),
}

impl fmt::Display for LogicalFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LogicalFault::Internal => f.write_str("it is a part of another volume"),
            LogicalFault::Type(kind) => write!(
                f,
                "it is of type {kind}, and only linear and striped volumes can be served"
            ),
            LogicalFault::Snapshot => f.write_str(
                "it has a snapshot or is one, and only linear and striped volumes can be served",
            ),
            LogicalFault::Elsewhere(name) => write!(
                f,
                "a part of it lies on {name}, which is no physical volume of its group: is it being moved?"
            ),
            LogicalFault::Damaged(what) => write!(f, "its description is damaged: {what}"),
            LogicalFault::Overlaps(name) => write!(f, "it overlaps the volume {name}"),
        }
    }
}

impl LogicalVolume {
    pub(super) fn bytes(&self) -> usize {
        let stripes: usize = self.segments.iter().map(|it| it.stripes.len()).sum();
        let segments = self.segments.len() * size_of::<Segment>();
        // A stripe is in the list of those that are compared, too.
        size_of::<LogicalVolume>()
            + self.name.len()
            + segments
            + stripes * 3 * size_of::<(u32, u64)>()
    }
}

/// Reads logical volumes.
pub(super) struct Reader<'r> {
    pub physical: &'r [PhysicalVolume],
    pub find: &'r dyn Fn(&str) -> Option<usize>,
    pub extent_size: u64,
}

impl Reader<'_> {
    /// Reads a logical volume. The names that a snapshot concerns are added to `snapshots`.
    pub async fn logical<'t>(
        &self,
        name: &str,
        section: Section<'t>,
        snapshots: &mut Vec<&'t str>,
        turns: &mut Turns,
    ) -> Outcome<LogicalVolume> {
        let (mut id, mut visible, mut writable, mut count) = (None, false, false, None);
        for (name, value) in section.entries() {
            match name {
                "id" => id = value.quoted().and_then(Id::from_text),
                "status" => {
                    visible = value.has("VISIBLE");
                    writable = value.has("WRITE");
                }
                "segment_count" => count = value.number(),
                _ => {}
            }
        }
        if !is_name(name) {
            return Err(GroupFault::Field("name of a logical volume"));
        }
        let mut volume = LogicalVolume {
            name: owned(name).ok_or(NO_MEMORY)?,
            id: id.ok_or(GroupFault::Field("identity of a logical volume"))?,
            writable,
            fault: None,
            segments: Vec::new(),
        };
        turns.count().await;
        let (mut next, mut segments) = (0, 0);
        for (_, value) in section.entries() {
            let Value::Section(section) = value else {
                continue;
            };
            segments += 1;
            turns.count().await;
            match self.segment(section, next, snapshots)? {
                Ok(segment) => {
                    next += segment.extents;
                    push(&mut volume.segments, segment).ok_or(NO_MEMORY)?;
                }
                Err(fault) => {
                    volume.fault = volume.fault.or(Some(fault));
                }
            }
        }
        if volume.fault.is_none() && (count != Some(segments) || segments == 0) {
            volume.fault = Some(LogicalFault::Damaged("it has another number of segments"));
        }
        // A part of something that is named is told by the type of that, but nobody may have the part itself.
        if !visible {
            volume.fault = Some(LogicalFault::Internal);
        }
        Ok(volume)
    }

    /// Reads a segment, which is to begin at extent `next`.
    fn segment<'t>(
        &self,
        section: Section<'t>,
        next: u64,
        snapshots: &mut Vec<&'t str>,
    ) -> Outcome<Result<Segment, LogicalFault>> {
        let (mut start, mut extents, mut kind) = (None, None, None);
        let (mut count, mut chunk, mut stripes) = (None, None, None);
        let (mut origin, mut store) = (None, None);
        for (name, value) in section.entries() {
            match name {
                "start_extent" => start = value.number(),
                "extent_count" => extents = value.number(),
                "type" => kind = value.quoted(),
                "stripe_count" => count = value.number(),
                "stripe_size" => chunk = value.number(),
                "stripes" => stripes = value.list(),
                "origin" => origin = value.quoted(),
                "cow_store" | "merging_store" => store = value.quoted(),
                _ => {}
            }
        }
        let damaged = |what| Ok(Err(LogicalFault::Damaged(what)));
        match kind {
            Some("striped" | "linear") => {}
            Some("snapshot") => {
                for name in [origin, store].into_iter().flatten() {
                    push(snapshots, name).ok_or(NO_MEMORY)?;
                }
                return Ok(Err(LogicalFault::Snapshot));
            }
            Some(other) => return Ok(Err(LogicalFault::Type(plain(other)))),
            None => return damaged("a segment has no type"),
        }
        let extents = extents.filter(|extents| (1..=MOST_EXTENTS).contains(extents));
        let Some(extents) = extents.filter(|_| start == Some(next)) else {
            return damaged("its segments do not follow one another");
        };
        if next + extents > MOST_EXTENTS {
            return damaged("it has more extents than there can be");
        }
        let count = count.filter(|count| (1..=MOST_STRIPES).contains(count));
        let Some(count) = count.filter(|count| extents.is_multiple_of(*count)) else {
            return damaged("a segment has a number of stripes that cannot be");
        };
        let chunk = match count {
            1 => extents * self.extent_size,
            _ => {
                let chunk = chunk.filter(|chunk| {
                    chunk.is_power_of_two() && (8..=self.extent_size).contains(chunk)
                });
                let Some(chunk) = chunk else {
                    return damaged("a segment has stripes of a size that cannot be");
                };
                chunk
            }
        };
        let Some(stripes) = stripes else {
            return damaged("a segment has no stripes");
        };
        self.stripes(stripes, extents, count, chunk)
    }

    /// Reads the places where a segment's stripes begin.
    fn stripes(
        &self,
        list: List<'_>,
        extents: u64,
        count: u64,
        chunk: u64,
    ) -> Outcome<Result<Segment, LogicalFault>> {
        let mut stripes = Vec::new();
        let room = stripes.try_reserve_exact(count as usize);
        room.map_err(|_| NO_MEMORY)?;
        let mut values = list.values();
        while let Some(name) = values.next() {
            let Some(name) = name.quoted() else {
                return Ok(Err(LogicalFault::Damaged(
                    "a stripe has no physical volume",
                )));
            };
            let Some(first) = values.next().and_then(Value::number) else {
                return Ok(Err(LogicalFault::Damaged("a stripe has no first extent")));
            };
            let Some(physical) = (self.find)(name) else {
                return Ok(Err(LogicalFault::Elsewhere(plain(name))));
            };
            let end = first.checked_add(extents / count);
            if end.is_none_or(|end| end > self.physical[physical].extents) {
                let what = "a stripe reaches past the end of its physical volume";
                return Ok(Err(LogicalFault::Damaged(what)));
            }
            if stripes.len() as u64 == count {
                return Ok(Err(LogicalFault::Damaged("a segment has too many stripes")));
            }
            stripes.push((physical as u32, first));
        }
        if stripes.len() as u64 != count {
            return Ok(Err(LogicalFault::Damaged("a segment has too few stripes")));
        }
        Ok(Ok(Segment {
            extents,
            chunk,
            stripes: stripes.into_boxed_slice(),
        }))
    }
}
