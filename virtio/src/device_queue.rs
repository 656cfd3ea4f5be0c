//! A queue of the device: the requests of all queues of guests' rings that one vCPU serves, or several vCPUs if the
//! device has fewer queues than there are vCPUs.
//!
//! If each vCPU has a queue and each queue an interrupt, that vCPU is the only one that locks the queue while requests
//! are served, and does not wait for the lock. Otherwise vCPUs that share a queue, or the first vCPU with the device's
//! only interrupt, may wait for each other. The device's task locks it to start, to stop and, each second, to find
//! requests that take too long.

mod control;

use crate::ring::{MOST_ENTRIES, Ring, Used};
use crate::slots::{Chain, Request, RequestSlot, RequestSlots, SectorRange, indirect};
use crate::transport::{Doorbell, Transport};
use alloc::sync::Arc;
use bulkhead_dma::{DeviceQueueState, NoPages, QueueClients, Watch};
use bulkhead_grant::OutOfMemory;
use bulkhead_images::{IoError, IoSegment, Submitted, Tag};
use bulkhead_xen::DmaMemory;
use core::sync::atomic::Ordering;
use core::task::{Context, Poll};

/// The most descriptors of a chain without an indirect table: the header, the status, and eight segments.
const DIRECT: usize = 10;

/// The counts of a queue's requests so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceQueueCounts {
    /// Chains that were given to the device. A discard counts once for each of its parts, and a request that is asked
    /// again after a reset counts again.
    pub requests: u64,
    /// Chains that the device used with an error.
    pub failed: u64,
    /// Notifications that were sent to the device.
    pub notifications: u64,
}

/// A queue of the device.
pub struct DeviceQueue {
    number: u16,
    transport: Arc<Transport>,
    doorbell: Option<Doorbell>,
    watch: Arc<Watch>,
    state: DeviceQueueState,
    ring: Ring,
    slots: RequestSlots,
    /// The number of descriptors in the queue's own table that each chain has; `None` if chains are in indirect tables,
    /// and have one there.
    direct: Option<usize>,
    clients: QueueClients,
    /// The current time in seconds, as of the last check of the requests.
    now: u32,
    /// The request by which data is discarded, and the most sectors of one.
    discards: Option<crate::disk_config::DiscardRequest>,
    counts: DeviceQueueCounts,
}

impl DeviceQueue {
    /// Allocates the memory of a queue with up to `most` entries. The caller has checked that these are enough for a
    /// request.
    pub fn new(
        number: u16,
        (transport, memory): (Arc<Transport>, &dyn DmaMemory),
        watch: Arc<Watch>,
        most: usize,
        has_indirect: bool,
        discards: Option<crate::disk_config::DiscardRequest>,
    ) -> Result<DeviceQueue, NoPages> {
        let direct = (!has_indirect).then(|| most.min(DIRECT));
        let slots = (most / direct.unwrap_or(1)).clamp(1, MOST_ENTRIES);
        Ok(DeviceQueue {
            number,
            transport,
            doorbell: None,
            watch,
            state: DeviceQueueState::Quiet,
            ring: Ring::new(memory)?,
            slots: RequestSlots::new(memory, slots)?,
            direct,
            clients: QueueClients::default(),
            now: 0,
            discards,
            counts: DeviceQueueCounts::default(),
        })
    }

    /// Returns the most requests that a guest's queue may have at a time.
    pub fn most_requests(&self) -> usize {
        self.slots.len()
    }

    /// Returns the most segments of a request for which there are descriptors. A chain also has a header and a status,
    /// and even in an indirect table it must not be longer than the queue.
    pub fn most_segments(&self) -> usize {
        self.direct.unwrap_or(self.slots.len()) - 2
    }

    /// Adds a queue for up to `depth` requests at a time, and returns its number.
    pub fn open(&mut self, depth: usize) -> Result<usize, OutOfMemory> {
        self.clients.open(depth)
    }

    /// Takes a request.
    #[inline]
    pub fn ask(
        &mut self,
        client: usize,
        tag: Tag,
        request: &Request,
        segments: &[IoSegment],
    ) -> Submitted {
        let state = self.state;
        if let Some(submitted) = self.clients.cannot_take(client, state, self.slots.len()) {
            return submitted;
        }
        let Some(number) = self.slots.next() else {
            return self.clients.busy(client);
        };
        let (descriptors, writable) = match self.build(number, request, segments) {
            Ok(built) => built,
            Err(error) => return Submitted::Done(Err(error)),
        };
        self.clients.note_taken(client).commands += 1;
        self.slots.take(RequestSlot {
            tag,
            client: client as u16,
            range: request.range,
            writable,
            descriptors,
            since: self.now,
            retries: 0,
            used: true,
            unwanted: false,
            late: false,
        });
        self.push(number);
        self.watch.begin_ticks();
        Submitted::Pending
    }

    /// Writes a request into a slot. Returns the number of its descriptors, and the bytes that the device may write.
    #[inline]
    fn build(
        &self,
        number: usize,
        request: &Request,
        segments: &[IoSegment],
    ) -> Result<(u16, u32), IoError> {
        let chain = match self.direct {
            None => Chain::new(self.slots.table(number).1, 0),
            Some(all) => {
                let first = number * all;
                let words = &self.ring.descriptors()[2 * first..2 * (first + all)];
                Chain::new(words, first as u16)
            }
        };
        self.slots.build(number, chain, request, segments)
    }

    /// Adds the chain in a slot to the ring.
    #[inline]
    fn push(&mut self, number: usize) {
        let head = match self.direct {
            Some(all) => number * all,
            None => {
                let address = self.slots.table(number).0;
                let descriptors = self.slots.get(number).descriptors;
                let words = &self.ring.descriptors()[2 * number..2 * number + 2];
                for (word, value) in words.iter().zip(indirect(address, descriptors)) {
                    word.store(value.to_le(), Ordering::Relaxed);
                }
                number
            }
        };
        self.ring.push(head as u16);
        self.counts.requests += 1;
    }

    /// Returns the slot of the chain that begins with a descriptor, if the device has it.
    #[inline]
    fn slot_of(&self, head: u32) -> Option<usize> {
        let head = head as usize;
        match self.direct {
            None => self.slots.find(head),
            Some(all) if head.is_multiple_of(all) => self.slots.find(head / all),
            Some(_) => None,
        }
    }

    /// Makes the requests that were added available, and notifies the device if it wants that.
    #[inline]
    pub fn submit(&mut self) {
        if self.state == DeviceQueueState::Running
            && self.ring.publish()
            && let Some(doorbell) = self.doorbell
        {
            self.counts.notifications += 1;
            self.transport.notify(self.number, doorbell);
        }
    }

    /// Takes the chains that the device has used.
    #[inline]
    pub fn collect(&mut self) {
        if self.state != DeviceQueueState::Running {
            return;
        }
        let mut any = false;
        loop {
            match self.ring.take() {
                Used::Nothing => break,
                Used::Chain { head, written } => {
                    any = true;
                    let Some(number) = self.slot_of(head) else {
                        return self
                            .break_down("the device has used a request that it does not have");
                    };
                    if written > self.slots.get(number).writable {
                        return self
                            .break_down("the device reports more bytes written than it may write");
                    }
                    self.used(number);
                }
                Used::TooMany => {
                    return self.break_down("the device has used more requests than it has");
                }
            }
        }
        if any && self.clients.any_waits() {
            self.use_free_slots();
        }
    }

    /// Handles a chain that the device has used.
    #[inline]
    fn used(&mut self, number: usize) {
        let outcome = self.slots.outcome(number);
        if outcome.is_err() {
            self.counts.failed += 1;
        } else if self.slots.get(number).range.count > 0 && self.go_on(number) {
            return;
        }
        self.end(number, outcome);
    }

    /// Asks for the next part of a discard. Returns false if there is none.
    #[cold]
    fn go_on(&mut self, number: usize) -> bool {
        let Some(discards) = self.discards else {
            return false;
        };
        let since = self.now;
        let slot = self.slots.get(number);
        let done = slot.range.count.min(discards.most.into());
        slot.range = SectorRange {
            start: slot.range.start + done,
            count: slot.range.count - done,
        };
        if slot.range.count == 0 || slot.unwanted {
            return false;
        }
        slot.since = since;
        let request = Request {
            kind: discards.request,
            sector: 0,
            range: slot.range,
            most: discards.most,
        };
        self.slots.set_range(number, &request);
        self.slots.clear_outcome(number);
        self.push(number);
        true
    }

    /// Completes a request, and frees its slot.
    #[inline]
    fn end(&mut self, number: usize, outcome: Result<(), IoError>) {
        let slot = self.slots.release(number);
        let client = &mut self.clients[usize::from(slot.client)];
        client.complete(slot.tag, outcome);
        client.command_ended();
    }

    /// Passes a client's completions to `sink`. Ready if there were any, or if the client may submit a refused request
    /// again.
    #[inline]
    pub fn poll(
        &mut self,
        number: usize,
        context: &Context<'_>,
        sink: &mut dyn FnMut(Tag, Result<(), IoError>),
    ) -> Poll<()> {
        loop {
            self.collect();
            // The next parts of discards.
            self.submit();
            let drained = self.clients[number].drain(sink);
            if drained.gave_up {
                self.pass_on();
            }
            if drained.ready {
                return Poll::Ready(());
            }
            self.clients[number].wake_with(context.waker());
            // The task may sleep after this, so the device is to interrupt. Chains that it used until here are taken
            // first.
            if self.state != DeviceQueueState::Running || !self.ring.arm() {
                return Poll::Pending;
            }
        }
    }

    /// Takes all chains that the device has used, because it has interrupted, and has it interrupt for the next one.
    pub fn interrupted(&mut self) {
        loop {
            self.collect();
            self.submit();
            if self.state != DeviceQueueState::Running || !self.ring.arm() {
                return;
            }
        }
    }
}
