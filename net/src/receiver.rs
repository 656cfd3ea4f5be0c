//! The ring of a queue for receiving packets, and their pages.
//!
//! A packet stays where it has arrived. Before its bytes are read, the grants of its pages are suspended: the backend
//! cannot change it then. Small packets are copied out, which costs less, and so are packets that do not lie in one
//! piece.

use crate::packet::Packet;
use crate::rings::ring;
use crate::violation::NetifViolation;
use alloc::vec::Vec;
use bulkhead_grant::memory::filled;
use bulkhead_grant::{NotShared, SharedMemory};
use bulkhead_ring::netif::{NetifRx, PacketFlags, RxPart, RxRequest, RxResponse};
use bulkhead_ring::{FrontRing, SharedPages};
use bulkhead_xen::{GrantRef, Hypervisor, PAGE_SIZE};

/// The number of pages for receiving packets, one for each slot of a ring of one page.
pub const RX_PAGES: usize = 256;

/// The most bytes of a packet that is received. A backend's own limit is 64 KiB, with or without headers.
const LARGEST_RECEIVED: usize = 17 * PAGE_SIZE;

/// The largest packet that is copied, in bytes.
const SMALL: usize = 512;

/// The ring for receiving packets, and its memory.
pub struct Receiver<H: Hypervisor> {
    // Dropped before the memory that it is in.
    ring: FrontRing<SharedPages, NetifRx>,
    ring_memory: SharedMemory<H>,
    pages: SharedMemory<H>,
    /// The slot of the next response.
    next: usize,
    incoming: Incoming,
    /// The slots of the last packet, the first one and their number: the backend gets them again when the next packet
    /// is asked for.
    lent: (usize, usize),
    /// The packet that was copied, or is being copied.
    copy: Vec<u8>,
    /// True if a request was put into the ring and not published.
    unpublished: bool,
    /// The number of packets that have arrived.
    pub received: u64,
    /// The number of packets that the backend reported it could not deliver.
    pub refused: u64,
}

/// A packet of which some parts have arrived.
#[derive(Default)]
struct Incoming {
    len: usize,
    flags: PacketFlags,
    any: bool,
    /// True if the next slot has details.
    extra: bool,
    /// True if the backend reports that it failed.
    failed: bool,
    /// True if its bytes are copied as they come, and none of its slots is kept.
    copied: bool,
    /// The first of its slots that are kept, and their number.
    first: usize,
    slots: usize,
    /// The offset of its beginning in the page of the first slot, and the number of bytes there.
    offset: usize,
    first_len: usize,
    /// The number of slots of details behind the first one.
    details: usize,
}

impl Incoming {
    /// Returns whether the next part, which is not the first one, lies behind the last one in memory; slots of details
    /// aside. An empty part does not: so each part takes a further page of the packet, whose length is limited.
    fn goes_on_at(&self, slot: usize, offset: usize, len: usize) -> bool {
        let end = match self.len > self.first_len {
            true => self.len - self.first_len,
            false => self.offset + self.first_len,
        };
        let fills_page = end > 0 && end.is_multiple_of(PAGE_SIZE);
        slot != 0 && offset == 0 && len > 0 && fills_page
    }
}

impl<H: Hypervisor> Receiver<H> {
    /// Makes an empty ring, and gives the backend all of the [`RX_PAGES`] pages. The ring and the pages are granted to
    /// it.
    pub fn new(ring_memory: SharedMemory<H>, pages: SharedMemory<H>) -> Result<Self, NotShared> {
        let no_memory = |_| NotShared::NoMemory {
            bytes: LARGEST_RECEIVED,
        };
        let mut receiver = Receiver {
            ring: ring(&ring_memory, NetifRx)?,
            ring_memory,
            pages,
            next: 0,
            incoming: Incoming::default(),
            lent: (0, 0),
            copy: filled(LARGEST_RECEIVED, |_| 0).map_err(no_memory)?,
            unpublished: true,
            received: 0,
            refused: 0,
        };
        receiver.offer(0, RX_PAGES);
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

    /// Gives the backend the pages of `count` slots, from `first` on, to put packets into.
    fn offer(&mut self, first: usize, count: usize) {
        for slot in (first..first + count).map(|slot| slot % RX_PAGES) {
            let Some(gref) = self.pages.gref(slot) else {
                return;
            };
            self.pages.give(slot);
            let id = slot as u16;
            // There are as many pages as slots, and this one has been taken.
            let _ = self.ring.push(&RxRequest { id, gref });
            self.unpublished = true;
        }
    }

    /// Gives the backend the slots of the last packet again, whose bytes are not needed any more.
    fn give_back(&mut self) {
        let (first, count) = core::mem::take(&mut self.lent);
        self.offer(first, count);
    }

    /// Takes the next packet that has arrived; `None` if none is complete. The bytes of the packet before are lost
    /// then.
    pub fn receive(&mut self) -> Result<Option<Packet>, NetifViolation> {
        self.give_back();
        while let Some(response) = self.ring.take()? {
            let slot = self.next;
            self.next = (slot + 1) % RX_PAGES;
            let complete = self.take(response, slot)?;
            match self.incoming.copied {
                true => self.offer(slot, 1),
                false => self.incoming.slots += 1,
            }
            if !complete {
                continue;
            }
            let start = match self.incoming.failed {
                true => None,
                false => self.gather(),
            };
            let packet = core::mem::take(&mut self.incoming);
            self.lent = (packet.first, packet.slots);
            if !packet.failed {
                self.received += 1;
                return Ok(Some(Packet {
                    len: packet.len,
                    flags: packet.flags,
                    start,
                }));
            }
            self.refused += 1;
            self.give_back();
        }
        Ok(None)
    }

    /// Returns the bytes of the last packet.
    #[inline]
    pub fn bytes(&mut self, packet: &Packet) -> &[u8] {
        match packet.start {
            Some(start) => self.pages.bytes(start, packet.len).unwrap_or_default(),
            None => &self.copy[..packet.len],
        }
    }

    /// Takes a response. Returns whether the packet is complete with it.
    fn take(&mut self, response: RxResponse, slot: usize) -> Result<bool, NetifViolation> {
        let incoming = &mut self.incoming;
        if incoming.extra {
            let extra = response.extra();
            incoming.extra = extra.more;
            incoming.details += 1;
            // It is whole as it is, however the backend came by it.
            let complete = !extra.more && !incoming.flags.contains(PacketFlags::MORE_DATA);
            if slot == 0 || incoming.details > 1 {
                self.copy_out();
            }
            return Ok(complete);
        }
        let RxPart {
            id,
            offset,
            flags,
            status,
        } = response.part();
        if usize::from(id) != slot {
            return Err(NetifViolation::Unasked(id));
        }
        let start = usize::from(offset);
        let len = match usize::try_from(status) {
            Ok(len) => len,
            Err(_) => {
                incoming.failed = true;
                0
            }
        };
        if start + len > PAGE_SIZE {
            return Err(NetifViolation::OutsidePage { offset, len });
        }
        if incoming.len + len > LARGEST_RECEIVED {
            return Err(NetifViolation::TooLong);
        }
        match incoming.any {
            true => {
                // Only the first part has details, and tells of the checksum.
                let more = flags.contains(PacketFlags::MORE_DATA);
                incoming.flags.set(PacketFlags::MORE_DATA, more);
                if !incoming.goes_on_at(slot, start, len) {
                    self.copy_out();
                }
            }
            false => {
                *incoming = Incoming {
                    flags,
                    any: true,
                    extra: flags.contains(PacketFlags::EXTRA_INFO),
                    failed: incoming.failed,
                    first: slot,
                    offset: start,
                    first_len: len,
                    ..Incoming::default()
                };
            }
        }
        let incoming = &mut self.incoming;
        if incoming.copied {
            let room = &mut self.copy[incoming.len..incoming.len + len];
            self.pages.copy_out(slot * PAGE_SIZE + start, room);
        }
        incoming.len += len;
        Ok(!incoming.extra && !flags.contains(PacketFlags::MORE_DATA))
    }

    /// Copies the part of a packet that has arrived, and gives its slots back: its bytes are copied from now on.
    fn copy_out(&mut self) {
        let incoming = &mut self.incoming;
        if core::mem::replace(&mut incoming.copied, true) {
            return;
        }
        let start = incoming.first * PAGE_SIZE + incoming.offset;
        let (first, rest) = self.copy[..incoming.len].split_at_mut(incoming.first_len);
        self.pages.copy_out(start, first);
        if !rest.is_empty() {
            let page = incoming.first + 1 + incoming.details;
            self.pages.copy_out(page * PAGE_SIZE, rest);
        }
        let (first, slots) = (incoming.first, core::mem::take(&mut incoming.slots));
        self.offer(first, slots);
    }

    /// Joins the parts of a complete packet in one place, which only this domain can change. Returns the offset of its
    /// beginning in the pages; `None` if it was copied.
    fn gather(&mut self) -> Option<usize> {
        let incoming = &self.incoming;
        let (first, slots) = (incoming.first, incoming.slots);
        let withdrawn = !incoming.copied
            && incoming.len > SMALL
            && (first..first + slots).all(|slot| self.pages.withdraw(slot));
        let start = match withdrawn {
            true => self.close_gap(),
            false => None,
        };
        if start.is_none() {
            self.copy_out();
        }
        start
    }

    /// Closes the gap that the details leave in a packet in its pages, by moving the smaller part: the one before it or
    /// the one behind it.
    fn close_gap(&mut self) -> Option<usize> {
        let incoming = &self.incoming;
        let (first, gap) = (incoming.first * PAGE_SIZE, incoming.details * PAGE_SIZE);
        let bytes = self.pages.bytes(first, incoming.slots * PAGE_SIZE)?;
        let (offset, rest) = (incoming.offset, incoming.len - incoming.first_len);
        if rest == 0 || gap == 0 {
            return Some(first + offset);
        }
        if rest <= incoming.first_len {
            bytes.copy_within(PAGE_SIZE + gap..PAGE_SIZE + gap + rest, PAGE_SIZE);
            return Some(first + offset);
        }
        bytes.copy_within(offset..offset + incoming.first_len, offset + gap);
        Some(first + offset + gap)
    }

    /// Publishes the requests in the ring. Returns whether the backend wants to be notified of that.
    pub fn publish(&mut self) -> bool {
        self.give_back();
        core::mem::take(&mut self.unpublished) && self.ring.publish()
    }

    /// Asks the backend to notify this end of the next packet. Returns true if there is one already.
    pub fn final_check(&mut self) -> Result<bool, NetifViolation> {
        Ok(self.ring.final_check()?)
    }
}
