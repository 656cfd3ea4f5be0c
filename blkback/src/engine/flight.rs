//! Requests in flight: taken off the ring, not answered yet; and the pages that they use.

use alloc::vec::Vec;
use bulkhead_grant::{Copied, Direction, Held, Slot};
use bulkhead_images::{Op, Tag};
use bulkhead_ring::blkif::{Opcode, RequestId, Segment};
use bulkhead_xen::GrantRef;

/// A granted page that a request uses, and which bytes of it.
#[derive(Debug)]
pub struct Page {
    /// The grant.
    pub gref: GrantRef,
    /// The first byte within the page.
    pub offset: u16,
    /// How many bytes.
    pub len: u16,
    /// How we get at it.
    pub hold: Hold,
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

/// What is still to be done for a request, in this order.
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
    /// Takes the next step; `None` if all are done.
    pub fn next(&mut self) -> Option<Op> {
        if core::mem::take(&mut self.flush_first) {
            return Some(Op::Flush);
        }
        if let Some(op) = self.op.take() {
            return Some(op);
        }
        core::mem::take(&mut self.flush_last).then_some(Op::Flush)
    }

    /// Whether there is a next step.
    pub fn are_left(&self) -> bool {
        *self != Steps::default()
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

/// One request in flight.
#[derive(Debug)]
pub struct Flight {
    /// The request's identifier, for the response.
    pub id: RequestId,
    /// The operation, for the response.
    pub opcode: Opcode,
    /// What is left to do.
    pub steps: Steps,
    /// The pages.
    pub pages: Pages,
    /// How many bytes they are.
    pub bytes: usize,
}

/// A fixed number of places for requests in flight. A place is found and given back in constant
/// time.
pub struct Flights {
    places: Vec<Flight>,
    free: Vec<usize>,
}

impl Flights {
    /// Room for `count` requests.
    pub fn new(count: usize) -> Self {
        let place = || Flight {
            id: RequestId::default(),
            opcode: Opcode::READ,
            steps: Steps::default(),
            pages: Pages::EMPTY,
            bytes: 0,
        };
        Flights {
            places: core::iter::repeat_with(place).take(count).collect(),
            free: (0..count).rev().collect(),
        }
    }

    /// Takes a place; `None` if all are taken.
    pub fn begin(&mut self, id: RequestId, opcode: Opcode, steps: Steps) -> Option<Tag> {
        let place = self.free.pop()?;
        self.places[place] = Flight {
            id,
            opcode,
            steps,
            pages: Pages::EMPTY,
            bytes: 0,
        };
        Some(Tag(place))
    }

    /// The request at a place.
    pub fn get(&mut self, tag: Tag) -> &mut Flight {
        &mut self.places[tag.0]
    }

    /// Gives a place back. Its pages must have been taken out.
    pub fn end(&mut self, tag: Tag) {
        debug_assert_eq!(self.places[tag.0].pages.len(), 0);
        self.free.push(tag.0);
    }

    /// How many places are free.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// How many requests are in flight.
    pub fn in_flight(&self) -> usize {
        self.places.len() - self.free.len()
    }
}

const NONE: u32 = u32::MAX;

/// The pages of one request, in their order: a list through the pool that they lie in.
#[derive(Debug)]
pub struct Pages {
    first: u32,
    last: u32,
    len: u32,
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
        self.len as usize
    }
}

/// Room for the pages of all requests in flight: one may have hundreds and most have one, so they
/// share what there is.
pub struct PagePool {
    nodes: Vec<Node>,
    free: u32,
    free_count: usize,
}

struct Node {
    page: Page,
    next: u32,
}

impl PagePool {
    /// Room for `count` pages.
    pub fn new(count: usize) -> Self {
        let node = |number: usize| Node {
            page: Page {
                gref: GrantRef(0),
                offset: 0,
                len: 0,
                hold: Hold::None,
            },
            next: if number + 1 < count {
                number as u32 + 1
            } else {
                NONE
            },
        };
        PagePool {
            nodes: (0..count).map(node).collect(),
            free: if count > 0 { 0 } else { NONE },
            free_count: count,
        }
    }

    /// How many more pages there is room for.
    pub fn free(&self) -> usize {
        self.free_count
    }

    /// Adds a segment's page to a request's; false if there is no room.
    pub fn push(&mut self, pages: &mut Pages, segment: Segment) -> bool {
        let at = self.free;
        let Some(node) = self.nodes.get_mut(at as usize) else {
            return false;
        };
        self.free = node.next;
        self.free_count -= 1;
        *node = Node {
            page: Page {
                gref: segment.gref(),
                // Both are at most the size of a page.
                offset: segment.offset() as u16,
                len: segment.len() as u16,
                hold: Hold::None,
            },
            next: NONE,
        };
        match self.nodes.get_mut(pages.last as usize) {
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
            let node = self.nodes.get(at as usize)?;
            at = node.next;
            Some(&node.page)
        })
    }

    /// Calls `each` with every page of a request, in order.
    pub fn for_each(&mut self, pages: &Pages, mut each: impl FnMut(&mut Page)) {
        let mut at = pages.first;
        while let Some(node) = self.nodes.get_mut(at as usize) {
            at = node.next;
            each(&mut node.page);
        }
    }

    /// Gives the room of a request's pages back. `each` gets how each of them was held.
    pub fn drain(&mut self, pages: &mut Pages, mut each: impl FnMut(Hold)) {
        let Pages { first, last, len } = core::mem::replace(pages, Pages::EMPTY);
        let mut at = first;
        while let Some(node) = self.nodes.get_mut(at as usize) {
            each(core::mem::replace(&mut node.page.hold, Hold::None));
            at = node.next;
        }
        if let Some(node) = self.nodes.get_mut(last as usize) {
            node.next = core::mem::replace(&mut self.free, first);
            self.free_count += len as usize;
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
        let mut pool = PagePool::new(4);
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
        let mut steps = Steps {
            flush_first: true,
            op: Some(Op::Discard {
                sector: Default::default(),
                count: Default::default(),
                secure: false,
            }),
            flush_last: true,
        };
        assert_eq!(steps.next(), Some(Op::Flush));
        assert!(matches!(steps.next(), Some(Op::Discard { .. })));
        assert_eq!(steps.next(), Some(Op::Flush));
        assert_eq!(steps.next(), None);
    }
}
