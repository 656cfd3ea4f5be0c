//! Takes requests off the ring into the place where they are kept for the time after a crash, if there is one. See
//! `taking.rs`.

use super::super::data_path::PageAccess;
use super::super::journal::{AnyOrder, Kept, requests};
use super::super::setup::QueueError;
use super::{Begun, Dispatcher, PlainTransfer, Served, Taken};
use crate::recovery::Place;
use bulkhead_images::Tag;
use bulkhead_xen::Hypervisor;

impl<H: Hypervisor> Dispatcher<H> {
    /// Takes requests while there is room for them, and learns what pages they have. Never takes more than the
    /// ring has slots: the frontend may publish others as fast as they are answered.
    ///
    /// Reads and writes are offered to `serve` first, with the tag that they have if the device keeps them. It
    /// hands them to the device, or returns `None` if they are to be begun like all others.
    #[inline]
    pub fn take(
        &mut self,
        page_access: &mut PageAccess<H>,
        mut serve: impl FnMut(Tag, PlainTransfer<'_>, &mut PageAccess<H>) -> Option<Served>,
    ) -> Result<Taken, QueueError> {
        let mut lent = self.journal.lend();
        self.pages = 0;
        self.reserved = 0;
        let taken = match (self.journal.lend_order(), &mut lent) {
            (Some(mut order), Some(place)) => {
                let taken = self.take_in_any_order((&mut order, place), page_access, &mut serve);
                self.journal.give_order_back(order);
                taken
            }
            _ => {
                let mut other = Kept::none();
                let kept = requests(&mut lent, &mut other);
                self.take_into(kept, page_access, &mut serve)
            }
        };
        self.journal.give_back(lent);
        let requests = taken?;
        if !self.fetching.is_empty() {
            self.begin_fetched(page_access);
        }
        Ok(Taken {
            requests,
            pages: self.pages,
        })
    }

    #[inline(always)]
    fn take_into(
        &mut self,
        kept: &mut [Kept],
        page_access: &mut PageAccess<H>,
        serve: &mut impl FnMut(Tag, PlainTransfer<'_>, &mut PageAccess<H>) -> Option<Served>,
    ) -> Result<u32, QueueError> {
        let mut requests = 0;
        let format = *self.ring.format();
        // Those that were taken before come first.
        let mut again = self.held();
        let most = kept.len() - 1;
        let mut outcome = Ok(());
        // While a request waits for a busy device, later ones stay on the ring.
        while requests < self.ring.slots()
            && self.inflight.free() > 0
            && !self.barrier
            && self.inflight.none_busy()
        {
            let index = self.ring.taken().wrapping_sub(again);
            let Some(kept) = kept.get_mut(index as usize & most) else {
                break;
            };
            if again > 0 {
                again -= 1;
                if let Some(held) = self.held.take() {
                    kept.slot = held;
                }
            } else {
                match self.ring.take_slot(&mut kept.slot) {
                    Ok(true) => kept.keep(index),
                    Ok(false) => break,
                    Err(overrun) => {
                        outcome = Err(overrun);
                        break;
                    }
                }
            }
            match self.begin(&kept.slot, format, page_access, serve) {
                Begun::Yes => requests += 1,
                Begun::NotYet => {
                    match self.journal.keeps() {
                        true => again += 1,
                        false => self.held = Some(kept.slot),
                    }
                    break;
                }
            }
        }
        self.journal.set_waiting(again);
        outcome?;
        Ok(requests)
    }

    /// The same for a store that answers in any order: each request has a place until its response is published.
    fn take_in_any_order(
        &mut self,
        (order, place): (&mut AnyOrder, &mut Place),
        page_access: &mut PageAccess<H>,
        serve: &mut impl FnMut(Tag, PlainTransfer<'_>, &mut PageAccess<H>) -> Option<Served>,
    ) -> Result<u32, QueueError> {
        let mut requests = 0;
        let format = *self.ring.format();
        while requests < self.ring.slots()
            && self.inflight.free() > 0
            && !self.barrier
            && self.inflight.none_busy()
        {
            let at = match order.next_waiting() {
                Some(at) => at,
                None => {
                    // There is none if the frontend has sent more than fits on a ring.
                    let Some(at) = order.next_free() else { break };
                    let index = self.ring.taken();
                    let kept = &mut place.requests()[usize::from(at)];
                    match self.ring.take_slot(&mut kept.slot) {
                        Ok(true) => kept.keep_unanswered(index),
                        other => {
                            order.unused(at);
                            other?;
                            break;
                        }
                    }
                    at
                }
            };
            order.begin(self.inflight.next_place(), at);
            let response = self.ring.answered();
            let slot = &place.requests()[usize::from(at)].slot;
            match self.begin(slot, format, page_access, serve) {
                Begun::Yes => requests += 1,
                Begun::NotYet => {
                    order.wait(at);
                    break;
                }
            }
            if self.ring.answered() != response {
                // It was answered at once.
                order.answer(at, response, place);
            }
        }
        Ok(requests)
    }
}
