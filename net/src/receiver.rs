//! The ring that packets are received with, and their pages.

use crate::lie::Lie;
use crate::packet::Packet;
use crate::rings::ring;
use bulkhead_grant::{NotShared, SharedMemory};
use bulkhead_ring::netif::{NetifRx, PacketFlags, RxPart, RxRequest, RxResponse};
use bulkhead_ring::{FrontRing, SharedPages};
use bulkhead_xen::{GrantRef, Hypervisor, PAGE_SIZE};

/// Pages that packets are received in, one for each slot of a ring of one page.
pub const RX_PAGES: usize = 256;

/// The most bytes of a packet that is received. A backend's own limit is 64 KiB, with or without headers.
pub const LARGEST_RECEIVED: usize = 17 * PAGE_SIZE;

/// What packets are received with.
pub struct Receiver<H: Hypervisor> {
    // Dropped before the memory that it is in.
    ring: FrontRing<SharedPages, NetifRx>,
    ring_memory: SharedMemory<H>,
    pages: SharedMemory<H>,
    /// The slot that the next response stands in.
    next: u16,
    incoming: Incoming,
    /// Something was put into the ring.
    unpublished: bool,
    /// Packets that the backend reported it could not deliver.
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

impl<H: Hypervisor> Receiver<H> {
    /// Makes an empty ring, and gives the backend all pages. Both are granted to it.
    pub fn new(ring_memory: SharedMemory<H>, pages: SharedMemory<H>) -> Result<Self, NotShared> {
        let mut receiver = Receiver {
            ring: ring(&ring_memory, NetifRx)?,
            ring_memory,
            pages,
            next: 0,
            incoming: Incoming::default(),
            unpublished: true,
            refused: 0,
        };
        for slot in 0..RX_PAGES as u16 {
            receiver.offer(slot);
        }
        Ok(receiver)
    }

    /// Returns the ring's grant.
    pub fn gref(&self) -> Option<GrantRef> {
        self.ring_memory.gref(0)
    }

    /// Ends the ring, and returns its memory and the pages.
    pub fn into_memory(self) -> [SharedMemory<H>; 2] {
        [self.ring_memory, self.pages]
    }

    /// Gives the backend the page of a slot, to put a packet into.
    fn offer(&mut self, slot: u16) {
        let Some(gref) = self.pages.gref(slot.into()) else {
            return;
        };
        // There are as many pages as slots, and this one has just been taken.
        let _ = self.ring.push(&RxRequest { id: slot, gref });
        self.unpublished = true;
    }

    /// Copies the next packet that has arrived into `frame`; `None` if none is complete. `frame` has
    /// [`LARGEST_RECEIVED`] bytes, and is the same one each time: it holds the parts that have arrived.
    pub fn receive(&mut self, frame: &mut [u8]) -> Result<Option<Packet>, Lie> {
        while let Some(response) = self.ring.take()? {
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
                self.pages.copy_out(page + start, room);
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

    /// Shows the backend what was put into the ring. Returns whether it wants to be notified of that.
    pub fn publish(&mut self) -> bool {
        core::mem::take(&mut self.unpublished) && self.ring.publish()
    }

    /// Asks the backend to notify of the next packet. Returns true if there is one already.
    pub fn final_check(&mut self) -> Result<bool, Lie> {
        Ok(self.ring.final_check()?)
    }
}
