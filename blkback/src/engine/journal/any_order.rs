//! Requests whose store answers in an order of its own: each has a place until the frontend is shown its response.

use crate::recovery::{KeptQueue, SLOTS};
use alloc::vec::Vec;
use bulkhead_images::Tag;

const PLACES: usize = SLOTS as usize;

/// The use of a queue's places.
#[derive(Debug)]
pub struct AnyOrder {
    /// The places that no request has. A frontend that keeps to the protocol never has more requests than there are.
    free: Vec<u8>,
    /// The places of the requests that were taken and have not begun, the first to begin last.
    waiting: Vec<u8>,
    /// For each tag, the place of the request that has it.
    of_tag: [u8; PLACES],
    /// For each response that was put and not published, the place of its request: at its index modulo the slots.
    answered: [u8; PLACES],
}

impl AnyOrder {
    /// Returns the use of places among which `first` hold requests that are to begin first, in that order.
    pub fn new(first: &[(u8, u32)]) -> AnyOrder {
        let (mut free, mut waiting) = (Vec::with_capacity(PLACES), Vec::with_capacity(PLACES));
        waiting.extend(first.iter().rev().map(|(place, _)| *place));
        free.extend(
            (0..SLOTS as u8)
                .rev()
                .filter(|place| !waiting.contains(place)),
        );
        AnyOrder {
            free,
            waiting,
            of_tag: [0; PLACES],
            answered: [0; PLACES],
        }
    }

    /// Returns the number of requests that were taken and have not begun.
    pub fn waiting(&self) -> u32 {
        self.waiting.len() as u32
    }

    /// Takes the place of the request that is to begin next, if there is one.
    #[inline]
    pub fn next_waiting(&mut self) -> Option<u8> {
        self.waiting.pop()
    }

    /// Has a request begin later, but before the others that wait.
    pub fn wait(&mut self, place: u8) {
        self.waiting.push(place);
    }

    /// Takes a place that no request has.
    #[inline]
    pub fn next_free(&mut self) -> Option<u8> {
        self.free.pop()
    }

    /// Gives a place back that was not used.
    #[inline]
    pub fn unused(&mut self, place: u8) {
        self.free.push(place);
    }

    /// Notes that the request in a place has that tag, if it begins.
    #[inline]
    pub fn begin(&mut self, tag: Tag, place: u8) {
        if let Some(at) = self.of_tag.get_mut(tag.0) {
            *at = place;
        }
    }

    /// Returns the place of the request with a tag.
    #[inline]
    pub fn of(&self, tag: Tag) -> u8 {
        self.of_tag.get(tag.0).copied().unwrap_or_default()
    }

    /// Notes that the response with that index is about to be put for the request in a place.
    #[inline]
    pub fn answer(&mut self, place: u8, response: u32, kept: &mut KeptQueue) {
        kept.requests()[usize::from(place)].answer(response);
        self.answered[response as usize % PLACES] = place;
    }

    /// Frees the places of the requests with these responses, which were published.
    pub fn published(&mut self, from: u32, count: u32, kept: &mut KeptQueue) {
        for after in 0..count.min(SLOTS) {
            let place = self.answered[from.wrapping_add(after) as usize % PLACES];
            kept.requests()[usize::from(place)].free();
            self.free.push(place);
        }
    }
}
