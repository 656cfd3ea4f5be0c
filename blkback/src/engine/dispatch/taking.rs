//! Takes requests off the ring.

use super::super::data_path::PageAccess;
use super::super::setup::QueueError;
use super::super::turns::MOST_OF_A_SWEEP;
use super::{Begun, Dispatcher, ServePlain, Taken};
use bulkhead_ring::blkif::SLOT_SIZE;
use bulkhead_xen::Hypervisor;

impl<H: Hypervisor> Dispatcher<H> {
    /// Takes requests while there is room for them, and learns which pages they have. Takes no more than are a turn's: the
    /// frontend may publish others as fast as they are answered.
    ///
    /// Offers reads and writes to `serve` first, with the tag that they have if the device keeps them. `serve` hands
    /// them to the device, or returns `None` if they are to be begun like all others.
    #[inline]
    pub fn take(
        &mut self,
        page_access: &mut PageAccess<H>,
        serve: &mut impl ServePlain<H>,
    ) -> Result<Taken, QueueError> {
        self.pages = 0;
        self.reserved = 0;
        self.taken_pages = 0;
        #[cfg(feature = "recover")]
        let requests = match self.journal.lend() {
            Some((mut order, place)) => {
                let taken = self.take_in_any_order((&mut order, place), page_access);
                self.journal.give_back(order, place);
                taken?
            }
            None => self.take_in_order(page_access, serve)?,
        };
        #[cfg(not(feature = "recover"))]
        let requests = self.take_in_order(page_access, serve)?;
        if !self.fetching.is_empty() {
            self.begin_fetched(page_access);
        }
        Ok(Taken {
            requests,
            pages: self.pages,
        })
    }

    /// Returns whether a request may begin. While one waits for a busy device, later ones stay on the ring.
    #[inline]
    pub(super) fn may_begin(&self) -> bool {
        self.inflight.free() > 0 && !self.barrier && self.inflight.none_busy()
    }

    #[inline(always)]
    fn take_in_order(
        &mut self,
        page_access: &mut PageAccess<H>,
        serve: &mut impl ServePlain<H>,
    ) -> Result<u32, QueueError> {
        let format = *self.ring.format();
        if self.inflight.in_flight() > 0 {
            self.journal.leave_order();
        }
        let mut passed = 0;
        if self.journal.waiting() > 0 {
            // A request that was taken before a crash. Each is served alone, before those on the ring.
            passed = self.ring.slots() - 1;
            let held = self.held.take();
            self.held = held.or_else(|| self.journal.take_again(self.ring.taken()));
        }
        let mut requests = passed;
        let mut slot = [0; SLOT_SIZE];
        let mut may_begin = self.may_begin();
        while may_begin && requests < self.ring.slots() && self.taken_pages < MOST_OF_A_SWEEP {
            if let Some(held) = &self.held {
                slot = *held;
                self.held = None;
            } else if !self.ring.take_slot(&mut slot)? {
                break;
            }
            match self.begin(&slot, format, page_access, serve) {
                Begun::Served => requests += 1,
                Begun::Yes => {
                    requests += 1;
                    may_begin = self.may_begin();
                }
                Begun::NotYet => {
                    self.held = Some(slot);
                    break;
                }
            }
        }
        Ok(requests - passed)
    }
}
