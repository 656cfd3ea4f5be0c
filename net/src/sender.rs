//! The ring that packets are sent with, and their pages.

use crate::lie::Lie;
use crate::packet::Segmentation;
use crate::rings::ring;
use alloc::vec::Vec;
use bulkhead_grant::memory::filled;
use bulkhead_grant::{NotShared, SharedMemory};
use bulkhead_ring::netif::{Extra, NULL, NetifTx, PacketFlags, TxPart};
use bulkhead_ring::{FrontRing, SharedPages};
use bulkhead_xen::{GrantRef, Hypervisor, PAGE_SIZE};

/// Pages that packets are sent from.
pub const TX_PAGES: usize = 128;

/// The most bytes of a packet that is sent: its size is 16 bits wide.
pub const LARGEST_SENT: usize = 65535;
/// The most slots of one packet: the pages, and one of details.
const MOST_SLOTS: usize = LARGEST_SENT.div_ceil(PAGE_SIZE) + 1;

/// What packets are sent with.
pub struct Sender<H: Hypervisor> {
    // Dropped before the memory that it is in.
    ring: FrontRing<SharedPages, NetifTx>,
    ring_memory: SharedMemory<H>,
    pages: SharedMemory<H>,
    /// The pages that the backend does not have.
    free: Vec<u16>,
    /// Whether the backend has a page.
    sent: Vec<bool>,
    /// Slots with details that were sent, and not answered.
    extras: u32,
    /// Something was put into the ring.
    unpublished: bool,
    /// Packets that the backend reported it did not take.
    pub refused: u64,
}

impl<H: Hypervisor> Sender<H> {
    /// Makes an empty ring. It and the pages are granted to the backend.
    pub fn new(ring_memory: SharedMemory<H>, pages: SharedMemory<H>) -> Result<Self, NotShared> {
        let no_memory = |_| NotShared::NoMemory { bytes: PAGE_SIZE };
        Ok(Sender {
            ring: ring(&ring_memory, NetifTx)?,
            ring_memory,
            pages,
            free: filled(TX_PAGES, |page| (TX_PAGES - 1 - page) as u16).map_err(no_memory)?,
            sent: filled(TX_PAGES, |_| false).map_err(no_memory)?,
            extras: 0,
            unpublished: true,
            refused: 0,
        })
    }

    /// Returns the ring's grant.
    pub fn gref(&self) -> Option<GrantRef> {
        self.ring_memory.gref(0)
    }

    /// Ends the ring, and returns its memory and the pages.
    pub fn into_memory(self) -> [SharedMemory<H>; 2] {
        [self.ring_memory, self.pages]
    }

    /// Returns whether the largest packet can be sent now.
    pub fn has_room(&self) -> bool {
        self.free.len() >= MOST_SLOTS && self.ring.free() as usize >= MOST_SLOTS
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
            self.pages.copy_in(place * PAGE_SIZE, part);
            let first = number == 0;
            let mut flags = PacketFlags::empty();
            flags.set(PacketFlags::MORE_DATA, number + 1 < count);
            if first && blank {
                flags |= PacketFlags::CHECKSUM_BLANK | PacketFlags::CHECKSUM_VALID;
            }
            flags.set(PacketFlags::EXTRA_INFO, first && segmentation.is_some());
            let part = TxPart {
                gref: self.pages.gref(place).unwrap_or_default(),
                offset: 0,
                flags,
                id: page,
                size: if first { frame.len() } else { part.len() } as u16,
            };
            // There is room, as just checked.
            let _ = self.ring.push(&part.into());
            if let (true, Some(segmentation)) = (first, segmentation) {
                let extra = Extra {
                    kind: Extra::GSO,
                    more: false,
                    segment: segmentation.segment,
                    protocol: segmentation.protocol,
                };
                let _ = self.ring.push(&extra.into());
                self.extras += 1;
            }
        }
        self.unpublished = true;
        true
    }

    /// Takes the backend's answers to what was sent. Returns whether there were any.
    pub fn collect(&mut self) -> Result<bool, Lie> {
        let mut any = false;
        while let Some(response) = self.ring.take()? {
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

    /// Shows the backend what was put into the ring. Returns whether it wants to be notified of that.
    pub fn publish(&mut self) -> bool {
        core::mem::take(&mut self.unpublished) && self.ring.publish()
    }

    /// Asks the backend to notify of the next answer. Returns true if there is one already.
    pub fn final_check(&mut self) -> Result<bool, Lie> {
        Ok(self.ring.final_check()?)
    }
}
