//! All queues of guests' rings that share a queue of a device, and how they share its commands.

use crate::{DeviceQueueState, QueueClient};
use alloc::vec::Vec;
use bulkhead_grant::OutOfMemory;
use bulkhead_images::{IoError, Submitted};
use core::ops::{Index, IndexMut};

/// The queues of guests' rings that share a queue of a device, by number. `slots` is the number of commands that the
/// device's queue has room for.
#[derive(Default)]
pub struct QueueClients {
    all: Vec<QueueClient>,
    /// The number of clients of which a request was refused as no slot was free, and that still wait for one.
    waiting: usize,
    /// The client that is offered a free slot first.
    turn: usize,
}

impl QueueClients {
    /// Adds a queue for up to `depth` requests at a time, and returns its number.
    pub fn open(&mut self, depth: usize) -> Result<usize, OutOfMemory> {
        if let Some(unused) = self.all.iter().position(QueueClient::is_unused) {
            return self.all[unused].reopen(depth).map(|()| unused);
        }
        let client = QueueClient::new(depth)?;
        let bytes = size_of::<QueueClient>();
        let reserved = self.all.try_reserve(1);
        reserved.map_err(|_| OutOfMemory { bytes })?;
        self.all.push(client);
        Ok(self.all.len() - 1)
    }

    /// Returns the answer to a request that cannot be taken now: busy, or failed. `None` if it can be taken.
    #[inline]
    pub fn cannot_take(
        &mut self,
        number: usize,
        state: DeviceQueueState,
        slots: usize,
    ) -> Option<Submitted> {
        match state {
            DeviceQueueState::Running => {}
            DeviceQueueState::Dead | DeviceQueueState::Stuck => {
                return Some(Submitted::Done(Err(IoError::Medium)));
            }
            DeviceQueueState::Stopped | DeviceQueueState::Quiet | DeviceQueueState::Broken => {
                return Some(self.busy(number));
            }
        }
        if self.all[number].is_full() || (self.any_waits() && !self.has_share(number, slots)) {
            return Some(self.busy(number));
        }
        None
    }

    /// Returns whether a client waits for a free slot.
    #[inline]
    pub fn any_waits(&self) -> bool {
        self.waiting > 0
    }

    /// Returns whether a client may have one more command while others wait for one: if it has less than its equal
    /// share.
    #[cold]
    pub fn has_share(&self, number: usize, slots: usize) -> bool {
        let active = self.all.iter().filter(|client| client.is_active());
        let share = (slots / active.count().max(1)).max(1);
        self.all[number].commands < share
    }

    /// Refuses a request because no slot is free.
    #[cold]
    pub fn busy(&mut self, number: usize) -> Submitted {
        self.waiting += usize::from(self.all[number].note_busy());
        Submitted::Busy
    }

    /// Notes that a request was taken, and returns its client.
    #[inline]
    pub fn note_taken(&mut self, number: usize) -> &mut QueueClient {
        let client = &mut self.all[number];
        if client.taken() {
            self.waiting -= 1;
        }
        client
    }

    /// Offers `free` slots, in turn, to the clients of which a request was refused.
    #[cold]
    pub fn offer(&mut self, mut free: usize, slots: usize) {
        if self.waiting == 0 {
            return;
        }
        let count = self.all.len();
        let first = self.turn;
        for offset in 0..count {
            let number = (first + offset) % count;
            let client = &self.all[number];
            if free > 0 && client.waits() && !client.is_full() && self.has_share(number, slots) {
                free -= 1;
                self.turn = number + 1;
                self.all[number].tell();
            }
        }
    }

    /// Notes that a client does not wait any more, without having used a slot that it was offered.
    pub fn end_wait(&mut self) {
        self.waiting -= 1;
    }

    /// Wakes all clients that wait for a slot: their requests fail now.
    pub fn tell_all(&mut self) {
        for client in &mut self.all {
            if client.waits() {
                client.tell();
            }
        }
    }
}

impl Index<usize> for QueueClients {
    type Output = QueueClient;

    #[inline]
    fn index(&self, number: usize) -> &QueueClient {
        &self.all[number]
    }
}

impl IndexMut<usize> for QueueClients {
    #[inline]
    fn index_mut(&mut self, number: usize) -> &mut QueueClient {
        &mut self.all[number]
    }
}
