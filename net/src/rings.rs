//! The rings to a backend, two for each queue, with the pages in which packets lie.
//!
//! Each page is granted once for a connection, and belongs to a slot: a received packet arrives in the page of the
//! request whose place its response takes (io/netif.h, "Guest receive"), and a page that is sent has the number of its
//! request. The backend cannot change a packet while it is read: the grants of the pages in which it arrived are
//! suspended before that, or it is copied. Packets to be sent are made in their pages, which the backend can only read.

use crate::backend_nodes::QUEUES;
use crate::receiver::{RX_PAGES, Receiver};
use crate::receivers::Receivers;
use crate::sender::{Sender, TX_PAGES};
use crate::violation::NetifViolation;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use bulkhead_executor::{EventChannel, Handle};
use bulkhead_grant::{GrantTable, NotShared, PagePool, SharedMemory};
use bulkhead_ring::{FrontRing, SharedPages};
use bulkhead_xen::{DomId, Errno, Hypervisor, PAGE_SIZE};
use core::fmt;
use core::task::Context;

/// The rings of a connection.
pub struct Rings<H: Hypervisor> {
    hypervisor: H,
    /// The event channel of each queue.
    events: Vec<EventChannel<H>>,
    pub tx: Sender<H>,
    pub rx: Receivers<H>,
}

/// The pages that a backend is granted.
pub struct GrantedMemory<H: Hypervisor> {
    rings: Vec<SharedMemory<H>>,
    /// Those in which packets lie.
    pages: Vec<SharedMemory<H>>,
}

impl<H: Hypervisor> GrantedMemory<H> {
    /// Ends the grants. Returns false if the backend still uses some pages: the caller calls it again.
    ///
    /// A backend that has a ring mapped may still take numbers of grants from it, and use what they stand for by then. So
    /// those of packets end when it has none any more.
    pub fn revoke(&mut self) -> bool {
        self.rings.retain_mut(|ring| !ring.revoke());
        if self.rings.is_empty() {
            self.pages.retain_mut(|pages| !pages.revoke());
        }
        self.rings.is_empty() && self.pages.is_empty()
    }
}

/// Makes a ring in memory that is kept as long as the ring, and used through it alone.
pub fn ring<F: bulkhead_ring::Format, H: Hypervisor>(
    memory: &SharedMemory<H>,
    format: F,
) -> Result<FrontRing<SharedPages, F>, NotShared> {
    let no_memory = NotShared::NoMemory { bytes: PAGE_SIZE };
    // SAFETY: the memory is kept for as long as the ring, and used through it alone.
    let shared = unsafe { SharedPages::new(memory.base(), memory.pages()) };
    FrontRing::new(shared.map_err(|_| no_memory)?, format).map_err(|_| no_memory)
}

impl<H: Hypervisor> Rings<H> {
    /// Returns rings without a queue. The pages of packets to be sent are granted to the backend.
    pub fn new(
        handle: &Handle<H>,
        (pool, table): (&PagePool, &GrantTable<H>),
        backend: DomId,
    ) -> Result<Self, NotShared> {
        let hypervisor = handle.hypervisor().clone();
        let mut sent = SharedMemory::new(pool, table, TX_PAGES)?;
        sent.grant_for_reading(&hypervisor, backend)?;
        Ok(Rings {
            tx: Sender::new(sent),
            rx: Receivers::new(),
            hypervisor,
            events: Vec::new(),
        })
    }

    /// Adds a queue: two empty rings, pages for the packets that it receives, all granted to the backend, and an event
    /// channel.
    pub fn add_queue(
        &mut self,
        handle: &Handle<H>,
        (pool, table): (&PagePool, &GrantTable<H>),
        backend: DomId,
    ) -> Result<(), NoQueue> {
        let granted = |pages| -> Result<_, NotShared> {
            let mut memory = SharedMemory::new(pool, table, pages)?;
            memory.grant(&self.hypervisor, backend)?;
            Ok(memory)
        };
        let (tx_ring, rx_ring) = (granted(1)?, granted(1)?);
        let received = Receiver::new(rx_ring, granted(RX_PAGES)?)?;
        let port = self.hypervisor.alloc_unbound(backend);
        let events = handle.event_channel(port.map_err(NoQueue::NoEvents)?);
        self.tx.add(tx_ring)?;
        self.rx.add(received);
        self.events.push(events);
        self.publish();
        Ok(())
    }

    /// Returns the number of queues.
    pub fn queues(&self) -> usize {
        self.events.len()
    }

    /// Returns the nodes that tell the backend of the rings.
    pub fn nodes(&self) -> Vec<(String, String)> {
        let count = self.queues();
        // Also if it is one: the node may be there from a backend that took more.
        let mut nodes = Vec::from([(QUEUES.to_string(), count.to_string())]);
        for (number, events) in self.events.iter().enumerate() {
            let name = |name: &str| match count {
                1 => name.to_string(),
                _ => format!("queue-{number}/{name}"),
            };
            let received = self.rx.queue(number).and_then(Receiver::gref);
            let [tx, rx] = [self.tx.gref(number), received].map(Option::unwrap_or_default);
            nodes.extend([
                (name("tx-ring-ref"), tx.to_string()),
                (name("rx-ring-ref"), rx.to_string()),
                (name("event-channel"), events.port().to_string()),
            ]);
        }
        nodes
    }

    /// Returns the numbers of packets that each queue has received, and that it has sent.
    pub fn packets(&self) -> impl Iterator<Item = (u64, u64)> {
        let queues = 0..self.queues();
        queues.map(|queue| {
            let received = self.rx.queue(queue).map_or(0, |queue| queue.received);
            (received, self.tx.sent(queue))
        })
    }

    /// Returns whether the backend has notified this end on any event channel. Otherwise the next notification wakes
    /// the task.
    pub fn poll_notified(&self, context: &mut Context<'_>) -> bool {
        let mut any = false;
        for events in &self.events {
            any |= events.poll_notified(context).is_ready();
        }
        any
    }

    /// Ends the rings, and returns their memory.
    pub fn into_memory(self) -> GrantedMemory<H> {
        let (mut rings, sent) = self.tx.into_memory();
        let mut pages = Vec::from([sent]);
        for [ring, received] in self.rx.into_memory() {
            rings.push(ring);
            pages.push(received);
        }
        GrantedMemory { rings, pages }
    }

    /// Returns the number of packets that the backend did not take, or could not deliver.
    pub fn refused(&self) -> u64 {
        self.tx.refused() + self.rx.refused()
    }

    /// Publishes the messages in the rings, and notifies the backend of those of a queue if it asked for that.
    pub fn publish(&mut self) {
        for (queue, events) in self.events.iter().enumerate() {
            let (tx, rx) = (self.tx.publish(queue), self.rx.publish(queue));
            if (tx || rx) && self.hypervisor.notify(events.port()).is_err() {
                // Its domain is gone; xenstore tells soon.
                log::debug!("event channel {}: not notified", events.port());
            }
        }
    }

    /// Asks the backend to notify this end of the messages that it waits for. Returns true if one is there already.
    ///
    /// Without room for packets to send, packets that have arrived stay where they are, and only room is waited for.
    /// With room, the return of pages is not waited for: a wake-up for them would cost about as much as the packet did.
    pub fn final_check(&mut self) -> Result<bool, NetifViolation> {
        match self.tx.has_room() {
            true => self.rx.final_check(),
            false => self.tx.final_check(),
        }
    }
}

/// The reason why there cannot be a further queue.
#[derive(Clone, Copy, Debug)]
pub enum NoQueue {
    /// There is no memory for it, or there are no grants.
    NotShared(NotShared),
    /// Xen gives no event channel.
    NoEvents(Errno),
}

impl From<NotShared> for NoQueue {
    fn from(error: NotShared) -> NoQueue {
        NoQueue::NotShared(error)
    }
}

impl fmt::Display for NoQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotShared(error) => error.fmt(f),
            Self::NoEvents(error) => write!(f, "no event channel: {error}"),
        }
    }
}

impl core::error::Error for NoQueue {}
