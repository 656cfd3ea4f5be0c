//! A queue pair: the commands of all queues that one vCPU serves, or several vCPUs if the controller has fewer pairs
//! than there are vCPUs.
//!
//! If each vCPU has a pair and each pair an interrupt, that vCPU is the only one that locks the pair while requests are
//! served, and does not wait for the lock. Otherwise vCPUs that share a pair, or the first vCPU with the controller's
//! only interrupt, may wait for each other. The controller's task locks it to start, to stop and, each second, to find
//! commands that take too long.

mod control;
mod parts;

use crate::command::{Command, Completion, DeallocateLimits, QueueId, Status, nvm};
use crate::prp::{Part, PrpLists, run};
use crate::rings::{Rings, SUBMISSIONS};
use crate::slots::{CommandSlots, Owner};
use crate::splits::{Action, Blocks, Splits};
use alloc::sync::Arc;
use bulkhead_dma::{DeviceQueueState, NoPages, QueueClients, Watch};
use bulkhead_grant::OutOfMemory;
use bulkhead_images::{IoError, IoSegment, Submitted, Tag};
use bulkhead_xen::{DmaMemory, Registers};
use core::sync::atomic::Ordering;
use core::task::{Context, Poll};

/// The number of times that a command is sent again which has failed and may be retried, or which a reset has
/// interrupted.
const MOST_RETRIES: u8 = 3;

/// The counts of a queue pair's commands so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueuePairCounts {
    /// Commands that were sent. One that is sent again is not counted again.
    pub commands: u64,
    /// Those of them that serve a part of a request.
    pub parts: u64,
    /// Completions with an error, including those after which a command was sent again.
    pub failed: u64,
    /// Writes to doorbells.
    pub doorbells: u64,
    /// Looks for completions at a time at which some were expected, with interrupts held back.
    pub looks: u64,
}

/// A queue pair.
pub struct QueuePair {
    queue: QueueId,
    registers: Arc<dyn Registers>,
    watch: Arc<Watch>,
    state: DeviceQueueState,
    rings: Rings,
    lists: PrpLists,
    slots: CommandSlots,
    splits: Splits,
    /// The most that the controller deallocates or clears with one command.
    limits: DeallocateLimits,
    clients: QueueClients,
    /// The current time in seconds, as of the last check of the commands.
    now: u32,
    counts: QueuePairCounts,
}

impl QueuePair {
    /// Allocates the memory of a queue pair whose commands transfer at most `most_bytes` bytes, and deallocate or clear
    /// what is within `limits`.
    pub fn new(
        queue: QueueId,
        (registers, memory): (Arc<dyn Registers>, &dyn DmaMemory),
        watch: Arc<Watch>,
        (most_bytes, limits): (usize, DeallocateLimits),
    ) -> Result<QueuePair, NoPages> {
        Ok(QueuePair {
            queue,
            registers,
            watch,
            state: DeviceQueueState::Quiet,
            rings: Rings::new(memory)?,
            lists: PrpLists::new(memory, SUBMISSIONS - 1, most_bytes)?,
            slots: CommandSlots::new(SUBMISSIONS - 1)?,
            splits: Splits::new()?,
            limits,
            clients: QueueClients::default(),
            now: 0,
            counts: QueuePairCounts::default(),
        })
    }

    /// Returns the most requests that a queue may have at a time.
    pub fn most_requests(&self) -> usize {
        self.slots.len()
    }

    /// Adds a queue for up to `depth` requests at a time, and returns its number.
    pub fn open(&mut self, depth: usize) -> Result<usize, OutOfMemory> {
        self.clients.open(depth)
    }

    /// Takes a request, and sends it or the part of it that can be sent now.
    #[inline]
    pub fn transfer(
        &mut self,
        number: usize,
        tag: Tag,
        action: Action,
        blocks: Blocks,
        segments: &[IoSegment],
    ) -> Submitted {
        if let Some(submitted) = self.cannot_take(number) {
            return submitted;
        }
        let Some(slot) = self.slots.next() else {
            return self.clients.busy(number);
        };
        if action.moves_data() {
            let run = match run(segments.iter().map(Part::of), &self.lists.of(slot)) {
                Ok(run) => run,
                Err(error) => return Submitted::Done(Err(error)),
            };
            if run.parts < segments.len() {
                return self.split(number, tag, (action, blocks), segments);
            }
            let command = transfer(action, &blocks, blocks.count).with_data(run.pointer);
            self.send(command, Owner::Request(tag), number);
        } else if blocks.count > action.most_blocks(blocks.shift, self.limits) {
            return self.split(number, tag, (action, blocks), segments);
        } else {
            let command = forget(action, &blocks, blocks.count, &self.lists, slot);
            self.send(command, Owner::Request(tag), number);
        }
        self.clients.note_taken(number);
        Submitted::Pending
    }

    /// Takes a request to make completed writes durable.
    pub fn flush(&mut self, number: usize, tag: Tag, blocks: Blocks) -> Submitted {
        if let Some(submitted) = self.cannot_take(number) {
            return submitted;
        }
        if self.slots.free() == 0 {
            return self.clients.busy(number);
        }
        self.send(nvm::flush(blocks.namespace), Owner::Request(tag), number);
        self.clients.note_taken(number);
        Submitted::Pending
    }

    /// Returns the answer to a request that cannot be taken now: busy, or failed. `None` if it can be taken.
    #[inline]
    fn cannot_take(&mut self, number: usize) -> Option<Submitted> {
        self.clients
            .cannot_take(number, self.state, self.slots.len())
    }

    /// Sends a command from the next free slot.
    #[inline]
    fn send(&mut self, command: Command, owner: Owner, client: usize) {
        if let Some(command) = self.slots.take(command, owner, client as u16, self.now) {
            self.rings.push(&command);
            self.clients[client].commands += 1;
            self.counts.commands += 1;
            self.watch.begin_ticks();
        }
    }

    /// Rings the doorbell for the commands that were put into the submission queue.
    #[inline]
    pub fn submit(&mut self) {
        if self.state == DeviceQueueState::Running {
            self.rings.submit(&*self.registers);
        }
    }

    /// Takes the completions that the controller has written, and puts commands that waited for a slot into the
    /// submission queue. Returns whether there were any completions. The completion doorbell is rung once there are
    /// enough of them, or by the next [`look`](Self::look), which follows since each completion raises an interrupt.
    #[inline]
    pub fn collect(&mut self) -> bool {
        if self.state != DeviceQueueState::Running {
            return false;
        }
        let mut any = false;
        while let Some(completion) = self.rings.take() {
            any = true;
            if !self.completed(completion) {
                return false;
            }
        }
        if any && (self.clients.any_waits() || self.splits.any()) {
            self.use_free_slots();
        }
        self.rings.acknowledge(&*self.registers, false);
        any
    }

    /// Takes all completions, and sends commands that waited for a slot. Returns whether there were any completions.
    pub fn take(&mut self) -> bool {
        let mut any = false;
        while self.collect() {
            any = true;
        }
        self.submit();
        any
    }

    /// Takes all completions, and sends commands that waited for a slot. Completions that come after this raise an
    /// interrupt.
    pub fn look(&mut self) {
        loop {
            self.take();
            // A controller may raise no interrupt while completions have not been acknowledged (the IS bit of MSI,
            // section 3.5.1 of the PCIe Transport specification): those that it wrote before the doorbell was rung are
            // looked for once more.
            if self.state != DeviceQueueState::Running
                || !self.rings.acknowledge(&*self.registers, true)
            {
                return;
            }
        }
    }

    /// Handles a completion. Returns false if there is no such command: the queue pair is not looked at any more until
    /// the controller was reset.
    #[inline]
    fn completed(&mut self, completion: Completion) -> bool {
        let Some(slot) = self.slots.find(completion.id()) else {
            self.break_down(completion);
            return false;
        };
        let status = completion.status();
        if status.is_success() || !self.send_again(slot, status) {
            self.end(slot, status);
        }
        true
    }

    /// Counts a failed command, and sends it again if it may be retried. Returns false if it is not sent again.
    #[cold]
    fn send_again(&mut self, number: usize, status: Status) -> bool {
        self.counts.failed += 1;
        let slot = self.slots.get(number);
        let again = status.may_be_retried() && !status.is_aborted();
        if !again || slot.unwanted || slot.retries >= MOST_RETRIES {
            return false;
        }
        slot.retries += 1;
        let command = self.slots.renew(number, self.now);
        self.rings.push(&command);
        true
    }

    /// Ends a command, and frees its slot.
    #[inline]
    fn end(&mut self, number: usize, status: Status) {
        let slot = self.slots.release(number);
        let outcome = match status.outcome() {
            Err(_) if status.is_aborted() && slot.unwanted => Err(IoError::Cancelled),
            outcome => outcome,
        };
        self.settle(slot.owner, usize::from(slot.client), outcome);
        self.clients[usize::from(slot.client)].command_ended();
    }

    /// Passes the outcome of a command to the request that it belongs to.
    #[inline]
    fn settle(&mut self, owner: Owner, client: usize, outcome: Result<(), IoError>) {
        match owner {
            Owner::Request(tag) => self.clients[client].complete(tag, outcome),
            Owner::Split(number) => {
                let split = self.splits.get(number);
                split.pending -= 1;
                if split.outcome.is_ok() {
                    split.outcome = outcome;
                }
                self.end_split(number);
            }
        }
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
            let more = self.collect();
            // Commands that got a slot because others have completed.
            self.submit();
            let drained = self.clients[number].drain(sink);
            if drained.gave_up {
                self.pass_on();
            }
            if drained.ready {
                return Poll::Ready(());
            }
            if !more {
                break;
            }
        }
        self.clients[number].wake_with(context.waker());
        Poll::Pending
    }
}

/// Returns the command that reads or writes the first `count` blocks.
#[inline]
fn transfer(action: Action, blocks: &Blocks, count: u64) -> Command {
    match action {
        Action::Write => nvm::write(blocks.namespace, blocks.start, count as u32),
        Action::WriteThrough => nvm::write_through(blocks.namespace, blocks.start, count as u32),
        _ => nvm::read(blocks.namespace, blocks.start, count as u32),
    }
}

/// Returns the command that deallocates or clears the first `count` blocks. A range is written into the slot's list.
fn forget(action: Action, blocks: &Blocks, count: u64, lists: &PrpLists, slot: usize) -> Command {
    if action == Action::WriteZeroes {
        return nvm::write_zeroes(blocks.namespace, blocks.start, count as u32);
    }
    let list = lists.of(slot);
    let range = nvm::DeallocateRange {
        start: blocks.start,
        blocks: count as u32,
    };
    for (entry, word) in list.entries.iter().zip(range.words()) {
        entry.store(word.to_le(), Ordering::Relaxed);
    }
    nvm::deallocate(blocks.namespace, 1).with_data([list.address, 0])
}
