//! Requests in flight: taken off the ring, not answered yet; and the pages that they use.

use alloc::vec::Vec;
use bulkhead_grant::memory::filled;
use bulkhead_grant::{Copied, Direction, Held, OutOfMemory, Slot};
use bulkhead_images::{IoError, Op, Tag};
use bulkhead_ring::blkif::{Opcode, RequestId, SECTOR_SIZE, Segment};
use bulkhead_xen::GrantRef;

/// A granted page that a request uses, and which bytes of it.
#[derive(Debug)]
pub struct Page {
    /// The grant.
    pub gref: GrantRef,
    /// The first sector within the page, of which it has eight.
    first: u8,
    /// How many sectors.
    sectors: u8,
    /// How we get at it.
    pub hold: Hold,
    /// The next page of its request, or the next free place in the pool.
    next: u16,
}

const _: () = assert!(size_of::<Page>() == 16);

impl Page {
    /// The first byte within the page.
    pub fn offset(&self) -> usize {
        usize::from(self.first) * SECTOR_SIZE
    }

    /// How many bytes.
    pub fn len(&self) -> usize {
        usize::from(self.sectors) * SECTOR_SIZE
    }
}

/// How a page is reached.
#[derive(Debug)]
pub enum Hold {
    /// Not yet, or not any more.
    None,
    /// Mapped for this request.
    Mapped(Slot),
    /// Mapped for this request and those to come.
    Kept(Held),
    /// Copied by the hypervisor.
    Copied(Copied),
}

/// What is to be done for a request, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Steps {
    /// A flush.
    pub flush_first: bool,
    /// The operation itself.
    pub op: Option<Op>,
    /// Another flush.
    pub flush_last: bool,
}

/// One request in flight.
#[derive(Debug)]
pub struct Flight {
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
    /// How many bytes they are.
    pub bytes: u32,
    /// What the device said, while this is in the list of those that it has done with.
    outcome: Result<(), IoError>,
    /// The next one in that list, or in that of the free places.
    next_done: u16,
}

impl Flight {
    fn new(id: RequestId, opcode: Opcode, steps: Steps) -> Flight {
        Flight {
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
    pub fn next_step(&mut self) -> Option<Op> {
        if core::mem::take(&mut self.flush_first) {
            return Some(Op::Flush);
        }
        if let Some(op) = self.op.take() {
            return Some(op);
        }
        core::mem::take(&mut self.flush_last).then_some(Op::Flush)
    }

    /// Whether there is a next step.
    pub fn has_steps(&self) -> bool {
        self.flush_first || self.flush_last || self.op.is_some()
    }

    /// The operation, if it moves data and nothing else is to be done: what the hypervisor can do
    /// for the device.
    pub fn only_transfer(&self) -> Option<(Op, Direction)> {
        let op = self.op.filter(|_| !self.flush_first && !self.flush_last)?;
        match op {
            Op::Read { .. } => Some((op, Direction::ToGranted)),
            Op::Write { .. } => Some((op, Direction::FromGranted)),
            Op::Flush | Op::Discard { .. } => None,
        }
    }
}

const _: () = assert!(size_of::<Flight>() == 48);

/// A fixed number of places for requests in flight. A place is found and given back in constant
/// time.
pub struct Flights {
    places: Vec<Flight>,
    /// The first free place; each names the next as `next_done`.
    free: u16,
    free_count: usize,
    /// The first and the last of those that the device has done with.
    first_done: u16,
    last_done: u16,
    /// The first and the last of those that wait for the bounce page; each names the next as `next_done`.
    first_waiting: u16,
    last_waiting: u16,
}

impl Flights {
    /// Room for `count` requests.
    pub fn new(count: usize) -> Result<Self, OutOfMemory> {
        debug_assert!(count < NONE.into(), "{count} requests");
        let place = |number: usize| Flight {
            next_done: if number + 1 < count {
                number as u16 + 1
            } else {
                NONE
            },
            ..Flight::new(RequestId::default(), Opcode::READ, Steps::default())
        };
        Ok(Flights {
            places: filled(count, place)?,
            free: if count > 0 { 0 } else { NONE },
            free_count: count,
            first_done: NONE,
            last_done: NONE,
            first_waiting: NONE,
            last_waiting: NONE,
        })
    }

    /// Takes a place; `None` if all are taken.
    pub fn begin(&mut self, id: RequestId, opcode: Opcode, steps: Steps) -> Option<Tag> {
        let place = usize::from(self.free);
        let flight = self.places.get_mut(place)?;
        self.free = flight.next_done;
        self.free_count -= 1;
        *flight = Flight::new(id, opcode, steps);
        Some(Tag(place))
    }

    /// Notes that the device has done with a request, or with a step of it.
    pub fn done(&mut self, tag: Tag, outcome: Result<(), IoError>) {
        let flight = &mut self.places[tag.0];
        flight.outcome = outcome;
        flight.next_done = NONE;
        let at = tag.0 as u16;
        match self.places.get_mut(usize::from(self.last_done)) {
            Some(last) => last.next_done = at,
            None => self.first_done = at,
        }
        self.last_done = at;
    }

    /// Takes the first of those that the device has done with.
    pub fn take_done(&mut self) -> Option<(Tag, Result<(), IoError>)> {
        let tag = Tag(self.first_done.into());
        let flight = self.places.get(tag.0)?;
        self.first_done = flight.next_done;
        if self.first_done == NONE {
            self.last_done = NONE;
        }
        Some((tag, flight.outcome))
    }

    /// Notes that a request waits for the bounce page.
    pub fn wait(&mut self, tag: Tag) {
        self.places[tag.0].next_done = NONE;
        let at = tag.0 as u16;
        match self.places.get_mut(usize::from(self.last_waiting)) {
            Some(last) => last.next_done = at,
            None => self.first_waiting = at,
        }
        self.last_waiting = at;
    }

    /// Takes the one that waits for the bounce page longest.
    pub fn take_waiting(&mut self) -> Option<Tag> {
        let tag = Tag(self.first_waiting.into());
        self.first_waiting = self.places.get(tag.0)?.next_done;
        if self.first_waiting == NONE {
            self.last_waiting = NONE;
        }
        Some(tag)
    }

    /// Whether the device has done with no request that was not taken.
    pub fn none_done(&self) -> bool {
        self.first_done == NONE
    }

    /// The request at a place.
    pub fn get(&mut self, tag: Tag) -> &mut Flight {
        &mut self.places[tag.0]
    }

    /// Gives a place back. Its pages must have been taken out.
    pub fn end(&mut self, tag: Tag) {
        debug_assert_eq!(self.places[tag.0].pages.len(), 0);
        self.places[tag.0].next_done = self.free;
        self.free = tag.0 as u16;
        self.free_count += 1;
    }

    /// How many places are free.
    pub fn free(&self) -> usize {
        self.free_count
    }

    /// How many requests are in flight.
    pub fn in_flight(&self) -> usize {
        self.places.len() - self.free_count
    }
}

/// The end of a list.
const NONE: u16 = u16::MAX;

/// The pages of one request, in their order: a list through the pool that they lie in.
#[derive(Debug)]
pub struct Pages {
    first: u16,
    last: u16,
    len: u16,
}

impl Pages {
    /// No pages.
    pub const EMPTY: Pages = Pages {
        first: NONE,
        last: NONE,
        len: 0,
    };

    /// How many there are.
    pub fn len(&self) -> usize {
        self.len.into()
    }
}

/// Room for the pages of all requests in flight: one may have hundreds and most have one, so they
/// share what there is.
pub struct PagePool {
    pages: Vec<Page>,
    free: u16,
    free_count: usize,
}

impl PagePool {
    /// Room for `count` pages.
    pub fn new(count: usize) -> Result<Self, OutOfMemory> {
        debug_assert!(count < NONE.into(), "{count} pages");
        let page = |number: usize| Page {
            gref: GrantRef(0),
            first: 0,
            sectors: 0,
            hold: Hold::None,
            next: if number + 1 < count {
                number as u16 + 1
            } else {
                NONE
            },
        };
        Ok(PagePool {
            pages: filled(count, page)?,
            free: if count > 0 { 0 } else { NONE },
            free_count: count,
        })
    }

    /// How many more pages there is room for.
    pub fn free(&self) -> usize {
        self.free_count
    }

    /// Adds a segment's page to a request's; false if there is no room.
    pub fn push(&mut self, pages: &mut Pages, segment: Segment) -> bool {
        let at = self.free;
        let Some(page) = self.pages.get_mut(usize::from(at)) else {
            return false;
        };
        self.free = page.next;
        self.free_count -= 1;
        *page = Page {
            gref: segment.gref(),
            // Both are at most the sectors of a page.
            first: segment.first(),
            sectors: segment.last() - segment.first() + 1,
            hold: Hold::None,
            next: NONE,
        };
        match self.pages.get_mut(usize::from(pages.last)) {
            Some(last) => last.next = at,
            None => pages.first = at,
        }
        pages.last = at;
        pages.len += 1;
        true
    }

    /// The pages of a request, in order.
    pub fn iter(&self, pages: &Pages) -> impl Iterator<Item = &Page> + use<'_> {
        let mut at = pages.first;
        core::iter::from_fn(move || {
            let page = self.pages.get(usize::from(at))?;
            at = page.next;
            Some(page)
        })
    }

    /// Calls `each` with every page of a request, in order.
    pub fn for_each(&mut self, pages: &Pages, mut each: impl FnMut(&mut Page)) {
        let mut at = pages.first;
        while let Some(page) = self.pages.get_mut(usize::from(at)) {
            at = page.next;
            each(page);
        }
    }

    /// Gives the room of a request's pages back. `each` gets how each of them was held.
    pub fn drain(&mut self, pages: &mut Pages, mut each: impl FnMut(Hold)) {
        let Pages { first, last, len } = core::mem::replace(pages, Pages::EMPTY);
        let mut at = first;
        while let Some(page) = self.pages.get_mut(usize::from(at)) {
            each(core::mem::replace(&mut page.hold, Hold::None));
            at = page.next;
        }
        if let Some(page) = self.pages.get_mut(usize::from(last)) {
            page.next = core::mem::replace(&mut self.free, first);
            self.free_count += usize::from(len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(gref: u32) -> Segment {
        Segment::whole(GrantRef(gref))
    }

    fn grefs(pool: &PagePool, pages: &Pages) -> Vec<u32> {
        pool.iter(pages).map(|page| page.gref.0).collect()
    }

    #[test]
    fn requests_share_the_room_for_pages() {
        let mut pool = PagePool::new(4).unwrap();
        let (mut one, mut two) = (Pages::EMPTY, Pages::EMPTY);
        for gref in 0..2 {
            assert!(pool.push(&mut one, segment(gref)));
            assert!(pool.push(&mut two, segment(gref + 10)));
        }
        assert!(!pool.push(&mut one, segment(9)), "four pages are all");
        assert_eq!(grefs(&pool, &one), [0, 1]);
        assert_eq!(grefs(&pool, &two), [10, 11]);
        let mut given_back = 0;
        pool.drain(&mut one, |_| given_back += 1);
        assert_eq!((given_back, one.len(), pool.free()), (2, 0, 2));
        assert!(pool.push(&mut two, segment(12)));
        assert_eq!(grefs(&pool, &two), [10, 11, 12]);
        pool.drain(&mut two, |_| ());
        pool.drain(&mut one, |_| ());
        assert_eq!(pool.free(), 4);
    }

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
        let mut flight = Flight::new(RequestId(1), Opcode::DISCARD, steps);
        assert_eq!(flight.next_step(), Some(Op::Flush));
        assert!(matches!(flight.next_step(), Some(Op::Discard { .. })));
        assert!(flight.has_steps());
        assert_eq!(flight.next_step(), Some(Op::Flush));
        assert_eq!(flight.next_step(), None);
        assert!(!flight.has_steps());
    }

    #[test]
    fn what_is_done_is_taken_in_its_order_and_may_be_done_again() {
        let mut flights = Flights::new(3).unwrap();
        let begin = |flights: &mut Flights| {
            flights
                .begin(RequestId(1), Opcode::READ, Steps::default())
                .unwrap()
        };
        let (one, two) = (begin(&mut flights), begin(&mut flights));
        flights.done(two, Ok(()));
        flights.done(one, Err(IoError::Medium));
        assert_eq!(flights.take_done(), Some((two, Ok(()))));
        flights.done(two, Err(IoError::NoMemory));
        assert_eq!(flights.take_done(), Some((one, Err(IoError::Medium))));
        assert_eq!(flights.take_done(), Some((two, Err(IoError::NoMemory))));
        assert_eq!((flights.take_done(), flights.none_done()), (None, true));
    }
}
