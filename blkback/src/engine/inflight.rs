//! Requests in flight: taken off the ring, not answered yet.

use super::pages::{NONE, Pages};
use alloc::vec::Vec;
use bulkhead_grant::memory::filled;
use bulkhead_grant::{Direction, OutOfMemory};
use bulkhead_images::{IoError, Op, Sector, Tag};
use bulkhead_ring::blkif::{self, Opcode, RequestId, TransferKind};

/// The steps of a request, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Steps {
    /// A flush.
    pub flush_first: bool,
    /// The operation itself.
    pub op: Option<Op>,
    /// Another flush.
    pub flush_last: bool,
}

impl Steps {
    /// Returns the steps of a read or write. An empty one has its flushes alone. `fua` says that the device takes
    /// writes that are durable when they complete: a barrier has no flush after its write then.
    #[inline]
    pub fn of_transfer(
        kind: TransferKind,
        sector: blkif::BlkifSector,
        is_empty: bool,
        fua: bool,
    ) -> Steps {
        let sector = Sector(sector.0);
        let barrier = kind == TransferKind::WriteBarrier;
        let fua = fua && barrier;
        let op = match kind.is_write() {
            true => Op::Write { sector, fua },
            false => Op::Read { sector },
        };
        Steps {
            flush_first: barrier || kind == TransferKind::FlushAndWrite,
            op: Some(op).filter(|_| !is_empty),
            flush_last: barrier && !fua,
        }
    }

    /// Returns the steps of an operation without pages.
    pub fn of(op: Op) -> Steps {
        Steps {
            op: Some(op),
            ..Steps::default()
        }
    }
}

/// A request in flight.
#[derive(Debug)]
pub struct Inflight {
    /// The request's identifier, for the response.
    pub id: RequestId,
    /// The operation, for the response.
    pub opcode: Opcode,
    /// The operation itself, as long as it is to be done. The flushes are before it and after it.
    pub op: Option<Op>,
    flush_first: bool,
    flush_last: bool,
    /// The pages.
    pub pages: Pages,
    /// The number of bytes in the pages.
    pub bytes: u32,
    /// The device's outcome, while this is in the list of completed requests.
    outcome: Result<(), IoError>,
    /// The next entry of the list that this one is in: a list of requests, or the free places.
    next_done: u16,
}

impl Inflight {
    #[inline]
    fn new(id: RequestId, opcode: Opcode, steps: Steps) -> Inflight {
        Inflight {
            id,
            opcode,
            op: steps.op,
            flush_first: steps.flush_first,
            flush_last: steps.flush_last,
            pages: Pages::EMPTY,
            bytes: 0,
            outcome: Ok(()),
            next_done: NONE,
        }
    }

    /// Takes the next step; `None` if all are done.
    #[inline]
    pub fn next_step(&mut self) -> Option<Op> {
        if core::mem::take(&mut self.flush_first) {
            return Some(Op::Flush);
        }
        if let Some(op) = self.op.take() {
            return Some(op);
        }
        core::mem::take(&mut self.flush_last).then_some(Op::Flush)
    }

    /// Puts a step back that was not done, because the device is busy.
    pub fn put_back(&mut self, op: Op) {
        // A flush that nothing but the last one follows may as well be the operation itself.
        match op {
            Op::Flush if self.op.is_some() => self.flush_first = true,
            op => self.op = Some(op),
        }
    }

    /// Returns whether there is a next step.
    #[inline]
    pub fn has_steps(&self) -> bool {
        self.flush_first || self.flush_last || self.op.is_some()
    }

    /// Returns the operation, if it moves data and nothing else is to be done: the hypervisor can do that for
    /// the device.
    #[inline]
    pub fn only_transfer(&self) -> Option<(Op, Direction)> {
        let op = self.op.filter(|_| !self.flush_first && !self.flush_last)?;
        match op {
            Op::Read { .. } => Some((op, Direction::ToGranted)),
            Op::Write { .. } => Some((op, Direction::FromGranted)),
            Op::Flush | Op::Discard { .. } => None,
        }
    }
}

const _: () = assert!(size_of::<Inflight>() == 48);

/// A fixed number of places for requests in flight. A place is found and given back in constant
/// time.
pub struct InflightTable {
    places: Vec<Inflight>,
    /// The first free place; each names the next as `next_done`.
    free: u16,
    free_count: usize,
    /// The requests that the device has completed.
    done: List,
    /// The requests that wait for the bounce page.
    waiting: List,
    /// The requests that the device was too busy to take.
    busy: List,
}

/// A list of requests, in their order. A request is in one list at most.
struct List {
    first: u16,
    last: u16,
}

impl List {
    const EMPTY: List = List {
        first: NONE,
        last: NONE,
    };

    #[inline]
    fn push(&mut self, places: &mut [Inflight], tag: Tag) {
        places[tag.0].next_done = NONE;
        let at = tag.0 as u16;
        match places.get_mut(usize::from(self.last)) {
            Some(last) => last.next_done = at,
            None => self.first = at,
        }
        self.last = at;
    }

    #[inline]
    fn pop(&mut self, places: &[Inflight]) -> Option<Tag> {
        let tag = Tag(self.first.into());
        self.first = places.get(tag.0)?.next_done;
        if self.first == NONE {
            self.last = NONE;
        }
        Some(tag)
    }
}

impl InflightTable {
    /// Creates a table for `count` requests.
    pub fn new(count: usize) -> Result<Self, OutOfMemory> {
        debug_assert!(count < NONE.into(), "{count} requests");
        let place = |number: usize| Inflight {
            next_done: if number + 1 < count {
                number as u16 + 1
            } else {
                NONE
            },
            ..Inflight::new(RequestId::default(), Opcode::READ, Steps::default())
        };
        Ok(InflightTable {
            places: filled(count, place)?,
            free: if count > 0 { 0 } else { NONE },
            free_count: count,
            done: List::EMPTY,
            waiting: List::EMPTY,
            busy: List::EMPTY,
        })
    }

    /// Takes a place; `None` if all are taken.
    #[inline(always)]
    pub fn begin(&mut self, id: RequestId, opcode: Opcode, steps: Steps) -> Option<Tag> {
        let place = usize::from(self.free);
        let entry = self.places.get_mut(place)?;
        self.free = entry.next_done;
        self.free_count -= 1;
        *entry = Inflight::new(id, opcode, steps);
        Some(Tag(place))
    }

    /// Returns the place that [`begin`](Self::begin) takes next, or one that no request has if all are taken.
    #[inline]
    pub fn next_place(&self) -> Tag {
        Tag(self.free.into())
    }

    /// Notes that the device has done with a request, or with a step of it.
    #[inline(always)]
    pub fn done(&mut self, tag: Tag, outcome: Result<(), IoError>) {
        self.places[tag.0].outcome = outcome;
        self.done.push(&mut self.places, tag);
    }

    /// Takes the first of the requests that the device has completed.
    #[inline]
    pub fn take_done(&mut self) -> Option<(Tag, Result<(), IoError>)> {
        let tag = self.done.pop(&self.places)?;
        Some((tag, self.places[tag.0].outcome))
    }

    /// Returns whether no completed request is left to take.
    #[inline]
    pub fn none_done(&self) -> bool {
        self.done.first == NONE
    }

    /// Notes that a request waits for the bounce page.
    pub fn wait(&mut self, tag: Tag) {
        self.waiting.push(&mut self.places, tag);
    }

    /// Takes the request that has waited longest for the bounce page.
    pub fn take_waiting(&mut self) -> Option<Tag> {
        self.waiting.pop(&self.places)
    }

    /// Notes that a request waits for the device, behind the others that do.
    pub fn wait_for_device(&mut self, tag: Tag) {
        self.busy.push(&mut self.places, tag);
    }

    /// Notes that a request still waits for the device, before the others that do.
    pub fn wait_for_device_first(&mut self, tag: Tag) {
        if self.none_busy() {
            return self.wait_for_device(tag);
        }
        self.places[tag.0].next_done = self.busy.first;
        self.busy.first = tag.0 as u16;
    }

    /// Takes the request that has waited longest for the device.
    pub fn take_busy(&mut self) -> Option<Tag> {
        self.busy.pop(&self.places)
    }

    /// Returns whether no request waits for the device.
    #[inline]
    pub fn none_busy(&self) -> bool {
        self.busy.first == NONE
    }

    /// Takes all requests out of all lists, and returns the places that those in flight may have: the
    /// device has let go of everything.
    pub fn clear_lists(&mut self) -> impl Iterator<Item = Tag> + use<> {
        (self.done, self.waiting, self.busy) = (List::EMPTY, List::EMPTY, List::EMPTY);
        (0..self.places.len()).map(Tag)
    }

    /// Returns whether a request is in flight at a place. Slow: for what happens seldom.
    pub fn is_in_flight(&self, tag: Tag) -> bool {
        !self.is_free(tag.0)
    }

    fn is_free(&self, place: usize) -> bool {
        let mut free = usize::from(self.free);
        while free != place {
            match self.places.get(free) {
                Some(other) => free = other.next_done.into(),
                None => return false,
            }
        }
        true
    }

    /// Returns the request at a place.
    #[inline]
    pub fn get(&mut self, tag: Tag) -> &mut Inflight {
        &mut self.places[tag.0]
    }

    /// Gives a place back. Its pages must have been taken out.
    #[inline(always)]
    pub fn end(&mut self, tag: Tag) {
        debug_assert_eq!(self.places[tag.0].pages.len(), 0);
        self.places[tag.0].next_done = self.free;
        self.free = tag.0 as u16;
        self.free_count += 1;
    }

    /// Returns the number of free places.
    pub fn free(&self) -> usize {
        self.free_count
    }

    /// Returns the number of requests in flight.
    pub fn in_flight(&self) -> usize {
        self.places.len() - self.free_count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_come_in_order() {
        let steps = Steps {
            flush_first: true,
            op: Some(Op::Discard {
                sector: Default::default(),
                count: Default::default(),
                secure: false,
            }),
            flush_last: true,
        };
        let mut entry = Inflight::new(RequestId(1), Opcode::DISCARD, steps);
        assert_eq!(entry.next_step(), Some(Op::Flush));
        assert!(matches!(entry.next_step(), Some(Op::Discard { .. })));
        assert!(entry.has_steps());
        assert_eq!(entry.next_step(), Some(Op::Flush));
        assert_eq!(entry.next_step(), None);
        assert!(!entry.has_steps());
    }

    #[test]
    fn what_is_done_is_taken_in_its_order_and_may_be_done_again() {
        let mut inflight = InflightTable::new(3).unwrap();
        let begin = |inflight: &mut InflightTable| {
            inflight
                .begin(RequestId(1), Opcode::READ, Steps::default())
                .unwrap()
        };
        let (one, two) = (begin(&mut inflight), begin(&mut inflight));
        inflight.done(two, Ok(()));
        inflight.done(one, Err(IoError::Medium));
        assert_eq!(inflight.take_done(), Some((two, Ok(()))));
        inflight.done(two, Err(IoError::NoMemory));
        assert_eq!(inflight.take_done(), Some((one, Err(IoError::Medium))));
        assert_eq!(inflight.take_done(), Some((two, Err(IoError::NoMemory))));
        assert_eq!((inflight.take_done(), inflight.none_done()), (None, true));
    }
}
