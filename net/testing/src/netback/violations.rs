//! Breaches of the protocol of the rings.

use super::{NetBack, Rings};
use bulkhead_ring::netif::{NULL, OKAY, PacketFlags, RxPart, RxResponse, TxResponse};
use bulkhead_xen::Hypervisor;

/// A breach of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// More packets than there are pages.
    RxIndex,
    /// An answer to a packet that was not sent.
    TxId(u16),
    /// An answer to the details of a packet that had none.
    TxNull,
    /// A packet in the page of another request.
    RxId,
    /// A packet that does not lie in its page.
    RxOffset(u16, i16),
    /// A packet without an end.
    RxEndless,
}

impl NetBack {
    /// Breaks the protocol.
    ///
    /// # Panics
    /// If it is not connected.
    pub fn violate(&mut self, violation: Violation) {
        let (mut queues, queue) = self.violating_queue();
        let rings = &mut queues[queue];
        while let Some(Ok(request)) = rings.rx.take().expect("an honest frontend") {
            rings.pages.push_back(request);
        }
        let mut answer = |flags: PacketFlags, offset: u16, status: i16, other: u16| {
            let request = rings.pages.pop_front().expect("a page");
            let part = RxPart {
                id: request.id.wrapping_add(other),
                offset,
                flags,
                status,
            };
            let response = RxResponse::from(part);
            rings.rx.respond(&response).expect("asked");
        };
        let none = PacketFlags::empty();
        match violation {
            Violation::RxId => answer(none, 0, 60, 1),
            Violation::RxOffset(offset, len) => answer(none, offset, len, 0),
            Violation::RxEndless => {
                for _ in 0..32 {
                    answer(PacketFlags::MORE_DATA, 0, 4096, 0);
                }
            }
            Violation::RxIndex => {
                // SAFETY: `rsp_prod` of the ring, which is mapped.
                let index = unsafe { self.ring_pages(queue)[1].add(8) }.cast::<u32>();
                // SAFETY: as above.
                unsafe { index.write_volatile(100_000) };
            }
            Violation::TxId(id) => self.answer_unasked(rings, id, OKAY),
            Violation::TxNull => self.answer_unasked(rings, 0, NULL),
        }
        let _ = rings.rx.publish();
        let notified = self.hypervisor.notify(rings.port);
        notified.expect("the frontend's port");
        self.queues = queues;
    }

    /// Takes the queues, and the number of the one in which the protocol is broken.
    fn violating_queue(&mut self) -> (Vec<Rings>, usize) {
        let queues = std::mem::take(&mut self.queues);
        let last = queues.len().checked_sub(1).expect("connected");
        (queues, self.violates_in.min(last))
    }

    /// Answers the next packet of the frontend's with that identifier and status.
    fn answer_unasked(&mut self, rings: &mut Rings, id: u16, status: i16) {
        let taken = rings.tx.take().expect("an honest frontend");
        let Ok(_) = taken.expect("the frontend has sent something");
        rings.tx.respond(&TxResponse { id, status }).expect("asked");
        let _ = rings.tx.publish();
    }

    /// Returns whether it is connected to rings that can be used.
    pub fn is_connected(&self) -> bool {
        !self.queues.is_empty() && !self.spoiled
    }

    /// Answers requests for packets with these bytes, whatever they mean, as long as there are requests. An answer
    /// without a number has that of its request.
    ///
    /// # Panics
    /// If it is not connected.
    pub fn answer(&mut self, responses: &[(Option<u16>, [u8; 6])]) {
        let (mut queues, queue) = self.violating_queue();
        let rings = &mut queues[queue];
        while let Some(Ok(request)) = rings.rx.take().expect("an honest frontend") {
            rings.pages.push_back(request);
        }
        for (id, rest) in responses {
            let Some(request) = rings.pages.pop_front() else {
                break;
            };
            let mut bytes = [0; 8];
            bytes[..2].copy_from_slice(&id.unwrap_or(request.id).to_ne_bytes());
            bytes[2..].copy_from_slice(rest);
            let response = RxResponse::from(bytes);
            rings.rx.respond(&response).expect("asked");
        }
        let _ = rings.rx.publish();
        let notified = self.hypervisor.notify(rings.port);
        notified.expect("the frontend's port");
        self.queues = queues;
    }

    /// Answers all packets that the frontend has sent and that were not taken. The first ones get these answers,
    /// whatever they mean.
    ///
    /// # Panics
    /// If it is not connected.
    pub fn answer_sent(&mut self, answers: &[(u16, i16)]) {
        let (mut queues, queue) = self.violating_queue();
        let rings = &mut queues[queue];
        let (mut answers, mut is_extra) = (answers.iter(), false);
        while let Some(Ok(request)) = rings.tx.take().expect("an honest frontend") {
            let part = request.part();
            let honest = if is_extra {
                (0xffff, NULL)
            } else {
                (part.id, OKAY)
            };
            is_extra = !is_extra && part.flags.contains(PacketFlags::EXTRA_INFO);
            let (id, status) = answers.next().copied().unwrap_or(honest);
            rings.tx.respond(&TxResponse { id, status }).expect("asked");
        }
        let _ = rings.tx.publish();
        let notified = self.hypervisor.notify(rings.port);
        notified.expect("the frontend's port");
        self.queues = queues;
    }

    /// Sets the index up to which it has answered, in the ring for sending or in the other one. These rings cannot be
    /// used any more.
    ///
    /// # Panics
    /// If it is not connected.
    pub fn set_index(&mut self, sends: bool, index: u32) {
        self.spoiled = true;
        let (queues, queue) = self.violating_queue();
        let page = self.ring_pages(queue)[usize::from(!sends)];
        // SAFETY: `rsp_prod` of a ring, which is mapped.
        let place = unsafe { page.add(8) }.cast::<u32>();
        // SAFETY: as above.
        unsafe { place.write_volatile(index) };
        let notified = self.hypervisor.notify(queues[queue].port);
        notified.expect("the frontend's port");
        self.queues = queues;
    }
}
