//! What a queue keeps of its requests, for the boot that follows a crash (`recovery`).

mod any_order;

pub(super) use crate::recovery::Kept;
use crate::recovery::{Claim, Place, Record, SLOTS};
use alloc::boxed::Box;
pub(super) use any_order::AnyOrder;
use bulkhead_images::Tag;
use bulkhead_ring::blkif::Blkif;
use bulkhead_ring::{BackRing, Overrun, SharedPages};
use core::iter;

/// A place while requests are being taken, or none.
pub(super) type Lent = Option<&'static mut Place>;

/// Returns where requests are to be put, each at its index modulo the number of places: several if they are kept, else
/// one, which is `other`.
#[inline]
pub(super) fn requests<'a>(lent: &'a mut Lent, other: &'a mut Kept) -> &'a mut [Kept] {
    match lent {
        Some(place) => place.requests(),
        None => core::slice::from_mut(other),
    }
}

/// What a queue keeps of its requests. By default, that is nothing.
#[derive(Debug, Default)]
pub struct Journal {
    /// Where they are kept; `None` if nothing is.
    claim: Option<Claim>,
    /// The number of requests that were taken and have not begun: the last that were taken, unless responses are put in
    /// any order.
    again: u32,
    /// A crash finds the place.
    sealed: bool,
    /// The use of the place, if responses are put in any order.
    any_order: Option<Box<AnyOrder>>,
}

impl Journal {
    /// Keeps a queue's requests in a place that it has, or goes on with what an earlier boot has kept there.
    pub fn new(claim: Option<Claim>) -> Journal {
        Journal {
            sealed: claim.as_ref().is_some_and(|claim| claim.record.is_none()),
            claim,
            ..Journal::default()
        }
    }

    /// Begins to keep what is taken off this ring, which goes on after the last published response. `at_once` says that
    /// the store answers in the order of the requests. Returns how many requests an earlier boot has taken and not
    /// answered, if one has served the ring: these come first.
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
        let Some(claim) = &mut self.claim else {
            return Ok(None);
        };
        let Some(place) = &mut claim.place else {
            return Ok(None);
        };
        if let Some(record) = claim.record.take() {
            place.seal(&Record {
                any_order: !at_once,
                ..record
            });
            self.sealed = true;
            self.any_order = (!at_once).then(|| Box::new(AnyOrder::new(iter::empty())));
            return Ok(None);
        }
        self.again = match place.answers_in_any_order() {
            Some(true) => {
                let places = place.unanswered(ring.taken()).into_iter();
                let any_order = AnyOrder::new(places.map(|(place, _)| place));
                let again = any_order.waiting();
                self.any_order = Some(Box::new(any_order));
                again
            }
            _ => place.taken_from(ring.taken()),
        };
        ring.skip(self.again)?;
        Ok(Some(self.again))
    }

    /// Returns whether there is a place to keep requests in.
    pub fn has_place(&self) -> bool {
        self.claim.is_some()
    }

    /// Returns whether a crash finds what is kept, and finds it only if responses are put in the order of the requests.
    #[inline]
    pub(super) fn is_sealed_in_order(&self) -> bool {
        self.sealed && self.any_order.is_none()
    }

    /// Returns whether a crash finds what is kept.
    #[inline]
    pub(super) fn is_sealed(&self) -> bool {
        self.sealed
    }

    /// Lets no crash find what is kept.
    #[cold]
    pub(super) fn break_seal(&mut self) {
        self.sealed = false;
        let claim = self.claim.as_mut();
        if let Some(place) = claim.and_then(|claim| claim.place.as_mut()) {
            place.clear();
        }
    }

    /// Returns how many requests were taken and have not begun.
    #[inline]
    pub(super) fn waiting(&self) -> u32 {
        self.again
    }

    /// Notes their number.
    #[inline]
    pub(super) fn set_waiting(&mut self, again: u32) {
        self.again = again;
    }

    /// Returns whether requests are kept.
    #[inline]
    pub(super) fn keeps(&self) -> bool {
        self.claim.is_some()
    }

    /// Lends the place while requests are being taken.
    #[inline]
    pub(super) fn lend(&mut self) -> Lent {
        self.claim.as_mut()?.place.take()
    }

    /// Takes it back.
    #[inline]
    pub(super) fn give_back(&mut self, lent: Lent) {
        if let Some(claim) = &mut self.claim {
            claim.place = lent;
        }
    }

    /// Lends the use of the place, too, if responses are put in any order.
    #[inline]
    pub(super) fn lend_order(&mut self) -> Option<Box<AnyOrder>> {
        self.any_order.take()
    }

    /// Takes it back.
    #[inline]
    pub(super) fn give_order_back(&mut self, order: Box<AnyOrder>) {
        self.again = order.waiting();
        self.any_order = Some(order);
    }

    /// Notes that the response with that index is about to be put for the request with that tag.
    #[inline]
    pub(super) fn answer(&mut self, tag: Tag, response: u32) {
        if self.any_order.is_some() {
            self.answer_in_any_order(tag, response);
        }
    }

    #[inline(never)]
    fn answer_in_any_order(&mut self, tag: Tag, response: u32) {
        if let Some((order, place)) = self.order() {
            order.answer(order.of(tag), response, place);
        }
    }

    /// Notes that the frontend was shown that many responses, from the one with that index on.
    #[inline]
    pub(super) fn published(&mut self, from: u32, count: u32) {
        if self.any_order.is_some()
            && let Some((order, place)) = self.order()
        {
            order.published(from, count, place);
        }
    }

    fn order(&mut self) -> Option<(&mut AnyOrder, &mut Place)> {
        let place = self.claim.as_mut()?.place.as_mut()?;
        Some((self.any_order.as_mut()?, place))
    }
}
