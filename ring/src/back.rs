//! The backend's end of a ring: takes requests, puts responses.

use crate::error::{AttachError, Overrun, TooSmall, Unasked};
use crate::memory::{Index, RingMemory};
use crate::message::Format;
use crate::slots::Slots;
use core::num::NonZeroU32;

/// The content of a slot: a request, or the reason why it is none.
pub type Received<F> = Result<<F as Format>::Request, <F as Format>::Malformed>;

/// The backend's end (`struct __name##_back_ring`, io/ring.h).
///
/// Responses need not come in the order of their requests. No call ever waits; what the frontend
/// publishes is checked before it is believed.
pub struct BackRing<M, F> {
    slots: Slots<M, F>,
    /// Requests taken so far (`req_cons`).
    taken: u32,
    /// Responses put so far (`rsp_prod_pvt`).
    answered: u32,
    /// Responses the frontend has been shown so far.
    published: u32,
    /// The frontend's `req_prod` when last looked at, found possible.
    seen: u32,
    /// True if `seen` is final: requests published after it are never taken.
    closed: bool,
}

impl<M: RingMemory, F: Format> BackRing<M, F> {
    /// The backend's end of a ring that the frontend has just initialised (`BACK_RING_INIT`).
    pub fn new(memory: M, format: F) -> Result<Self, TooSmall> {
        Ok(Self::from_index(Slots::new(memory, format)?, 0))
    }

    /// The backend's end of a ring that an earlier backend has served (`BACK_RING_ATTACH`): goes
    /// on after the last published response. Requests which that backend took and did not answer
    /// come again.
    pub fn attach(memory: M, format: F) -> Result<Self, AttachError> {
        let slots = Slots::new(memory, format)?;
        let index = slots.memory.load(Index::ResponseProducer);
        let ring = Self::from_index(slots, index);
        ring.unconsumed()?;
        Ok(ring)
    }

    fn from_index(slots: Slots<M, F>, index: u32) -> Self {
        BackRing {
            slots,
            taken: index,
            answered: index,
            published: index,
            seen: index,
            closed: false,
        }
    }

    /// Returns how many slots the ring has: the most requests that can be outstanding.
    pub fn slots(&self) -> u32 {
        self.slots.count
    }

    /// Returns the format of the messages.
    pub fn format(&self) -> &F {
        &self.slots.format
    }

    /// Returns the index of the next request to be taken (`req_cons`).
    #[inline]
    pub fn taken(&self) -> u32 {
        self.taken
    }

    /// Notes that the next `count` requests were taken already, by an earlier backend whose copies of them the caller
    /// has: what is on the ring in their place may be responses by now. To be called before anything is taken.
    ///
    /// # Errors
    /// The frontend has not published that many.
    pub fn skip(&mut self, count: u32) -> Result<(), Overrun> {
        let most = self.unconsumed()?;
        if count > most {
            return Err(Overrun {
                producer: self.taken.wrapping_add(most),
                consumer: self.taken.wrapping_add(count),
                most: self.slots.count,
            });
        }
        self.taken = self.taken.wrapping_add(count);
        self.seen = self.taken;
        Ok(())
    }

    /// Notes that the next `count` requests were answered already, by an earlier backend that has not shown the frontend
    /// its responses, and puts the last of these once more: it may be there in part. To be called before anything is
    /// taken, and with a count of at least one.
    ///
    /// # Errors
    /// The frontend has not published that many requests.
    pub fn put_again(&mut self, count: u32, last: &F::ResponseSlot) -> Result<(), Overrun> {
        self.skip(count)?;
        let Slots { memory, format, .. } = &self.slots;
        format.copy_response(memory, self.slots.offset(self.taken.wrapping_sub(1)), last);
        self.answered = self.taken;
        Ok(())
    }

    /// Copies what lies where the next response goes: if that is not the response to the request that lies there, the
    /// request is lost with it.
    pub fn copy_overwritten(&self, slot: &mut F::Slot) {
        let Slots { memory, format, .. } = &self.slots;
        format.copy_request(memory, self.slots.offset(self.answered), slot);
    }

    /// Returns how many requests were taken and not answered yet.
    pub fn outstanding(&self) -> u32 {
        self.taken.wrapping_sub(self.answered)
    }

    /// Returns the index of the next response to be put (`rsp_prod_pvt`).
    #[inline]
    pub fn answered(&self) -> u32 {
        self.answered
    }

    /// Returns how many responses were put and not published yet.
    pub fn unpublished(&self) -> u32 {
        self.answered.wrapping_sub(self.published)
    }

    /// Returns how many requests wait to be taken (`RING_HAS_UNCONSUMED_REQUESTS`): one load, no barrier.
    #[inline]
    pub fn unconsumed(&self) -> Result<u32, Overrun> {
        let producer = self.slots.memory.load(Index::RequestProducer);
        let pending = producer.wrapping_sub(self.taken);
        // Every slot holds a request that waits, one that is being served, or a response.
        let most = self.slots.count - self.outstanding();
        if pending > most {
            return Err(Overrun {
                producer,
                consumer: self.taken,
                most,
            });
        }
        Ok(pending)
    }

    /// Does the same for a caller that takes them next: up to that number, they are taken without another look.
    #[inline(always)]
    pub fn look(&mut self) -> Result<u32, Overrun> {
        if !self.closed {
            self.seen = self.taken.wrapping_add(self.unconsumed()?);
        }
        Ok(self.untaken())
    }

    /// Takes the next request, copied out of the ring once, or `None` if none is published.
    ///
    /// The producer index is looked at again only when all that was seen of it has been taken. A
    /// frontend can keep this going for as long as it gets responses: a caller that has others to
    /// serve takes a bounded number.
    #[inline]
    pub fn take(&mut self) -> Result<Option<Received<F>>, Overrun> {
        let mut slot = self.slots.format.empty_slot();
        let taken = self.take_slot(&mut slot)?;
        Ok(taken.then(|| self.slots.format.decode_request(&slot)))
    }

    /// Copies the next request into `slot`, for the caller to decode. Returns false if none is published.
    #[inline(always)]
    pub fn take_slot(&mut self, slot: &mut F::Slot) -> Result<bool, Overrun> {
        if self.taken == self.seen && self.look()? == 0 {
            return Ok(false);
        }
        let Slots { memory, format, .. } = &self.slots;
        format.copy_request(memory, self.slots.offset(self.taken), slot);
        self.taken = self.taken.wrapping_add(1);
        Ok(true)
    }

    /// Looks at the producer index a last time: requests published after this are never taken. Returns how
    /// many are left to take.
    pub fn close(&mut self) -> Result<u32, Overrun> {
        let untaken = self.look()?;
        self.closed = true;
        Ok(untaken)
    }

    /// Returns how many requests were seen and not taken yet. A closed ring takes no others.
    pub fn untaken(&self) -> u32 {
        self.seen.wrapping_sub(self.taken)
    }

    /// Puts a response into the ring. The frontend sees it after the next
    /// [`publish`](Self::publish).
    #[inline]
    pub fn respond(&mut self, response: &F::Response) -> Result<(), Unasked> {
        self.respond_noted(response, |_, _| ())
    }

    /// Does the same, after `note` got the response's index and its bytes.
    #[inline(always)]
    pub fn respond_noted(
        &mut self,
        response: &F::Response,
        note: impl FnOnce(u32, &F::ResponseSlot),
    ) -> Result<(), Unasked> {
        if self.outstanding() == 0 {
            return Err(Unasked);
        }
        let Slots { memory, format, .. } = &self.slots;
        let slot = format.encode_response(response);
        note(self.answered, &slot);
        format.copy_response(memory, self.slots.offset(self.answered), &slot);
        self.answered = self.answered.wrapping_add(1);
        Ok(())
    }

    /// Shows the frontend all responses put so far (`RING_PUSH_RESPONSES_AND_CHECK_NOTIFY`).
    /// Returns true if the caller has to notify it.
    #[inline]
    #[must_use = "the frontend may be asleep and wait for the notification"]
    pub fn publish(&mut self) -> bool {
        if self.unpublished() == 0 {
            return false;
        }
        let old = core::mem::replace(&mut self.published, self.answered);
        self.slots.publish(
            Index::ResponseProducer,
            Index::ResponseEvent,
            old,
            self.answered,
        )
    }

    /// Asks the frontend to notify us of its very next request, before the caller sleeps
    /// (`RING_FINAL_CHECK_FOR_REQUESTS`). Returns true if there is one already: the caller does not sleep.
    #[inline]
    #[must_use = "sleeping with requests pending may last for ever"]
    pub fn final_check(&mut self) -> Result<bool, Overrun> {
        self.final_check_for(NonZeroU32::MIN)
    }

    /// Asks the frontend to notify us when `requests` requests are pending, which saves it earlier
    /// notifications. Returns true if that many are there already.
    ///
    /// Fewer than `requests` may stay pending for ever without a notification. So this is only for a caller
    /// that looks again by itself, when a request in service completes or a timer ends.
    #[inline]
    #[must_use = "sleeping with requests pending may last for ever"]
    pub fn final_check_for(&mut self, requests: NonZeroU32) -> Result<bool, Overrun> {
        let requests = requests.get();
        if self.unconsumed()? >= requests {
            return Ok(true);
        }
        let event = self.taken.wrapping_add(requests);
        self.slots.memory.store(Index::RequestEvent, event);
        // The frontend sees what we wait for before we look a last time.
        self.slots.memory.barrier();
        Ok(self.unconsumed()? >= requests)
    }
}
