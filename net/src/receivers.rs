//! The queues for receiving packets, of which the stack sees one stream of packets.

use crate::packet::Packet;
use crate::receiver::Receiver;
use crate::violation::NetifViolation;
use alloc::vec::Vec;
use bulkhead_grant::SharedMemory;
use bulkhead_xen::Hypervisor;

/// The rings for receiving packets, one for each queue.
pub struct Receivers<H: Hypervisor> {
    queues: Vec<Receiver<H>>,
    /// The queue from which packets are taken, and from which the last one came.
    at: usize,
}

impl<H: Hypervisor> Receivers<H> {
    /// Returns no queue.
    pub fn new() -> Self {
        Receivers {
            queues: Vec::new(),
            at: 0,
        }
    }

    /// Adds a queue.
    pub fn add(&mut self, queue: Receiver<H>) {
        self.queues.push(queue);
    }

    /// Returns a queue.
    pub fn queue(&self, queue: usize) -> Option<&Receiver<H>> {
        self.queues.get(queue)
    }

    /// Ends the rings, and returns their memory and the pages of each.
    pub fn into_memory(self) -> impl Iterator<Item = [SharedMemory<H>; 2]> {
        self.queues.into_iter().map(Receiver::into_memory)
    }

    /// Returns the number of packets that the backend reported it could not deliver.
    pub fn refused(&self) -> u64 {
        self.queues.iter().map(|queue| queue.refused).sum()
    }

    /// Goes on with the next queue: one whose packets never end does not keep the stack from those of the others.
    #[inline]
    pub fn turn(&mut self) {
        self.at += 1;
        if self.at >= self.queues.len() {
            self.at = 0;
        }
    }

    /// Takes the next packet that has arrived, from a queue until it has none, and then from the next one; `None` if
    /// none is complete. The bytes of the packet before are lost then.
    #[inline]
    pub fn receive(&mut self) -> Result<Option<Packet>, NetifViolation> {
        for _ in 0..self.queues.len() {
            if let Some(queue) = self.queues.get_mut(self.at)
                && let Some(packet) = queue.receive()?
            {
                return Ok(Some(packet));
            }
            self.turn();
        }
        Ok(None)
    }

    /// Returns the bytes of the last packet.
    #[inline]
    pub fn bytes(&mut self, packet: &Packet) -> &[u8] {
        let queue = self.queues.get_mut(self.at);
        queue.map_or(&[], |queue| queue.bytes(packet))
    }

    /// Publishes the requests in a queue's ring. Returns whether the backend wants to be notified of that.
    pub fn publish(&mut self, queue: usize) -> bool {
        self.queues.get_mut(queue).is_some_and(Receiver::publish)
    }

    /// Asks the backend to notify this end of the next packet, in whatever ring. Returns true if there is one already.
    pub fn final_check(&mut self) -> Result<bool, NetifViolation> {
        let mut any = false;
        for queue in &mut self.queues {
            any |= queue.final_check()?;
        }
        Ok(any)
    }
}
