//! The frontend's end of a ring: puts requests, takes responses.

use crate::error::{AttachError, Overrun, RingFull, TooSmall};
use crate::memory::{Index, RingMemory};
use crate::message::{Format, RING_HEADER_SIZE};
use crate::slots::Slots;
use core::num::NonZeroU32;

/// The frontend's end (`struct __name##_front_ring`, io/ring.h).
pub struct FrontRing<M, F> {
    slots: Slots<M, F>,
    /// The number of requests put so far (`req_prod_pvt`).
    asked: u32,
    /// The number of requests published so far.
    published: u32,
    /// The number of responses taken so far (`rsp_cons`).
    taken: u32,
}

impl<M: RingMemory, F: Format> FrontRing<M, F> {
    /// Initialises the shared memory as an empty ring, and returns the frontend's end of it
    /// (`XEN_FRONT_RING_INIT`).
    pub fn new(memory: M, format: F) -> Result<Self, TooSmall> {
        Self::starting_at(memory, format, 0)
    }

    /// Returns an empty ring whose indices start at `index` and not at 0. A backend finds the place with
    /// [`BackRing::attach`](crate::BackRing::attach).
    pub fn starting_at(memory: M, format: F, index: u32) -> Result<Self, TooSmall> {
        let slots = Slots::new(memory, format)?;
        slots.memory.write(16, &[0; RING_HEADER_SIZE - 16]);
        for producer in [Index::RequestProducer, Index::ResponseProducer] {
            slots.memory.store(producer, index);
        }
        for event in [Index::RequestEvent, Index::ResponseEvent] {
            slots.memory.store(event, index.wrapping_add(1));
        }
        Ok(FrontRing {
            slots,
            asked: index,
            published: index,
            taken: index,
        })
    }

    /// Returns the frontend's end of a ring that is in use, on which no request is outstanding
    /// (`FRONT_RING_ATTACH`).
    pub fn attach(memory: M, format: F) -> Result<Self, AttachError> {
        let slots = Slots::new(memory, format)?;
        let asked = slots.memory.load(Index::RequestProducer);
        let answered = slots.memory.load(Index::ResponseProducer);
        if asked != answered {
            return Err(AttachError::Overrun(Overrun {
                producer: answered,
                consumer: asked,
                most: 0,
            }));
        }
        Ok(FrontRing {
            slots,
            asked,
            published: asked,
            taken: asked,
        })
    }

    /// Returns the number of slots: the most requests that can be outstanding.
    pub fn slots(&self) -> u32 {
        self.slots.count
    }

    /// Returns the number of requests that there is room for (`RING_FREE_REQUESTS`).
    pub fn free(&self) -> u32 {
        self.slots.count - self.outstanding()
    }

    /// Returns the number of requests whose responses have not been taken yet.
    pub fn outstanding(&self) -> u32 {
        self.asked.wrapping_sub(self.taken)
    }

    /// Puts a request into the ring. The backend sees it after the next
    /// [`publish`](Self::publish).
    pub fn push(&mut self, request: &F::Request) -> Result<(), RingFull> {
        let mut slot = self.slots.format.empty_slot();
        self.slots.format.encode_request(request, &mut slot);
        self.push_slot(&slot)
    }

    /// Puts the bytes of a request into the ring. To test a backend, they may be any.
    #[inline]
    pub fn push_slot(&mut self, slot: &F::Slot) -> Result<(), RingFull> {
        if self.free() == 0 {
            return Err(RingFull);
        }
        let size = self.slots.format.request_size();
        let at = self.slots.offset(self.asked);
        self.slots.memory.write(at, &slot.as_ref()[..size]);
        self.asked = self.asked.wrapping_add(1);
        Ok(())
    }

    /// Publishes all requests put so far to the backend (`RING_PUSH_REQUESTS_AND_CHECK_NOTIFY`).
    /// Returns true if the backend wants to be notified.
    #[must_use = "the backend may be asleep and wait for the notification"]
    pub fn publish(&mut self) -> bool {
        if self.asked == self.published {
            return false;
        }
        let old = core::mem::replace(&mut self.published, self.asked);
        self.slots
            .publish(Index::RequestProducer, Index::RequestEvent, old, self.asked)
    }

    /// Returns the number of responses that wait to be taken (`RING_HAS_UNCONSUMED_RESPONSES`).
    pub fn unconsumed(&self) -> Result<u32, Overrun> {
        let producer = self.slots.memory.load(Index::ResponseProducer);
        let pending = producer.wrapping_sub(self.taken);
        // There cannot be more responses than outstanding requests.
        let most = self.published.wrapping_sub(self.taken);
        if pending > most {
            return Err(Overrun {
                producer,
                consumer: self.taken,
                most,
            });
        }
        Ok(pending)
    }

    /// Takes the next response, or `None` if none is published.
    pub fn take(&mut self) -> Result<Option<F::Response>, Overrun> {
        if self.unconsumed()? == 0 {
            return Ok(None);
        }
        let size = self.slots.format.response_size();
        let mut slot = F::ResponseSlot::default();
        let at = self.slots.offset(self.taken);
        self.slots.memory.read(at, &mut slot.as_mut()[..size]);
        self.taken = self.taken.wrapping_add(1);
        Ok(Some(self.slots.format.decode_response(&slot)))
    }

    /// Asks the backend to notify the frontend of its next response (`RING_FINAL_CHECK_FOR_RESPONSES`). Returns
    /// true if there is a response already: the frontend must not sleep then.
    #[must_use = "sleeping with responses pending may last for ever"]
    pub fn final_check(&mut self) -> Result<bool, Overrun> {
        self.final_check_for(NonZeroU32::MIN)
    }

    /// Does the same as [`final_check`](Self::final_check) for `responses` responses: the backend may notify the
    /// frontend of the last of them. Returns true if that many are pending.
    #[must_use = "sleeping with responses pending may last for ever"]
    pub fn final_check_for(&mut self, responses: NonZeroU32) -> Result<bool, Overrun> {
        let responses = responses.get();
        if self.unconsumed()? >= responses {
            return Ok(true);
        }
        let event = self.taken.wrapping_add(responses);
        self.slots.memory.store(Index::ResponseEvent, event);
        // The backend must see `rsp_event` before the last look at its index.
        self.slots.memory.barrier();
        Ok(self.unconsumed()? >= responses)
    }
}
