//! The operations of the control plane on a queue pair, and those that are rare while it serves.

use super::{MOST_RETRIES, QueuePair, QueuePairCounts};
use crate::command::{CommandId, Completion, NamespaceId, QueueId, Status};
use crate::slots::Owner;
use crate::splits;
use alloc::vec::Vec;
use bulkhead_dma::{DeviceQueueState, HardwareQueue};
use bulkhead_images::{IoError, Tag};
use core::task::{Context, Poll};

/// The commands of a queue pair that take too long.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Late {
    /// The commands that the controller is to be asked to abort, for the first time.
    pub abort: Vec<CommandId>,
    /// The controller has not ended a command in time after it was asked to abort it: it has to be reset.
    pub overdue: bool,
}

/// The status of a command of a cancelled request that the controller has not completed.
const UNSENT: Status = Status::ABORT_REQUESTED;

impl QueuePair {
    /// Returns the number of the queue pair.
    pub fn queue(&self) -> QueueId {
        self.queue
    }

    /// Returns the counts of its commands so far.
    pub fn counts(&self) -> QueuePairCounts {
        QueuePairCounts {
            doorbells: self.rings.doorbell_writes(),
            ..self.counts
        }
    }

    /// Returns the number of commands that the controller has, and of those that it has completed so far.
    pub fn progress(&self) -> (usize, u64) {
        let at_work = self.slots.len() - self.slots.free();
        (at_work, self.counts.commands - at_work as u64)
    }

    /// Takes all completions that there are at a time at which some were expected, without letting the controller
    /// interrupt for later ones.
    pub fn take_expected(&mut self) {
        self.counts.looks += 1;
        self.take();
    }

    /// Stops using the queue pair after an impossible completion, and has the controller's task reset the controller.
    #[cold]
    pub(super) fn break_down(&mut self, completion: Completion) {
        log::error!(
            "queue {}: the controller has completed command {:#x}, which it does not have",
            self.queue,
            completion.id().0
        );
        self.state = DeviceQueueState::Broken;
        self.watch.call();
    }

    /// Hands out free slots: first to requests in parts, then, in turn, to the clients of which a request was refused.
    #[cold]
    pub(super) fn use_free_slots(&mut self) {
        for number in 0..splits::MOST as u8 {
            if self.splits.get(number).has_more() {
                self.advance(number);
            }
        }
        self.clients.offer(self.slots.free(), self.slots.len());
    }

    /// Notes that a client does not use the slot that it was offered, and offers it to the next one. There may be no
    /// command in flight whose end would do so.
    #[cold]
    pub(super) fn pass_on(&mut self) {
        self.clients.end_wait();
        if self.state == DeviceQueueState::Running {
            self.use_free_slots();
            self.submit();
        }
    }

    /// Empties the queues for a controller that takes up to `most` entries and does not know them yet. Returns false if
    /// the queues are too short for the commands that are to be sent again.
    pub fn prepare(&mut self, most: usize, stride: usize) -> bool {
        self.rings.reset(self.queue, most, stride);
        self.lists.set_in_use(true);
        match self.rings.depth() < self.slots.len() {
            true => self.slots.shrink(self.rings.depth()),
            false => true,
        }
    }

    /// Returns the bus address and the number of entries of the submission queue, and of the completion queue.
    pub fn queues(&self) -> [(u64, usize); 2] {
        [self.rings.submission_queue(), self.rings.completion_queue()]
    }

    /// Uses the queues, which the controller knows now, at the time `now` in seconds. All commands that it had before
    /// are sent again, except those that were sent too often, and those of cancelled requests.
    pub fn resume(&mut self, now: u32) {
        self.state = DeviceQueueState::Running;
        self.now = now;
        for number in 0..self.slots.len() {
            let slot = self.slots.get(number);
            if !slot.used {
                continue;
            }
            // Two of the three retries: the command fails if it causes another reset.
            let times = if slot.aborted { 2 } else { 1 };
            slot.retries += times;
            let (mut retries, unwanted) = (slot.retries, slot.unwanted);
            if let Owner::Split(split) = slot.owner {
                let split = self.splits.get(split);
                if !split.action.moves_data() {
                    split.retries += times;
                    retries = split.retries;
                }
            }
            if unwanted {
                self.end(number, UNSENT);
            } else if retries > MOST_RETRIES {
                self.end(number, Status::ABORT_REQUESTED);
            } else {
                let command = self.slots.renew(number, now);
                self.rings.push(&command);
            }
        }
        self.use_free_slots();
        self.submit();
    }

    /// Sends no more commands of earlier requests to a namespace that is not served any more: another one may have its
    /// number now. Commands that the controller has end as it completes them, or at the next reset.
    #[cold]
    pub fn fail_namespace(&mut self, id: NamespaceId) {
        for number in 0..splits::MOST as u8 {
            let split = self.splits.get(number);
            if split.is_used() && split.left.namespace == id {
                split.outcome = split.outcome.and(Err(IoError::Medium));
                split.retries = MOST_RETRIES;
                self.end_split(number);
            }
        }
        for slot in self.slots.used() {
            if slot.command.namespace() == id {
                slot.retries = MOST_RETRIES;
            }
        }
    }

    fn end_unwanted(&mut self) {
        for number in 0..self.slots.len() {
            let slot = self.slots.get(number);
            if slot.used && slot.unwanted {
                self.end(number, UNSENT);
            }
        }
    }

    /// Notes the time, in seconds, and finds the commands that have taken `limit` seconds, or whose requests were
    /// cancelled. The controller has `grace` seconds beyond the limit to end them.
    pub fn late(&mut self, now: u32, limit: u32, grace: u32) -> Late {
        self.now = now;
        let mut late = Late::default();
        if self.state != DeviceQueueState::Running {
            return late;
        }
        for slot in self.slots.used() {
            let age = now.wrapping_sub(slot.since);
            late.overdue |= age >= limit + grace;
            if (age >= limit || slot.unwanted) && !slot.aborted {
                slot.aborted = true;
                late.abort.push(slot.command.id());
            }
        }
        late
    }

    /// Cancels the requests of a client with that tag, or all of them.
    pub fn cancel(&mut self, number: usize, tag: Option<Tag>) {
        let mut any = self.give_up(number, tag);
        if self.state == DeviceQueueState::Quiet {
            self.end_unwanted();
            any = false;
        }
        if any {
            self.watch.call();
        }
    }

    /// Marks requests as cancelled. Returns true if the controller may have commands of theirs.
    fn give_up(&mut self, number: usize, tag: Option<Tag>) -> bool {
        let is_meant = |other: Tag| tag.is_none_or(|tag| tag == other);
        let mut meant = [false; splits::MOST];
        for (index, meant) in meant.iter_mut().enumerate() {
            let split = self.splits.get(index as u8);
            let of_client = split.is_used() && usize::from(split.client) == number;
            if of_client && is_meant(split.tag) {
                *meant = true;
                split.outcome = split.outcome.and(Err(IoError::Cancelled));
                self.end_split(index as u8);
            }
        }
        let mut any = false;
        for slot in self.slots.used() {
            let is_meant = match slot.owner {
                Owner::Request(tag) => is_meant(tag),
                Owner::Split(split) => meant[usize::from(split)],
            };
            if usize::from(slot.client) == number && is_meant {
                slot.unwanted = true;
                any = true;
            }
        }
        any
    }

    /// Closes a client, and cancels its requests.
    pub fn close(&mut self, number: usize) {
        if !self.clients[number].is_open() {
            return;
        }
        let waited = self.clients[number].close();
        self.cancel(number, None);
        if waited {
            self.pass_on();
        }
    }

    /// Closes a client whose queue is dropped. Another queue has its place, once the controller has none of its commands.
    pub fn release(&mut self, number: usize) {
        self.close(number);
        self.clients[number].set_dropped();
    }

    /// Returns ready if the controller has no commands of a client that was closed, and so none of its memory.
    pub fn poll_close(&mut self, number: usize, context: &Context<'_>) -> Poll<()> {
        self.look();
        let client = &mut self.clients[number];
        if client.commands == 0 {
            return Poll::Ready(());
        }
        client.wake_with(context.waker());
        Poll::Pending
    }
}

impl HardwareQueue for QueuePair {
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

    /// Returns whether the controller was asked to abort a command that it still has.
    fn has_late(&mut self) -> bool {
        self.slots.used().any(|slot| slot.aborted)
    }

    fn stop(&mut self) {
        self.state = DeviceQueueState::Stopped;
    }

    fn quiet(&mut self) {
        self.state = DeviceQueueState::Quiet;
        self.rings.released();
        self.lists.set_in_use(false);
        self.end_unwanted();
    }

    fn die(&mut self) {
        self.state = DeviceQueueState::Dead;
        for number in 0..splits::MOST as u8 {
            if self.splits.get(number).is_used() {
                self.splits.get(number).outcome = Err(IoError::Medium);
                self.end_split(number);
            }
        }
        for number in 0..self.slots.len() {
            if self.slots.get(number).used {
                self.end(number, Status::DATA_TRANSFER_ERROR);
            }
        }
        self.clients.tell_all();
    }

    fn set_stuck(&mut self) {
        self.state = DeviceQueueState::Stuck;
        self.clients.tell_all();
    }
}
