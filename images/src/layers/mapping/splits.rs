//! Requests that are cut into parts, and their progress.

use crate::io::{IoError, Op, Sector, Tag};
use crate::queue::{OpenQueueError, room};
use crate::segment::IoSegment;
use alloc::vec::Vec;

/// The shift of the request's slot in the tag of a part. Such tags are odd numbers.
const SLOT_SHIFT: u32 = 32;

/// Returns the tag below of a request that is passed on as it is.
#[inline]
pub(super) fn whole(tag: Tag) -> Tag {
    Tag(tag.0 << 1)
}

/// Returns the tag of the request that was passed on with that tag as it is.
#[inline]
pub(super) fn passed_on(below: Tag) -> Option<Tag> {
    (below.0 & 1 == 0).then_some(Tag(below.0 >> 1))
}

/// The requests of a queue that are cut.
pub(super) struct Splits {
    slots: Vec<Split>,
    /// The segments of one part.
    part: Vec<IoSegment>,
}

/// A request that is cut.
pub(super) struct Split {
    tag: Option<Tag>,
    pub op: Op,
    /// The number of sectors (of a flush: devices) that are done, and the number of all.
    pub position: u64,
    pub count: u64,
    /// The leg whose share of a discard is next.
    pub leg: usize,
    /// The number of parts that were passed on, and of those that have not come back.
    issued: u32,
    pending: usize,
    outcome: Result<(), IoError>,
    segments: Vec<IoSegment>,
    /// The position of the next part's data.
    cursor: Cursor,
}

#[derive(Clone, Copy)]
struct Cursor {
    segment: usize,
    byte: usize,
}

impl Splits {
    /// Returns room for `count` requests of up to `segments` segments.
    pub fn new(count: usize, segments: usize) -> Result<Splits, OpenQueueError> {
        let mut slots = room(count)?;
        for _ in 0..count {
            slots.push(Split {
                tag: None,
                op: Op::Flush,
                position: 0,
                count: 0,
                leg: 0,
                issued: 0,
                pending: 0,
                outcome: Ok(()),
                segments: room(segments)?,
                cursor: Cursor {
                    segment: 0,
                    byte: 0,
                },
            });
        }
        Ok(Splits {
            slots,
            part: room(segments)?,
        })
    }

    /// Begins a request, if there is room for it.
    pub fn begin(&mut self, tag: Tag, op: Op, count: u64, segments: &[IoSegment]) -> Option<usize> {
        let free = self.slots.iter().position(|slot| slot.tag.is_none())?;
        let slot = &mut self.slots[free];
        slot.tag = Some(tag);
        slot.op = op;
        (slot.position, slot.count, slot.leg) = (0, count, 0);
        (slot.issued, slot.pending, slot.outcome) = (0, 0, Ok(()));
        (slot.cursor.segment, slot.cursor.byte) = (0, 0);
        // SAFETY: `end` drops them before the request's completion is told, `clear` when the queue is
        // closed below, and nothing here touches the bytes.
        let kept = segments.iter().map(|segment| unsafe { segment.keep() });
        slot.segments.extend(kept);
        Some(free)
    }

    /// Returns the number of slots.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    pub fn get(&mut self, index: usize) -> &mut Split {
        &mut self.slots[index]
    }

    /// Returns the tag and the segments of the next part of a request: its next `count` sectors.
    pub fn part(&mut self, index: usize, count: Sector) -> (Tag, &[IoSegment]) {
        let slot = &mut self.slots[index];
        self.part.clear();
        if !slot.segments.is_empty() {
            let mut cursor = slot.cursor;
            let mut left = count.0 as usize * Sector::SIZE;
            while left > 0
                && let Some(segment) = slot.segments.get(cursor.segment)
            {
                let len = left.min(segment.len() - cursor.byte);
                // SAFETY: `passed_on` or the next call drops it; the store below keeps its own, which it
                // drops before the part's completion, and so before the request's.
                self.part
                    .push(unsafe { segment.keep_part(cursor.byte, len) });
                left -= len;
                cursor = cursor.after(len, segment);
            }
        }
        let tag = Tag(index << SLOT_SHIFT | (slot.issued as usize) << 1 | 1);
        (tag, &self.part)
    }

    /// Notes that the part of that many sectors was taken, and its outcome if it is done already.
    pub fn passed_on(&mut self, index: usize, count: Sector, done: Option<Result<(), IoError>>) {
        self.part.clear();
        let slot = &mut self.slots[index];
        let mut left = count.0 as usize * Sector::SIZE;
        while left > 0
            && let Some(segment) = slot.segments.get(slot.cursor.segment)
        {
            let len = left.min(segment.len() - slot.cursor.byte);
            left -= len;
            slot.cursor = slot.cursor.after(len, segment);
        }
        slot.issued = (slot.issued + 1) & (u32::MAX >> 1);
        match done {
            Some(outcome) => slot.fail(outcome),
            None => slot.pending += 1,
        }
    }

    /// Notes that a part has come back.
    pub fn completed(&mut self, below: Tag, outcome: Result<(), IoError>) {
        if let Some(slot) = self.slots.get_mut(below.0 >> SLOT_SHIFT) {
            slot.pending = slot.pending.saturating_sub(1);
            slot.fail(outcome);
        }
    }

    /// Ends a request whose parts are all done. Returns its tag and its outcome.
    pub fn end(&mut self, index: usize) -> Option<(Tag, Result<(), IoError>)> {
        let slot = &mut self.slots[index];
        if slot.is_at_work() || slot.pending > 0 {
            return None;
        }
        let tag = slot.tag.take()?;
        slot.segments.clear();
        Some((tag, slot.outcome))
    }

    /// Gives up requests: none of their other parts are passed on. Returns the tags that the parts below
    /// may have.
    pub fn cancel<'a>(
        &'a mut self,
        which: impl Fn(Tag) -> bool + 'a,
    ) -> impl Iterator<Item = Tag> + 'a {
        let slots = self.slots.iter_mut().enumerate();
        let cancelled = slots.filter_map(move |(index, slot)| {
            slot.tag.is_some_and(&which).then(|| {
                if slot.is_at_work() {
                    slot.fail(Err(IoError::Cancelled));
                }
                (index, slot.issued)
            })
        });
        cancelled.flat_map(|(index, issued)| {
            (0..issued).map(move |number| Tag(index << SLOT_SHIFT | (number as usize) << 1 | 1))
        })
    }

    /// Forgets all requests.
    pub fn clear(&mut self) {
        self.part.clear();
        for slot in &mut self.slots {
            slot.tag = None;
            slot.segments.clear();
        }
    }
}

impl Split {
    /// Returns whether there are parts to pass on.
    pub fn is_at_work(&self) -> bool {
        self.tag.is_some() && self.position < self.count && self.outcome.is_ok()
    }

    fn fail(&mut self, outcome: Result<(), IoError>) {
        self.outcome = self.outcome.and(outcome);
    }
}

impl Cursor {
    fn after(self, len: usize, segment: &IoSegment) -> Cursor {
        match self.byte + len == segment.len() {
            true => Cursor {
                segment: self.segment + 1,
                byte: 0,
            },
            false => Cursor {
                byte: self.byte + len,
                ..self
            },
        }
    }
}
