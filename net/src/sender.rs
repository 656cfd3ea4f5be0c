//! The rings for sending packets, one for each queue, and the pages of all.
//!
//! A packet is made where it is sent from, in pages that follow one another: the backend is granted them for reading,
//! so only the stack writes to them. Which ring it goes to is known when it is made, so the rings share the pages.

use crate::packet::{Flow, Segmentation};
use crate::rings::ring;
use crate::violation::NetifViolation;
use alloc::vec::Vec;
use bulkhead_grant::{NotShared, SharedMemory};
use bulkhead_ring::netif::{Extra, NULL, NetifTx, PacketFlags, TxPart};
use bulkhead_ring::{FrontRing, SharedPages};
use bulkhead_xen::{GrantRef, Hypervisor, PAGE_SIZE};

/// The number of pages for sending packets.
pub const TX_PAGES: usize = u128::BITS as usize;

/// The most bytes of a packet that is sent: its size is 16 bits wide.
pub const LARGEST_SENT: usize = 65535;
/// The most slots of one packet: the pages, and one of details.
const MOST_SLOTS: usize = LARGEST_SENT.div_ceil(PAGE_SIZE) + 1;

/// The rings for sending packets, and their memory.
pub struct Sender<H: Hypervisor> {
    queues: Vec<Queue<H>>,
    pages: SharedMemory<H>,
    /// The pages that the backend does not have, a bit for each.
    free: u128,
    /// True if there are enough of them in succession for the largest packet.
    fits_largest: bool,
}

/// The ring of a queue, and its memory.
struct Queue<H: Hypervisor> {
    // Dropped before the memory that it is in.
    ring: FrontRing<SharedPages, NetifTx>,
    ring_memory: SharedMemory<H>,
    /// The pages that the backend has by this ring, a bit for each.
    taken: u128,
    /// The number of slots with details that were sent, and not answered.
    extras: u32,
    /// True if a request was put into the ring and not published.
    unpublished: bool,
    /// The number of packets that were put into the ring.
    sent: u64,
    /// The number of packets that the backend reported it did not take.
    refused: u64,
}

/// A packet that is being made, and the page with which it begins.
pub struct Frame<'a> {
    pub page: usize,
    pub bytes: &'a mut [u8],
}

/// Returns the position of the first run of `count` bits that are set; `count` is at least one.
fn run(bits: u128, count: usize) -> Option<usize> {
    let (mut starts, mut len) = (bits, 1);
    while len < count {
        // A run of twice that length begins where one of it is followed by another.
        let step = len.min(count - len);
        starts &= starts.checked_shr(step as u32).unwrap_or_default();
        len += step;
    }
    (starts != 0).then(|| starts.trailing_zeros() as usize)
}

impl<H: Hypervisor> Sender<H> {
    /// Returns a sender without a ring. The [`TX_PAGES`] pages are granted to the backend, for reading alone.
    pub fn new(pages: SharedMemory<H>) -> Self {
        Sender {
            queues: Vec::new(),
            pages,
            free: u128::MAX,
            fits_largest: true,
        }
    }

    /// Makes an empty ring for a further queue, in memory that is granted to the backend.
    pub fn add(&mut self, ring_memory: SharedMemory<H>) -> Result<(), NotShared> {
        self.queues.push(Queue {
            ring: ring(&ring_memory, NetifTx)?,
            ring_memory,
            taken: 0,
            extras: 0,
            unpublished: true,
            sent: 0,
            refused: 0,
        });
        Ok(())
    }

    /// Returns the grant of a queue's ring.
    pub fn gref(&self, queue: usize) -> Option<GrantRef> {
        self.queues.get(queue)?.ring_memory.gref(0)
    }

    /// Ends the rings, and returns their memory and the pages.
    pub fn into_memory(self) -> (Vec<SharedMemory<H>>, SharedMemory<H>) {
        let rings = self.queues.into_iter().map(|queue| queue.ring_memory);
        (rings.collect(), self.pages)
    }

    /// Returns the number of packets that were sent by a queue.
    pub fn sent(&self, queue: usize) -> u64 {
        self.queues.get(queue).map_or(0, |queue| queue.sent)
    }

    /// Returns the number of packets that the backend reported it did not take.
    pub fn refused(&self) -> u64 {
        self.queues.iter().map(|queue| queue.refused).sum()
    }

    /// Returns whether the largest packet can be sent now, by whatever queue.
    #[inline]
    pub fn has_room(&self) -> bool {
        let fits = |queue: &Queue<H>| queue.ring.free() as usize >= MOST_SLOTS;
        self.fits_largest && self.queues.iter().all(fits)
    }

    /// Sets the pages that the backend does not have.
    fn set_free(&mut self, free: u128) {
        self.free = free;
        self.fits_largest = run(free, LARGEST_SENT.div_ceil(PAGE_SIZE)).is_some();
    }

    /// Returns the place in which the caller makes a packet of `len` bytes, at most [`LARGEST_SENT`]: the pages from
    /// which it is sent. Returns `None` if there is no room, as [`has_room`](Self::has_room) says beforehand.
    ///
    /// The backend can read these pages at any time, and cannot write to them: they hold old packets, or this one.
    pub fn frame(&mut self, len: usize) -> Option<Frame<'_>> {
        let page = run(self.free, len.div_ceil(PAGE_SIZE))?;
        let bytes = self.pages.bytes(page * PAGE_SIZE, len)?;
        Some(Frame { page, bytes })
    }

    /// Sends the packet of `len` bytes that was made in the pages from `first` on, if there is room. Packets of one
    /// flow stay in their order: all go by the same queue.
    pub fn send(
        &mut self,
        (first, len): (usize, usize),
        flow: Flow,
        segmentation: Option<Segmentation>,
    ) -> bool {
        let count = len.div_ceil(PAGE_SIZE);
        if !self.has_room() || len == 0 || len > LARGEST_SENT {
            return false;
        }
        let number = usize::from(flow.port) % self.queues.len().max(1);
        let Some(queue) = self.queues.get_mut(number) else {
            return false;
        };
        let mut pages = 0;
        for number in 0..count {
            let page = first + number;
            pages |= 1 << page;
            let mut flags = PacketFlags::empty();
            flags.set(PacketFlags::MORE_DATA, number + 1 < count);
            if number == 0 && flow.blank {
                flags |= PacketFlags::CHECKSUM_BLANK | PacketFlags::CHECKSUM_VALID;
            }
            let details = segmentation.filter(|_| number == 0);
            flags.set(PacketFlags::EXTRA_INFO, details.is_some());
            let part = TxPart {
                gref: self.pages.gref(page).unwrap_or_default(),
                offset: 0,
                flags,
                id: page as u16,
                // The first one tells the size of all.
                size: match number {
                    0 => len as u16,
                    _ => (len - number * PAGE_SIZE).min(PAGE_SIZE) as u16,
                },
            };
            // There is room, as just checked.
            let _ = queue.ring.push(&part.into());
            if let Some(segmentation) = details {
                let extra = Extra {
                    kind: Extra::GSO,
                    more: false,
                    segment: segmentation.segment,
                    protocol: segmentation.protocol,
                };
                let _ = queue.ring.push(&extra.into());
                queue.extras += 1;
            }
        }
        queue.taken |= pages;
        queue.sent += 1;
        queue.unpublished = true;
        self.set_free(self.free & !pages);
        true
    }

    /// Takes the backend's answers to sent packets.
    pub fn collect(&mut self) -> Result<(), NetifViolation> {
        let mut returned = 0;
        for queue in &mut self.queues {
            returned |= queue.collect()?;
        }
        if returned != 0 {
            self.set_free(self.free | returned);
        }
        Ok(())
    }

    /// Publishes the requests in a queue's ring. Returns whether the backend wants to be notified of that.
    pub fn publish(&mut self, queue: usize) -> bool {
        let queue = self.queues.get_mut(queue);
        queue.is_some_and(|queue| core::mem::take(&mut queue.unpublished) && queue.ring.publish())
    }

    /// Asks the backend to notify this end of the next answer, in whatever ring. Returns true if there is one already.
    pub fn final_check(&mut self) -> Result<bool, NetifViolation> {
        let mut any = false;
        for queue in &mut self.queues {
            any |= queue.ring.final_check()?;
        }
        Ok(any)
    }
}

impl<H: Hypervisor> Queue<H> {
    /// Takes the backend's answers in the ring. Returns the pages that it gives back, a bit for each.
    fn collect(&mut self) -> Result<u128, NetifViolation> {
        let mut returned = 0;
        while let Some(response) = self.ring.take()? {
            if response.status == NULL {
                self.extras = self
                    .extras
                    .checked_sub(1)
                    .ok_or(NetifViolation::NoDetails)?;
                continue;
            }
            let id = response.id;
            let page = 1u128.checked_shl(id.into()).unwrap_or_default();
            if self.taken & page == 0 {
                return Err(NetifViolation::Unasked(id));
            }
            self.taken &= !page;
            returned |= page;
            self.refused += u64::from(response.status < 0);
        }
        Ok(returned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_pages_are_found() {
        for (bits, count, found) in [
            (0, 1, None),
            (u128::MAX, 1, Some(0)),
            (u128::MAX, 128, Some(0)),
            (u128::MAX, 129, None),
            (u128::MAX << 3, 125, Some(3)),
            (u128::MAX << 3, 126, None),
            (0b1011_0111_0110, 1, Some(1)),
            (0b1011_0111_0110, 2, Some(1)),
            (0b1011_0111_0110, 3, Some(4)),
            (0b1011_0111_0110, 4, None),
            (u128::MAX << 112, 16, Some(112)),
            (u128::MAX << 113, 16, None),
        ] {
            assert_eq!(run(bits, count), found, "{bits:b} {count}");
        }
    }
}
