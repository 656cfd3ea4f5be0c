//! Takes requests of a store that answers in any order off the ring, into the places that survive a crash. See
//! `taking.rs`.

use super::super::data_path::PageAccess;
use super::super::journal::AnyOrder;
use super::super::setup::QueueError;
use super::super::turns::MOST_OF_A_SWEEP;
use super::{Begun, Dispatcher};
use crate::recovery::KeptQueue;
use bulkhead_xen::Hypervisor;

impl<H: Hypervisor> Dispatcher<H> {
    /// Takes requests, each of which has a place until its response is published. Their store completes them later, so
    /// none of them is served as it comes off the ring. Stays out of line, so that the loop for other stores has the
    /// registers for itself.
    #[inline(never)]
    pub(super) fn take_in_any_order(
        &mut self,
        (order, place): (&mut AnyOrder, &mut KeptQueue),
        page_access: &mut PageAccess<H>,
    ) -> Result<u32, QueueError> {
        let mut requests = 0;
        let format = *self.ring.format();
        while requests < self.ring.slots() && self.taken_pages < MOST_OF_A_SWEEP && self.may_begin()
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
            match self.begin_later(slot, format, page_access) {
                Begun::Served | Begun::Yes => requests += 1,
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
