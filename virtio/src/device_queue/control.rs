//! What the control plane does with a queue, and what is seldom done while it serves.

use super::{Counts, DeviceQueue};
use crate::ring::Ring;
use crate::transport::Doorbell;
use bulkhead_images::{IoError, Tag};
use core::task::{Context, Poll};

/// The times that a request is asked again because the device was reset.
const MOST_RETRIES: u8 = 3;

/// The state of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The device works on its requests.
    Running,
    /// The device has said what cannot be. It may still have the requests' memory.
    Broken,
    /// The device is being reset. It may still have the requests' memory.
    Stopped,
    /// The device has reset itself: it has no memory. Its requests are asked again when it runs again.
    Quiet,
    /// The device was given up, and has no memory.
    Dead,
    /// The device was given up, and may still have the requests' memory.
    Stuck,
}

impl DeviceQueue {
    /// Returns its number.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Returns its state.
    pub fn state(&self) -> State {
        self.state
    }

    /// Returns what it has done so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Returns whether the device has none of its requests.
    pub fn is_idle(&self) -> bool {
        self.slots.all_free()
    }

    /// Believes nothing of the device any more.
    #[cold]
    pub(super) fn break_down(&mut self, why: &str) {
        log::error!("virtio: queue {}: {why}", self.number);
        self.state = State::Broken;
        self.watch.call();
    }

    /// Lets the clients that were turned away have free slots, in turn.
    #[cold]
    pub(super) fn use_free_slots(&mut self) {
        let (count, mut free) = (self.clients.len(), self.slots.free());
        let first = self.turn;
        for offset in 0..count {
            let number = (first + offset) % count;
            let client = &self.clients[number];
            if free > 0 && client.waits() && !client.is_full() && self.has_share(number) {
                free -= 1;
                self.turn = number + 1;
                self.clients[number].tell();
            }
        }
    }

    /// Notes that a client does not want what it has waited for. It may have been told of the only free slot, with no
    /// request outstanding whose end would be told to the next one.
    #[cold]
    pub(super) fn pass_on(&mut self) {
        self.turned_away -= 1;
        if self.state == State::Running {
            self.use_free_slots();
        }
    }

    /// Empties the ring for a device that has up to `most` entries and does not know of it yet. Returns false if these
    /// are too few for the requests that there may be.
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

    /// Keeps where the device is notified.
    pub fn set_doorbell(&mut self, doorbell: Doorbell) {
        self.doorbell = Some(doorbell);
    }

    /// Uses the ring, which the device knows now. All requests that it had before are asked again, but for those that
    /// were asked too often, or that nobody waits for.
    pub fn resume(&mut self, now: u32) {
        self.state = State::Running;
        self.now = now;
        for number in 0..self.slots.len() {
            let slot = self.slots.get(number);
            if !slot.used {
                continue;
            }
            // A request for which the device is reset again fails.
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

    /// Stops looking at the ring, as the device is about to be reset.
    pub fn stop(&mut self) {
        self.state = State::Stopped;
    }

    /// Notes that the device has reset itself: it accesses no memory any more. Requests that nobody waits for end.
    pub fn quiet(&mut self) {
        self.state = State::Quiet;
        self.ring.released();
        self.slots.set_in_use(false);
        self.end_unwanted();
    }

    fn end_unwanted(&mut self) {
        for number in 0..self.slots.len() {
            let slot = self.slots.get(number);
            if slot.used && slot.unwanted {
                self.end(number, Err(IoError::Cancelled));
            }
        }
    }

    /// Gives the device up, which [has reset itself](Self::quiet): everything fails.
    pub fn die(&mut self) {
        self.state = State::Dead;
        for number in 0..self.slots.len() {
            if self.slots.get(number).used {
                self.end(number, Err(IoError::Medium));
            }
        }
        self.tell_all();
    }

    /// Gives the device up, which may still access memory: nothing completes any more.
    pub fn stick(&mut self) {
        self.state = State::Stuck;
        self.tell_all();
    }

    /// Tells all clients that were turned away: what they try again is refused now.
    fn tell_all(&mut self) {
        for client in &mut self.clients {
            if client.waits() {
                client.tell();
            }
        }
    }

    /// Notes the time, in ticks, when requests begin to be looked at: they count as asked now.
    pub fn begin_ticks(&mut self, now: u32) {
        self.now = now;
        self.slots.used().for_each(|slot| slot.since = now);
    }

    /// Notes the time, in ticks. Returns whether a request takes longer than `limit` ticks.
    pub fn is_late(&mut self, now: u32, limit: u32) -> bool {
        self.now = now;
        if self.state != State::Running {
            return false;
        }
        for slot in self.slots.used() {
            slot.late = now.wrapping_sub(slot.since) >= limit;
        }
        self.has_late()
    }

    /// Returns whether the device has a request that was found to take too long.
    pub fn has_late(&mut self) -> bool {
        self.slots.used().any(|slot| slot.late)
    }

    /// Gives up the requests of a client with that tag, or all of them. A device cannot be asked to give one up: it
    /// ends when the device has used it, or was reset.
    pub fn cancel(&mut self, client: usize, tag: Option<Tag>) {
        for slot in self.slots.used() {
            let is_meant = tag.is_none_or(|tag| tag == slot.tag);
            slot.unwanted |= is_meant && usize::from(slot.client) == client;
        }
        if self.state == State::Quiet {
            self.end_unwanted();
        }
    }

    /// Closes a client.
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

    /// Ready once the device has none of the memory of a client that was closed.
    pub fn poll_close(&mut self, client: usize, context: &Context<'_>) -> Poll<()> {
        loop {
            self.collect();
            self.submit();
            if self.clients[client].commands == 0 {
                return Poll::Ready(());
            }
            self.clients[client].wake_with(context.waker());
            if self.state != State::Running || !self.ring.arm() {
                return Poll::Pending;
            }
        }
    }
}
