//! The frontend's end of a ring: puts requests, takes responses.

use crate::error::{AttachError, Overrun, RingFull, TooSmall};
use crate::memory::{Index, RingMemory};
use crate::message::{Format, RING_HEADER_SIZE};
use crate::slots::Slots;
use core::num::NonZeroU32;

/// The frontend's end (`struct __name##_front_ring`, io/ring.h).
pub struct FrontRing<M, F> {
    slots: Slots<M, F>,
    /// Requests put so far (`req_prod_pvt`).
    asked: u32,
    /// Requests the backend has been shown so far.
    published: u32,
    /// Responses taken so far (`rsp_cons`).
    taken: u32,
}

impl<M: RingMemory, F: Format> FrontRing<M, F> {
    /// Initialises the shared memory as an empty ring, and is the frontend's end of it
    /// (`XEN_FRONT_RING_INIT`).
    pub fn new(memory: M, format: F) -> Result<Self, TooSmall> {
        Self::starting_at(memory, format, 0)
    }

    /// An empty ring whose indices start at `index` and not at 0. A backend finds the place with
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

    /// The frontend's end of a ring in use on which nothing is outstanding
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

    /// How many slots the ring has: the most requests that can be outstanding.
    pub fn slots(&self) -> u32 {
        self.slots.count
    }

    /// How many more requests there is room for (`RING_FREE_REQUESTS`).
    pub fn free(&self) -> u32 {
        self.slots.count - self.outstanding()
    }

    /// Requests put whose responses have not been taken yet.
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

    /// Puts bytes into the ring that need not be a request at all, for testing a backend.
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

    /// Shows the backend all requests put so far (`RING_PUSH_REQUESTS_AND_CHECK_NOTIFY`).
    /// True means: notify it.
    #[must_use = "the backend may be asleep and wait for the notification"]
    pub fn publish(&mut self) -> bool {
        if self.asked == self.published {
            return false;
        }
        let old = core::mem::replace(&mut self.published, self.asked);
        self.slots
            .publish(Index::RequestProducer, Index::RequestEvent, old, self.asked)
    }

    /// Responses waiting to be taken (`RING_HAS_UNCONSUMED_RESPONSES`).
    pub fn unconsumed(&self) -> Result<u32, Overrun> {
        let producer = self.slots.memory.load(Index::ResponseProducer);
        let pending = producer.wrapping_sub(self.taken);
        // No more answers than the backend was asked for.
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

    /// Before going to sleep (`RING_FINAL_CHECK_FOR_RESPONSES`): asks the backend to notify us of
    /// its very next response. True means: there is one already, do not sleep.
    #[must_use = "sleeping with responses pending may last for ever"]
    pub fn final_check(&mut self) -> Result<bool, Overrun> {
        self.final_check_for(NonZeroU32::MIN)
    }

    /// As [`final_check`](Self::final_check), but the notification may wait until `responses` of
    /// them are pending. True means: that many are there.
    #[must_use = "sleeping with responses pending may last for ever"]
    pub fn final_check_for(&mut self, responses: NonZeroU32) -> Result<bool, Overrun> {
        let responses = responses.get();
        if self.unconsumed()? >= responses {
            return Ok(true);
        }
        let event = self.taken.wrapping_add(responses);
        self.slots.memory.store(Index::ResponseEvent, event);
        // The backend sees what we wait for before we look a last time.
        self.slots.memory.barrier();
        Ok(self.unconsumed()? >= responses)
    }
}
