//! The two rings to a backend, with the pages that packets are copied through.
//!
//! Each page is granted once for a connection, and belongs to a slot: what is received arrives in the page of the
//! request that its response stands in the place of (io/netif.h, "Guest receive"), and a page that is sent has the
//! number of its request. Packets are copied out before they are looked at, so the backend cannot change them then.

use crate::lie::Lie;
use crate::packet::{Packet, Segmentation};
use alloc::vec::Vec;
use bulkhead_executor::{EventChannel, Handle};
use bulkhead_grant::memory::filled;
use bulkhead_grant::{GrantTable, NotShared, PagePool, SharedMemory};
use bulkhead_ring::netif::{
    Extra, NULL, NetifRx, NetifTx, PacketFlags, RxPart, RxRequest, RxResponse, TxPart,
};
use bulkhead_ring::{FrontRing, SharedPages};
use bulkhead_xen::{DomId, Hypervisor, PAGE_SIZE};

/// Pages that packets are received in, one for each slot of a ring of one page.
const RX_PAGES: usize = 256;
/// Pages that packets are sent from.
const TX_PAGES: usize = 128;

/// The most bytes of a packet that is sent: its size is 16 bits wide.
pub const LARGEST_SENT: usize = 65535;
/// The most bytes of a packet that is received. A backend's own limit is 64 KiB, with or without headers.
pub const LARGEST_RECEIVED: usize = 17 * PAGE_SIZE;
/// The most slots of one packet: the pages, and one of details.
pub const MOST_SLOTS: usize = LARGEST_SENT.div_ceil(PAGE_SIZE) + 1;

/// The rings of a connection.
pub struct Rings<H: Hypervisor> {
    hypervisor: H,
    events: EventChannel<H>,
    // Dropped before the memory that they are in.
    tx: FrontRing<SharedPages, NetifTx>,
    rx: FrontRing<SharedPages, NetifRx>,
    memory: Memory<H>,
    /// The pages of `memory.sent` that the backend does not have.
    free: Vec<u16>,
    /// Whether the backend has a page.
    sent: Vec<bool>,
    /// Slots with details that were sent, and not answered.
    extras: u32,
    /// The slot that the next response stands in.
    next: u16,
    incoming: Incoming,
    /// Something was put into a ring.
    unpublished: bool,
    /// The backend reported that it did not take a packet.
    pub refused: u64,
}

/// A packet of which some parts have arrived.
#[derive(Default)]
struct Incoming {
    len: usize,
    flags: PacketFlags,
    any: bool,
    /// The next slot has details.
    extra: bool,
    /// The backend says that it failed.
    failed: bool,
}

/// The pages that a backend is granted.
pub struct Memory<H: Hypervisor> {
    tx_ring: SharedMemory<H>,
    rx_ring: SharedMemory<H>,
    sent: SharedMemory<H>,
    received: SharedMemory<H>,
}

impl<H: Hypervisor> Memory<H> {
    fn new(pool: &PagePool, table: &GrantTable<H>) -> Result<Self, NotShared> {
        Ok(Memory {
            tx_ring: SharedMemory::new(pool, table, 1)?,
            rx_ring: SharedMemory::new(pool, table, 1)?,
            sent: SharedMemory::new(pool, table, TX_PAGES)?,
            received: SharedMemory::new(pool, table, RX_PAGES)?,
        })
    }

    fn each(&mut self) -> [&mut SharedMemory<H>; 4] {
        [
            &mut self.tx_ring,
            &mut self.rx_ring,
            &mut self.sent,
            &mut self.received,
        ]
    }

    /// Ends the grants. Returns false if the backend still uses some pages: the caller calls it again.
    pub fn revoke(&mut self) -> bool {
        let mut all = true;
        for memory in self.each() {
            all &= memory.revoke();
        }
        all
    }
}

fn ring<F: bulkhead_ring::Format, H: Hypervisor>(
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
        let mut memory = Memory::new(pool, table)?;
        for pages in memory.each() {
            pages.grant(&hypervisor, backend)?;
        }
        let no_memory = |_| NotShared::NoMemory { bytes: PAGE_SIZE };
        let mut rings = Rings {
            tx: ring(&memory.tx_ring, NetifTx)?,
            rx: ring(&memory.rx_ring, NetifRx)?,
            free: filled(TX_PAGES, |page| (TX_PAGES - 1 - page) as u16).map_err(no_memory)?,
            sent: filled(TX_PAGES, |_| false).map_err(no_memory)?,
            hypervisor,
            events,
            memory,
            extras: 0,
            next: 0,
            incoming: Incoming::default(),
            unpublished: true,
            refused: 0,
        };
        for slot in 0..RX_PAGES as u16 {
            rings.offer(slot);
        }
        rings.publish();
        Ok(rings)
    }

    /// Returns the event channel.
    pub fn events(&self) -> &EventChannel<H> {
        &self.events
    }

    /// Returns the grants of the rings: of the one to send with, and of the one to receive with.
    pub fn grefs(&self) -> [Option<bulkhead_xen::GrantRef>; 2] {
        [self.memory.tx_ring.gref(0), self.memory.rx_ring.gref(0)]
    }

    /// Ends the rings, and returns their memory.
    pub fn into_memory(self) -> Memory<H> {
        self.memory
    }

    /// Gives the backend the page of a slot, to put a packet into.
    fn offer(&mut self, slot: u16) {
        let Some(gref) = self.memory.received.gref(slot.into()) else {
            return;
        };
        // There are as many pages as slots, and this one has just been taken.
        let _ = self.rx.push(&RxRequest { id: slot, gref });
        self.unpublished = true;
    }

    /// Copies the next packet that has arrived into `frame`; `None` if none is complete. `frame` has
    /// [`LARGEST_RECEIVED`] bytes, and is the same one each time: it holds the parts that have arrived.
    pub fn receive(&mut self, frame: &mut [u8]) -> Result<Option<Packet>, Lie> {
        while let Some(response) = self.rx.take()? {
            let slot = self.next;
            self.next = (slot + 1) % RX_PAGES as u16;
            let complete = self.take(response, slot, frame)?;
            self.offer(slot);
            if !complete {
                continue;
            }
            let packet = core::mem::take(&mut self.incoming);
            if !packet.failed {
                return Ok(Some(Packet {
                    len: packet.len,
                    flags: packet.flags,
                }));
            }
            self.refused += 1;
        }
        Ok(None)
    }

    /// Takes a response. Returns whether the packet is complete with it.
    fn take(&mut self, response: RxResponse, slot: u16, frame: &mut [u8]) -> Result<bool, Lie> {
        let incoming = &mut self.incoming;
        if incoming.extra {
            let extra = response.extra();
            incoming.extra = extra.more;
            // It is whole as it is, however the backend came by it.
            return Ok(!extra.more && !incoming.flags.contains(PacketFlags::MORE_DATA));
        }
        let RxPart {
            id,
            offset,
            flags,
            status,
        } = response.part();
        if id != slot {
            return Err(Lie::Unasked(id));
        }
        match usize::try_from(status) {
            Ok(len) => {
                let start = usize::from(offset);
                if start + len > PAGE_SIZE {
                    return Err(Lie::OutsidePage { offset, len });
                }
                let room = frame.get_mut(incoming.len..incoming.len + len);
                let room = room.ok_or(Lie::TooLong)?;
                let page = usize::from(slot) * PAGE_SIZE;
                self.memory.received.copy_out(page + start, room);
                incoming.len += len;
            }
            Err(_) => incoming.failed = true,
        }
        match incoming.any {
            // Only the first part has details, and tells of the checksum.
            true => incoming.flags.set(
                PacketFlags::MORE_DATA,
                flags.contains(PacketFlags::MORE_DATA),
            ),
            false => {
                incoming.flags = flags;
                incoming.extra = flags.contains(PacketFlags::EXTRA_INFO);
            }
        }
        incoming.any = true;
        Ok(!incoming.extra && !flags.contains(PacketFlags::MORE_DATA))
    }

    /// Returns whether the largest packet can be sent now.
    pub fn has_room(&self) -> bool {
        self.free.len() >= MOST_SLOTS && self.tx.free() as usize >= MOST_SLOTS
    }

    /// Sends a packet of at most [`LARGEST_SENT`] bytes. Returns false if there is no room.
    pub fn send(&mut self, frame: &[u8], blank: bool, segmentation: Option<Segmentation>) -> bool {
        if !self.has_room() || frame.is_empty() || frame.len() > LARGEST_SENT {
            return false;
        }
        let count = frame.len().div_ceil(PAGE_SIZE);
        for (number, part) in frame.chunks(PAGE_SIZE).enumerate() {
            let Some(page) = self.free.pop() else {
                return false;
            };
            let place = usize::from(page);
            self.sent[place] = true;
            self.memory.sent.copy_in(place * PAGE_SIZE, part);
            let first = number == 0;
            let mut flags = PacketFlags::empty();
            flags.set(PacketFlags::MORE_DATA, number + 1 < count);
            if first && blank {
                flags |= PacketFlags::CHECKSUM_BLANK | PacketFlags::CHECKSUM_VALID;
            }
            flags.set(PacketFlags::EXTRA_INFO, first && segmentation.is_some());
            let part = TxPart {
                gref: self.memory.sent.gref(place).unwrap_or_default(),
                offset: 0,
                flags,
                id: page,
                size: if first { frame.len() } else { part.len() } as u16,
            };
            // There is room, as just checked.
            let _ = self.tx.push(&part.into());
            if let (true, Some(segmentation)) = (first, segmentation) {
                let extra = Extra {
                    kind: Extra::GSO,
                    more: false,
                    segment: segmentation.segment,
                    protocol: segmentation.protocol,
                };
                let _ = self.tx.push(&extra.into());
                self.extras += 1;
            }
        }
        self.unpublished = true;
        true
    }

    /// Takes the backend's answers to what was sent. Returns whether there were any.
    pub fn collect(&mut self) -> Result<bool, Lie> {
        let mut any = false;
        while let Some(response) = self.tx.take()? {
            any = true;
            if response.status == NULL {
                self.extras = self.extras.checked_sub(1).ok_or(Lie::NoDetails)?;
                continue;
            }
            let id = response.id;
            let sent = self.sent.get_mut(usize::from(id));
            let sent = sent.filter(|sent| **sent).ok_or(Lie::Unasked(id))?;
            *sent = false;
            self.free.push(id);
            self.refused += u64::from(response.status < 0);
        }
        Ok(any)
    }

    /// Shows the backend what was put into the rings, and notifies it if it asked for that.
    pub fn publish(&mut self) {
        if !core::mem::take(&mut self.unpublished) {
            return;
        }
        let (tx, rx) = (self.tx.publish(), self.rx.publish());
        if (tx || rx) && self.hypervisor.notify(self.events.port()).is_err() {
            // Its domain is gone; xenstore tells soon.
            log::debug!("event channel {}: not notified", self.events.port());
        }
    }

    /// Asks the backend to notify of the next answer, and of the next packet if it `receives` any. Returns true if there is
    /// one already.
    pub fn final_check(&mut self, receives: bool) -> Result<bool, Lie> {
        Ok(self.tx.final_check()? | (receives && self.rx.final_check()?))
    }
}
