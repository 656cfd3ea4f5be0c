//! Requests in flight: taken off the ring, not answered yet.

use alloc::vec::Vec;
use bulkhead_grant::Slot;
use bulkhead_images::{Op, Tag};
use bulkhead_ring::blkif::{MAX_SEGMENTS, Opcode, RequestId};

/// A granted page that a request uses, and which bytes of it.
pub struct MappedSegment {
    /// The page's place in the queue's window.
    pub slot: Slot,
    /// The first byte within the page.
    pub offset: usize,
    /// How many bytes.
    pub len: usize,
}

/// One request in flight.
pub struct Flight {
    /// The request's identifier, for the response.
    pub id: RequestId,
    /// The operation, for the response.
    pub opcode: Opcode,
    /// What the device is to do with the segments; `None` once nothing is left to start.
    pub op: Option<Op>,
    /// A flush has to be complete before `op` starts.
    pub flush_first: bool,
    /// The pages.
    pub segments: Vec<MappedSegment>,
}

/// A fixed number of places for requests in flight. A place is found and given back in constant
/// time, and keeps its memory for the next request.
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
            op: None,
            flush_first: false,
            segments: Vec::with_capacity(MAX_SEGMENTS),
        };
        Flights {
            places: core::iter::repeat_with(place).take(count).collect(),
            free: (0..count).rev().collect(),
        }
    }

    /// Takes a place; `None` if all are taken.
    pub fn begin(&mut self, id: RequestId, opcode: Opcode) -> Option<(Tag, &mut Flight)> {
        let place = self.free.pop()?;
        let flight = &mut self.places[place];
        flight.id = id;
        flight.opcode = opcode;
        flight.op = None;
        flight.flush_first = false;
        Some((Tag(place), flight))
    }

    /// The request at a place.
    pub fn get(&mut self, tag: Tag) -> &mut Flight {
        &mut self.places[tag.0]
    }

    /// Gives a place back. Its segments must have been taken out.
    pub fn end(&mut self, tag: Tag) {
        debug_assert!(self.places[tag.0].segments.is_empty());
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
