//! What a queue keeps of its requests, for the boot that follows a crash (`recovery`).

pub(super) use crate::recovery::Kept;
use crate::recovery::{Claim, Place, SLOTS};
use bulkhead_ring::blkif::Blkif;
use bulkhead_ring::{BackRing, Overrun, SharedPages};

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
    /// The number of requests that were taken and have not begun: the last that were taken.
    again: u32,
    /// A crash finds the place.
    sealed: bool,
}

impl Journal {
    /// Keeps a queue's requests in a place that it has, or goes on with what an earlier boot has kept there.
    pub fn new(claim: Option<Claim>) -> Journal {
        Journal {
            sealed: claim.as_ref().is_some_and(|claim| claim.record.is_none()),
            again: 0,
            claim,
        }
    }

    /// Begins to keep what is taken off this ring, which goes on after the last published response. Returns how many
    /// requests an earlier boot has taken and not answered, if one has served the ring: these come first.
    ///
    /// # Errors
    /// The frontend has not published that many requests.
    pub(super) fn begin(
        &mut self,
        ring: &mut BackRing<SharedPages, Blkif>,
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
        match claim.record.take() {
            Some(record) => {
                place.seal(&record);
                self.sealed = true;
                Ok(None)
            }
            None => {
                self.again = place.taken_from(ring.taken());
                ring.skip(self.again)?;
                Ok(Some(self.again))
            }
        }
    }

    /// Returns whether there is a place to keep requests in.
    pub fn has_place(&self) -> bool {
        self.claim.is_some()
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
}
