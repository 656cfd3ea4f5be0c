//! The two rings to a backend, with the pages in which packets lie.
//!
//! Each page is granted once for a connection, and belongs to a slot: a received packet arrives in the page of the
//! request whose place its response takes (io/netif.h, "Guest receive"), and a page that is sent has the number of its
//! request. The backend cannot change a packet while it is read: the grants of the pages in which it arrived are
//! suspended before that, or it is copied. Packets to be sent are made in their pages, which the backend can only read.

use crate::lie::Lie;
use crate::receiver::{RX_PAGES, Receiver};
use crate::sender::{Sender, TX_PAGES};
use bulkhead_executor::{EventChannel, Handle};
use bulkhead_grant::{GrantTable, NotShared, PagePool, SharedMemory};
use bulkhead_ring::{FrontRing, SharedPages};
use bulkhead_xen::{DomId, GrantRef, Hypervisor, PAGE_SIZE};

/// The rings of a connection.
pub struct Rings<H: Hypervisor> {
    hypervisor: H,
    events: EventChannel<H>,
    pub tx: Sender<H>,
    pub rx: Receiver<H>,
}

/// The pages that a backend is granted.
pub struct Memory<H: Hypervisor>([SharedMemory<H>; 4]);

impl<H: Hypervisor> Memory<H> {
    /// Ends the grants. Returns false if the backend still uses some pages: the caller calls it again.
    pub fn revoke(&mut self) -> bool {
        let mut all = true;
        for memory in &mut self.0 {
            all &= memory.revoke();
        }
        all
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
    /// Makes empty rings, and grants everything to the backend. `events` notifies the backend, and is notified by it.
    pub fn new(
        handle: &Handle<H>,
        (pool, table): (&PagePool, &GrantTable<H>),
        backend: DomId,
        events: EventChannel<H>,
    ) -> Result<Self, NotShared> {
        let hypervisor = handle.hypervisor().clone();
        let granted = |pages| {
            let mut memory = SharedMemory::new(pool, table, pages)?;
            memory.grant(&hypervisor, backend)?;
            Ok(memory)
        };
        let mut sent = SharedMemory::new(pool, table, TX_PAGES)?;
        sent.grant_for_reading(&hypervisor, backend)?;
        let mut rings = Rings {
            tx: Sender::new(granted(1)?, sent)?,
            rx: Receiver::new(granted(1)?, granted(RX_PAGES)?)?,
            hypervisor,
            events,
        };
        rings.publish();
        Ok(rings)
    }

    /// Returns the event channel.
    pub fn events(&self) -> &EventChannel<H> {
        &self.events
    }

    /// Returns the grants of the rings: of the ring for sending, and of the ring for receiving.
    pub fn grefs(&self) -> [Option<GrantRef>; 2] {
        [self.tx.gref(), self.rx.gref()]
    }

    /// Ends the rings, and returns their memory.
    pub fn into_memory(self) -> Memory<H> {
        let ([tx_ring, sent], [rx_ring, received]) = (self.tx.into_memory(), self.rx.into_memory());
        Memory([tx_ring, rx_ring, sent, received])
    }

    /// Returns the number of packets that the backend did not take, or could not deliver.
    pub fn refused(&self) -> u64 {
        self.tx.refused + self.rx.refused
    }

    /// Publishes the messages in the rings, and notifies the backend if it asked for that.
    pub fn publish(&mut self) {
        let (tx, rx) = (self.tx.publish(), self.rx.publish());
        if (tx || rx) && self.hypervisor.notify(self.events.port()).is_err() {
            // Its domain is gone; xenstore tells soon.
            log::debug!("event channel {}: not notified", self.events.port());
        }
    }

    /// Asks the backend to notify this end of the messages that it waits for. Returns true if one is there already.
    ///
    /// Without room for packets to send, packets that have arrived stay where they are, and only room is waited for.
    /// With room, the return of pages is not waited for: a wake-up for them would cost about as much as the packet did.
    pub fn final_check(&mut self) -> Result<bool, Lie> {
        match self.tx.has_room() {
            true => self.rx.final_check(),
            false => self.tx.final_check(),
        }
    }
}
