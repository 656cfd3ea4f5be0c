//! The operations of the control plane on a queue, and those that are rare while it serves.

use super::{DeviceQueue, DeviceQueueCounts};
use crate::ring::Ring;
use crate::transport::Doorbell;
use bulkhead_dma::{DeviceQueueState, HardwareQueue};
use bulkhead_images::{IoError, Tag};
use core::task::{Context, Poll};

/// The number of times that a request is asked again because the device was reset.
const MOST_RETRIES: u8 = 3;

impl DeviceQueue {
    /// Returns its number.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Returns the counts of its requests so far.
    pub fn counts(&self) -> DeviceQueueCounts {
        self.counts
    }

    /// Stops using the queue after a breach of the protocol, and has the device's task reset the device.
    #[cold]
    pub(super) fn break_down(&mut self, why: &str) {
        log::error!("virtio: queue {}: {why}", self.number);
        self.state = DeviceQueueState::Broken;
        self.watch.call();
    }

    /// Offers free slots, in turn, to the clients of which a request was refused.
    #[cold]
    pub(super) fn use_free_slots(&mut self) {
        self.clients.offer(self.slots.free(), self.slots.len());
    }

    /// Notes that a client does not use the slot that it was offered, and offers it to the next one. There may be no
    /// request in flight whose end would do so.
    #[cold]
    pub(super) fn pass_on(&mut self) {
        self.clients.end_wait();
        if self.state == DeviceQueueState::Running {
            self.use_free_slots();
        }
    }

    /// Empties the ring for a device that takes up to `most` entries and does not know it yet. Returns false if these
    /// are too few for the slots.
    pub fn prepare(&mut self, most: u16, event_index: bool) -> bool {
        let entries = Ring::entries_for(most);
        if entries < self.slots.len() * self.direct.unwrap_or(1) {
            return false;
        }
        self.ring.reset(entries, event_index);
        self.slots.set_in_use(true);
        true
    }

    /// Returns the number of entries, and the bus addresses of the ring's parts.
    pub fn memory(&self) -> (u16, [u64; 3]) {
        (self.ring.entries() as u16, self.ring.addresses())
    }

    /// Sets the place where the device is notified of this queue.
    pub fn set_doorbell(&mut self, doorbell: Doorbell) {
        self.doorbell = Some(doorbell);
    }

    /// Uses the ring, which the device knows now, at the time `now` in seconds. All requests that it had before are
    /// asked again, except those that were asked too often, and those that were cancelled.
    pub fn resume(&mut self, now: u32) {
        self.state = DeviceQueueState::Running;
        self.now = now;
        for number in 0..self.slots.len() {
            let slot = self.slots.get(number);
            if !slot.used {
                continue;
            }
            // Two of the three retries: the request fails if it causes another reset.
            slot.retries += if slot.late { 2 } else { 1 };
            (slot.since, slot.late) = (now, false);
            if slot.unwanted {
                self.end(number, Err(IoError::Cancelled));
            } else if slot.retries > MOST_RETRIES {
                self.end(number, Err(IoError::Medium));
            } else {
                self.slots.clear_outcome(number);
                self.push(number);
            }
        }
        self.use_free_slots();
        self.submit();
    }

    fn end_unwanted(&mut self) {
        for number in 0..self.slots.len() {
            let slot = self.slots.get(number);
            if slot.used && slot.unwanted {
                self.end(number, Err(IoError::Cancelled));
            }
        }
    }

    /// Notes the time, in seconds. Returns whether the device has had a request for `limit` seconds or longer.
    pub fn is_late(&mut self, now: u32, limit: u32) -> bool {
        self.now = now;
        if self.state != DeviceQueueState::Running {
            return false;
        }
        for slot in self.slots.used() {
            slot.late = now.wrapping_sub(slot.since) >= limit;
        }
        self.has_late()
    }

    /// Cancels the requests of a client with that tag, or all of them. A device cannot be asked to abort a request: it
    /// ends when the device has used it, or was reset.
    pub fn cancel(&mut self, client: usize, tag: Option<Tag>) {
        for slot in self.slots.used() {
            let is_meant = tag.is_none_or(|tag| tag == slot.tag);
            slot.unwanted |= is_meant && usize::from(slot.client) == client;
        }
        if self.state == DeviceQueueState::Quiet {
            self.end_unwanted();
        }
    }

    /// Closes a client, and cancels its requests.
    pub fn close(&mut self, client: usize) {
        if !self.clients[client].is_open() {
            return;
        }
        let waited = self.clients[client].close();
        self.cancel(client, None);
        if waited {
            self.pass_on();
        }
    }

    /// Closes a client whose queue is dropped. Another queue has its place, once the device has none of its requests.
    pub fn release(&mut self, client: usize) {
        self.close(client);
        self.clients[client].set_dropped();
    }

    /// Returns ready if the device has no requests of a client that was closed, and so none of its memory.
    pub fn poll_close(&mut self, client: usize, context: &Context<'_>) -> Poll<()> {
        loop {
            self.collect();
            self.submit();
            if self.clients[client].commands == 0 {
                return Poll::Ready(());
            }
            self.clients[client].wake_with(context.waker());
            if self.state != DeviceQueueState::Running || !self.ring.arm() {
                return Poll::Pending;
            }
        }
    }
}

impl HardwareQueue for DeviceQueue {
    fn state(&self) -> DeviceQueueState {
        self.state
    }

    fn is_idle(&self) -> bool {
        self.slots.all_free()
    }

    fn begin_ticks(&mut self, now: u32) {
        self.now = now;
        self.slots.used().for_each(|slot| slot.since = now);
    }

    fn has_late(&mut self) -> bool {
        self.slots.used().any(|slot| slot.late)
    }

    fn stop(&mut self) {
        self.state = DeviceQueueState::Stopped;
    }

    fn quiet(&mut self) {
        self.state = DeviceQueueState::Quiet;
        self.ring.released();
        self.slots.set_in_use(false);
        self.end_unwanted();
    }

    fn die(&mut self) {
        self.state = DeviceQueueState::Dead;
        for number in 0..self.slots.len() {
            if self.slots.get(number).used {
                self.end(number, Err(IoError::Medium));
            }
        }
        self.clients.tell_all();
    }

    fn set_stuck(&mut self) {
        self.state = DeviceQueueState::Stuck;
        self.clients.tell_all();
    }
}
