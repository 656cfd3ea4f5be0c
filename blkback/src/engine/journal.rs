//! The journal of a queue: its requests and responses, kept for the boot that follows a crash (`recovery`).

mod any_order;

use crate::recovery::{KeptQueue, QueuePlace, QueueRecord, SLOTS};
use alloc::boxed::Box;
pub(super) use any_order::AnyOrder;
use bulkhead_images::Tag;
use bulkhead_ring::blkif::{Blkif, Response, SLOT_SIZE};
use bulkhead_ring::{BackRing, Overrun, SharedPages, Unasked};

/// The journal of a queue's requests and responses. By default, nothing is kept.
#[derive(Debug, Default)]
pub struct Journal {
    /// The place in which they are kept.
    claim: QueuePlace,
    /// The number of requests that were taken and have not begun: the last that were taken, unless responses are put in
    /// any order.
    again: u32,
    /// True if a crash finds the place.
    sealed: bool,
    /// The use of the place, if responses are put in any order.
    any_order: Option<Box<AnyOrder>>,
    /// For each tag, the index of the request that has it, if responses are not put in any order.
    indices: [u32; SLOTS as usize],
    /// True if a response was put before that of an earlier request since responses were last published.
    disordered: bool,
}

impl Journal {
    /// Keeps a queue's requests in a place that it has, or goes on with what an earlier boot has kept there.
    pub fn new(claim: Option<QueuePlace>) -> Journal {
        let claim = claim.unwrap_or_default();
        Journal {
            sealed: claim.is_some() && claim.record.is_none(),
            claim,
            ..Journal::default()
        }
    }

    /// Begins to keep the requests that are taken off this ring, which goes on after the last published response.
    /// `at_once` says that the store answers in the order of the requests. If an earlier boot has served the ring,
    /// returns the number of requests that it has taken and not answered: they are no longer on the ring, and are
    /// served first.
    ///
    /// # Errors
    /// The frontend has not published that many requests.
    pub(super) fn begin(
        &mut self,
        ring: &mut BackRing<SharedPages, Blkif>,
        at_once: bool,
    ) -> Result<Option<u32>, Overrun> {
        if ring.slots() != SLOTS {
            *self = Journal::default();
        }
        let Some(place) = &mut self.claim.place else {
            return Ok(None);
        };
        if let Some(record) = self.claim.record.take() {
            place.seal(&QueueRecord {
                any_order: !at_once,
                ..record
            });
            self.sealed = true;
            match at_once {
                true => self.claim.in_order = self.claim.place.take(),
                false => self.any_order = Some(Box::new(AnyOrder::new(&[]))),
            }
            return Ok(None);
        }
        if place.answers_in_any_order() == Some(true) {
            let any_order = AnyOrder::new(&place.unanswered(ring.taken()));
            self.again = any_order.waiting();
            self.any_order = Some(Box::new(any_order));
            ring.skip(self.again)?;
            return Ok(Some(self.again));
        }
        self.again = place.restore(ring)?;
        self.disordered = self.again > 0;
        if !self.disordered {
            self.claim.in_order = self.claim.place.take();
        }
        Ok(Some(self.again))
    }

    /// Returns whether a crash finds the journal, and finds it in the form for responses in the order of the requests.
    #[inline]
    pub(super) fn is_sealed_in_order(&self) -> bool {
        self.sealed && self.any_order.is_none()
    }

    /// Returns whether a crash finds the journal.
    #[inline]
    pub(super) fn is_sealed(&self) -> bool {
        self.sealed
    }

    /// Has no crash find the journal.
    #[cold]
    pub(super) fn break_seal(&mut self) {
        self.sealed = false;
        let QueuePlace {
            in_order, place, ..
        } = &mut self.claim;
        if let Some(place) = in_order.as_mut().or(place.as_mut()) {
            place.clear();
        }
    }

    /// Returns the number of requests that were taken and have not begun.
    #[inline]
    pub(super) fn waiting(&self) -> u32 {
        self.again
    }

    /// Takes the first of these requests out of the journal of an earlier boot, if that boot has answered in the order
    /// of the requests. `taken` is the index of the next request on the ring.
    #[cold]
    pub(super) fn take_again(&mut self, taken: u32) -> Option<[u8; SLOT_SIZE]> {
        let index = taken.wrapping_sub(self.again);
        self.again -= 1;
        self.claim.place.as_ref()?.kept(index).copied()
    }

    /// Gives the place to the caller while it takes requests, if responses are put in any order.
    #[inline]
    pub(super) fn lend(&mut self) -> Option<(Box<AnyOrder>, &'static mut KeptQueue)> {
        let order = self.any_order.take()?;
        Some((order, self.claim.place.take()?))
    }

    /// Takes the place back.
    #[inline]
    pub(super) fn give_back(&mut self, order: Box<AnyOrder>, place: &'static mut KeptQueue) {
        self.again = order.waiting();
        self.any_order = Some(order);
        self.claim.place = Some(place);
    }

    /// Puts a response on the ring.
    ///
    /// # Errors
    /// All requests that were taken were answered.
    #[inline(always)]
    pub(super) fn put(
        &mut self,
        ring: &mut BackRing<SharedPages, Blkif>,
        response: &Response,
    ) -> Result<(), Unasked> {
        match &mut self.claim.in_order {
            Some(place) => ring.respond_noted(response, |index, bytes| {
                place.answers.note(index, bytes);
            }),
            None => self.put_out_of_order(ring, *response),
        }
    }

    /// Puts a response on the ring that need not be that of the request with its index. It is passed by value, so that
    /// it need not be in memory where this is not called.
    #[cold]
    #[inline(never)]
    fn put_out_of_order(
        &mut self,
        ring: &mut BackRing<SharedPages, Blkif>,
        response: Response,
    ) -> Result<(), Unasked> {
        if self.any_order.is_none()
            && let Some(place) = &mut self.claim.place
        {
            self.disordered = true;
            place.keep(ring.answered(), |slot| ring.copy_overwritten(slot));
        }
        ring.respond(&response)
    }

    /// Notes that the request with that index begins, has that tag and is answered later, perhaps after others that are
    /// taken after it.
    #[inline]
    pub(super) fn begin_later(&mut self, tag: Tag, index: u32) {
        self.indices[tag.0 % self.indices.len()] = index;
        self.leave_order();
    }

    /// Notes that responses may be put before those of earlier requests.
    #[inline]
    pub(super) fn leave_order(&mut self) {
        if let Some(place) = self.claim.in_order.take() {
            self.claim.place = Some(place);
        }
    }

    /// Notes that the next response is that of the request with the same index.
    fn enter_order(&mut self) {
        if !self.disordered
            && let Some(place) = self.claim.place.take()
        {
            self.claim.in_order = Some(place);
        }
    }

    /// Returns whether requests are kept, and each response is that of the request with the same index.
    #[inline]
    pub(super) fn is_in_order(&self) -> bool {
        self.claim.in_order.is_some()
    }

    /// Notes that the response with that index is about to be put for the request with that tag.
    #[inline(always)]
    pub(super) fn answer(&mut self, tag: Tag, response: u32) {
        if self.any_order.is_some() {
            return self.answer_in_any_order(tag, response);
        }
        let in_turn = self.indices[tag.0 % self.indices.len()] == response;
        match (in_turn, self.is_in_order()) {
            (true, false) => self.enter_order(),
            (false, true) => self.leave_order(),
            _ => {}
        }
    }

    #[inline(never)]
    fn answer_in_any_order(&mut self, tag: Tag, response: u32) {
        if let Some((order, place)) = self.order() {
            order.answer(order.of(tag), response, place);
        }
    }

    /// Notes that `count` responses, from the one with the index `from` on, were published. `at_rest` says that all
    /// earlier requests are answered before any other is taken.
    pub(super) fn published(&mut self, from: u32, count: u32, at_rest: bool) {
        if self.any_order.is_some() {
            if let Some((order, place)) = self.order() {
                order.published(from, count, place);
            }
            return;
        }
        let Some(place) = &mut self.claim.place else {
            return;
        };
        if self.disordered {
            for after in 0..count {
                place.forget(from.wrapping_add(after));
            }
            place.answers.forget();
        }
        if at_rest && self.again == 0 {
            self.disordered = false;
            self.enter_order();
        }
    }

    fn order(&mut self) -> Option<(&mut AnyOrder, &mut KeptQueue)> {
        let place = self.claim.place.as_mut()?;
        Some((self.any_order.as_mut()?, place))
    }
}
