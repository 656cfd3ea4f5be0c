//! One of the queues of guests' rings that share a queue of a device: the device's commands that it uses, and its
//! completions.

use alloc::vec::Vec;
use bulkhead_grant::OutOfMemory;
use bulkhead_grant::memory::room_for;
use bulkhead_images::{IoError, QueueState, Tag};
use core::task::Waker;

/// The state of one queue.
pub struct QueueClient {
    /// Requests that were taken and have not completed.
    pub requests: usize,
    /// Commands that the device has.
    pub commands: usize,
    depth: usize,
    done: Vec<(Tag, Result<(), IoError>)>,
    waker: Option<Waker>,
    state: QueueState,
    slot_wait: SlotWait,
}

/// What a queue waits for after one of its requests was not taken, because the device had no free command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SlotWait {
    Nothing,
    /// It waits for a free command.
    Waits,
    /// Its task was woken because a command is free, and has not submitted since. `yet`: [`QueueClient::drain`] has told it
    /// so already.
    Told {
        yet: bool,
    },
}

impl QueueClient {
    /// Returns a queue for up to `depth` requests at a time.
    pub fn new(depth: usize) -> Result<QueueClient, OutOfMemory> {
        Ok(QueueClient {
            requests: 0,
            commands: 0,
            depth,
            done: room_for(depth)?,
            waker: None,
            state: QueueState::Open,
            slot_wait: SlotWait::Nothing,
        })
    }

    /// Opens it again, for another queue, after it [became unused](Self::is_unused).
    pub fn reopen(&mut self, depth: usize) -> Result<(), OutOfMemory> {
        *self = QueueClient::new(depth)?;
        Ok(())
    }

    /// Returns whether it can be opened again: its queue was dropped, and the device has none of its commands.
    pub fn is_unused(&self) -> bool {
        self.state.is_dropped() && self.commands == 0
    }

    /// Returns whether it is open.
    pub fn is_open(&self) -> bool {
        self.state.is_open()
    }

    /// Closes it: completions that it has not passed on yet, and later ones, are dropped. Returns true if it was waiting
    /// for a command.
    pub fn close(&mut self) -> bool {
        self.state = QueueState::Closed;
        self.requests = 0;
        self.done.clear();
        core::mem::replace(&mut self.slot_wait, SlotWait::Nothing) != SlotWait::Nothing
    }

    /// Notes that its queue, which was closed, is dropped.
    pub fn set_dropped(&mut self) {
        self.state = QueueState::Dropped;
    }

    /// Returns whether it has as many requests as it may have.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.requests >= self.depth
    }

    /// Returns whether it is to have a share of the device's commands: it uses some, or waits for one.
    pub fn is_active(&self) -> bool {
        self.commands > 0 || self.slot_wait != SlotWait::Nothing
    }

    /// Notes that a request was refused because the device had no free command. Returns true if it did not wait before.
    pub fn note_busy(&mut self) -> bool {
        let waited = core::mem::replace(&mut self.slot_wait, SlotWait::Waits) != SlotWait::Nothing;
        !waited
    }

    /// Notes that a request was taken. Returns true if it has waited for that.
    #[inline]
    pub fn taken(&mut self) -> bool {
        self.requests += 1;
        self.slot_wait != SlotWait::Nothing && {
            self.slot_wait = SlotWait::Nothing;
            true
        }
    }

    /// Returns whether it waits and was not told of a free command yet.
    pub fn waits(&self) -> bool {
        self.slot_wait == SlotWait::Waits
    }

    /// Tells it that it may try again.
    pub fn tell(&mut self) {
        self.slot_wait = SlotWait::Told { yet: false };
        self.wake();
    }

    /// Notes that a request has completed.
    #[inline]
    pub fn complete(&mut self, tag: Tag, outcome: Result<(), IoError>) {
        if self.state.is_open() {
            self.requests -= 1;
            self.done.push((tag, outcome));
            self.wake();
        }
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Notes that a command has ended. A queue that is being closed learns when it was the last one.
    #[inline]
    pub fn command_ended(&mut self) {
        self.commands -= 1;
        if !self.state.is_open() && self.commands == 0 {
            self.wake();
        }
    }

    /// Passes completions to `sink`. Also reports, once, that a command is free for a request that was refused; if the
    /// queue has not used it by the next call, its wait is over and another queue may have the command.
    #[inline]
    pub fn drain(&mut self, sink: &mut dyn FnMut(Tag, Result<(), IoError>)) -> Drained {
        let any = !self.done.is_empty();
        for (tag, outcome) in self.done.drain(..) {
            sink(tag, outcome);
        }
        let mut drained = Drained {
            ready: any,
            gave_up: false,
        };
        if let SlotWait::Told { yet } = self.slot_wait {
            match yet {
                false => {
                    self.slot_wait = SlotWait::Told { yet: true };
                    drained.ready = true;
                }
                true => {
                    self.slot_wait = SlotWait::Nothing;
                    drained.gave_up = true;
                }
            }
        }
        drained
    }

    /// Keeps the waker of the task that waits for a completion, or for a closed queue's last command to end.
    #[inline]
    pub fn wake_with(&mut self, waker: &Waker) {
        match &mut self.waker {
            Some(kept) => kept.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
    }
}

/// What [`QueueClient::drain`] has found.
pub struct Drained {
    /// There were completions, or a refused request may be submitted again.
    pub ready: bool,
    /// The queue was told that it may submit again, and did not: another one may have the command.
    pub gave_up: bool,
}
