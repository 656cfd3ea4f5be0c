//! One ring to the backend, and the queues whose requests go over it: those of one vCPU if the backend takes a ring for
//! each vCPU, else those of several ([`assign`](crate::assignment::assign)).
//!
//! If each vCPU has a ring, that vCPU is the only one that locks the link while requests are served, and does not wait
//! for the lock; vCPUs that share a ring may wait for each other. The control plane locks it to connect, to disconnect,
//! and when an operator asks for its counts.
//!
//! A request stays in its client's table until the backend has answered it. If the backend goes away meanwhile, the
//! request is sent again on the next ring.

use crate::assignment::Location;
use crate::client::{Entry, RingClient};
use crate::counts::RingCounts;
use crate::wire::{BlkifViolation, OWN, Wire};
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_grant::{NotShared, SharedMemory};
use bulkhead_images::{Flushes, IoError, Op, Submitted, Tag};
use bulkhead_xen::{DomId, Hypervisor};
use core::task::{Context, Poll};

/// A ring, connected or not, with the queues that use it.
pub struct Link<H: Hypervisor> {
    wire: Option<Wire<H>>,
    clients: Vec<RingClient<H>>,
    /// The queue whose waiting requests get free slots of the ring first.
    turn: usize,
    /// The disk was given up.
    dead: bool,
    /// An earlier backend may still use the queues' memory: none of it may be used for anything else.
    held: bool,
    /// The domain that the queues' memory is granted to.
    backend: Option<(H, DomId)>,
    /// The backend closes: no more requests are sent to it.
    closing: bool,
    /// The result of a flush of this end's own.
    flushed: Option<Result<(), IoError>>,
    /// The counts of earlier rings.
    earlier: RingCounts,
}

impl<H: Hypervisor> Default for Link<H> {
    fn default() -> Self {
        Link {
            wire: None,
            clients: Vec::new(),
            turn: 0,
            dead: false,
            held: false,
            backend: None,
            closing: false,
            flushed: None,
            earlier: RingCounts::default(),
        }
    }
}

impl<H: Hypervisor> Link<H> {
    /// Opens a queue of a vCPU on this link, which has the number `ring`, for up to `depth` requests at a time. Returns
    /// the queue's number. It takes the place and the memory of a queue that was closed, if there is one whose requests
    /// have all ended; else it gets new memory from `memory`.
    pub fn open(
        &mut self,
        (ring, vcpu): (usize, usize),
        depth: usize,
        flushes: &Arc<Flushes>,
        memory: impl FnOnce() -> Result<SharedMemory<H>, NotShared>,
    ) -> Result<usize, NotShared> {
        let bytes = depth * size_of::<Entry>();
        let no_memory = |_| NotShared::NoMemory { bytes };
        // After the disk was given up, nothing is read into that memory.
        if (!self.held || self.dead)
            && let Some(number) = self.clients.iter_mut().position(RingClient::is_unused)
        {
            let reopened = self.clients[number].reopen(vcpu, depth);
            return reopened.map(|()| number).map_err(no_memory);
        }
        let mut memory = memory()?;
        if let Some((hypervisor, backend)) = &self.backend {
            memory.grant(hypervisor, *backend)?;
        }
        let location = Arc::new(Location::new(ring, self.clients.len()));
        let client = RingClient::new(memory, depth, flushes.clone(), (location, vcpu));
        let client = client.map_err(no_memory)?;
        let reserved = self.clients.try_reserve(1);
        reserved.map_err(|_| NotShared::NoMemory { bytes })?;
        self.clients.push(client);
        Ok(self.clients.len() - 1)
    }

    /// Returns the vCPU of a queue; `None` if there is no queue of that number.
    pub fn vcpu_of(&self, number: usize) -> Option<usize> {
        self.clients.get(number).map(RingClient::vcpu)
    }

    /// Moves the queue `number` of another link here. Neither link has a ring in use; this one has the number `ring`.
    pub fn take_over(
        &mut self,
        ring: usize,
        other: &mut Link<H>,
        number: usize,
    ) -> Result<(), NotShared> {
        let bytes = size_of::<RingClient<H>>();
        let reserved = self.clients.try_reserve(1);
        reserved.map_err(|_| NotShared::NoMemory { bytes })?;
        let client = other.clients.swap_remove(number);
        if let Some(last) = other.clients.get(number) {
            let (its_ring, _) = last.location().get();
            last.location().set(its_ring, number);
        }
        client.location().set(ring, self.clients.len());
        self.clients.push(client);
        Ok(())
    }

    /// Returns a queue.
    pub fn client(&mut self, number: usize) -> &mut RingClient<H> {
        &mut self.clients[number]
    }

    /// Cancels the requests of a queue with that tag, or all of its requests, of which nothing was sent to the
    /// connected backend.
    pub fn cancel(&mut self, number: usize, tag: Option<Tag>) {
        self.clients[number].cancel(tag);
    }

    /// Closes a queue. Its memory is used again when the backend has answered all of its requests.
    pub fn close(&mut self, number: usize) {
        self.clients[number].close(self.wire.is_some());
    }

    /// Returns ready if no backend has a request or the memory of a queue that was closed: then none writes to the disk
    /// for that queue any more, and the next queue can have its memory. A backend that is gone may still execute
    /// requests for as long as it has the memory mapped. If the disk was given up, the backend is not waited for: it
    /// may never unmap the memory, and no other guest gets the disk.
    pub fn poll_close(&mut self, number: usize, context: &Context<'_>) -> Poll<()> {
        let client = &mut self.clients[number];
        if self.dead {
            return Poll::Ready(());
        }
        if self.held {
            client.wake_with(context.waker());
            return Poll::Pending;
        }
        client.poll_close(context)
    }

    /// Takes a request of a queue, and sends it if the ring has room.
    #[inline]
    pub fn submit(&mut self, number: usize, tag: Tag, op: Op, page: u16, len: u32) -> Submitted {
        if self.dead {
            return Submitted::Done(Err(IoError::Medium));
        }
        let client = &mut self.clients[number];
        let Some(entry) = client.begin(tag, op, page, len) else {
            return Submitted::Busy;
        };
        let asked = match &mut self.wire {
            Some(wire) if client.none_waiting() && !self.closing => {
                let (memory, request) = client.parts(entry);
                wire.ask((number as u16, memory), entry, request)
            }
            _ => false,
        };
        if !asked {
            client.wait(entry);
        }
        Submitted::Pending
    }

    /// Publishes the requests that were put into the ring, and notifies the backend if it asked for that.
    #[inline]
    pub fn publish(&mut self) {
        if let Some(wire) = &mut self.wire {
            wire.publish();
        }
    }

    /// Takes the backend's responses, and sends the requests that have waited for room on the ring. Wakes the
    /// queues that have completions. If the response of which the backend was last asked to notify us is among these, it
    /// notifies us of none until [`final_check`](Self::final_check) asks again.
    #[inline]
    pub fn collect(&mut self) -> Result<(), BlkifViolation> {
        // A ring on which the backend has lied is not looked at again.
        let Some(wire) = self.wire.as_mut().filter(|_| !self.dead) else {
            return Ok(());
        };
        let mut any = false;
        while let Some((client, entry, outcome)) = wire.take()? {
            any = true;
            match client {
                OWN => self.flushed = Some(outcome),
                client => self.clients[usize::from(client)].answered(entry, outcome),
            }
        }
        if any {
            self.ask_waiting();
        }
        Ok(())
    }

    /// Asks the backend to notify us of its next response. Returns true if there is one already.
    #[inline]
    pub fn final_check(&mut self) -> Result<bool, BlkifViolation> {
        match &mut self.wire {
            Some(wire) if !self.dead => wire.final_check(),
            _ => Ok(false),
        }
    }

    /// Sends the requests that wait, as far as the ring has room. The queues take turns.
    fn ask_waiting(&mut self) {
        let Some(wire) = self.wire.as_mut().filter(|_| !self.closing) else {
            return;
        };
        let count = self.clients.len();
        for step in 0..count {
            let number = (self.turn + step) % count;
            let client = &mut self.clients[number];
            while let Some(entry) = client.next_waiting() {
                let (memory, request) = client.parts(entry);
                if !wire.ask((number as u16, memory), entry, request) {
                    client.wait_first(entry);
                    self.turn = number + 1;
                    wire.publish();
                    return;
                }
            }
        }
        wire.publish();
    }

    /// Grants the memory of all queues to a backend.
    pub fn grant(&mut self, hypervisor: &H, backend: DomId) -> Result<(), NotShared> {
        self.backend = Some((hypervisor.clone(), backend));
        for client in &mut self.clients {
            client.memory().grant(hypervisor, backend)?;
        }
        Ok(())
    }

    /// Ends the grants of the queues' memory. Returns false if the backend still has some of it mapped.
    pub fn revoke(&mut self) -> bool {
        let mut all = true;
        for client in &mut self.clients {
            all &= client.memory().revoke();
        }
        self.held = !all;
        if all {
            self.clients.iter_mut().for_each(RingClient::wake);
        }
        all
    }

    /// Leaves the memory of all queues, which are no longer needed, to the backend that has it.
    pub fn abandon(&mut self) {
        for client in self.clients.drain(..) {
            client.into_memory().abandon();
        }
    }

    /// Uses a ring that the backend has connected to: sends again the requests that an earlier one has not answered.
    pub fn connect(&mut self, wire: Wire<H>) {
        self.wire = Some(wire);
        self.ask_waiting();
    }

    /// Keeps requests waiting from now on instead of sending them, because the backend closes.
    pub fn stop_sending(&mut self) {
        self.closing = true;
    }

    /// Returns whether the backend has answered everything.
    pub fn is_idle(&self) -> bool {
        self.wire.as_ref().is_none_or(Wire::is_idle)
    }

    /// Sends a flush of this end's own. Returns false if there is no ring, or no room on it.
    pub fn ask_flush(&mut self) -> bool {
        self.flushed = None;
        let Some(wire) = &mut self.wire else {
            return false;
        };
        let asked = wire.ask_flush();
        wire.publish();
        asked
    }

    /// Returns the result of the flush of this end's own, if the backend has answered it.
    pub fn flushed(&self) -> Option<Result<(), IoError>> {
        self.flushed
    }

    /// Returns all queues.
    pub fn clients(&mut self) -> &mut [RingClient<H>] {
        &mut self.clients
    }

    /// Gives up the ring. Requests that were not answered wait for the next one.
    pub fn disconnect(&mut self) -> Option<Wire<H>> {
        self.closing = false;
        // Queues that are opened from now on are not for this backend.
        self.held |= self.backend.take().is_some();
        let wire = self.wire.take()?;
        self.earlier += RingCounts {
            outstanding: 0,
            ..wire.counts()
        };
        self.clients.iter_mut().for_each(RingClient::disconnected);
        Some(wire)
    }

    /// Returns counts of the requests of all its queues so far.
    pub fn counts(&self) -> RingCounts {
        let mut all = self.earlier;
        all += self.wire.as_ref().map(Wire::counts).unwrap_or_default();
        all.waiting += self.clients.iter().map(RingClient::waiting).sum::<u64>();
        all
    }

    /// Fails everything, now and later.
    pub fn fail(&mut self) {
        self.dead = true;
        for client in &mut self.clients {
            client.fail();
            client.wake();
        }
    }
}
