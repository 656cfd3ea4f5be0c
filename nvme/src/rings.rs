//! A submission queue and the completion queue that belongs to it.

use crate::command::{Command, Completion, QueueId};
use crate::registers::doorbells;
use bulkhead_dma::{DmaPages, NoPages, WORDS};
use bulkhead_xen::{DmaMemory, PAGE_SIZE, Registers};
use core::sync::atomic::{AtomicU64, Ordering, fence};

/// The most entries of a submission queue: as many as fit a page. One of them stays free.
pub const SUBMISSIONS: usize = WORDS / Command::WORDS;

/// The most entries of a completion queue: as many as fit a page.
const COMPLETIONS: usize = WORDS / Completion::WORDS;

// The controller's pages are as large as this domain's, so that each queue or list is within one page of both.
const _: () = assert!(crate::command::PAGE == PAGE_SIZE);

/// The number of each queue's page.
const SUBMISSION: usize = 0;
const COMPLETION: usize = 1;

/// The number of completions that are taken before the completion doorbell is rung, as long as the caller does not wait
/// for an interrupt next.
const UNACKNOWLEDGED: u32 = (COMPLETIONS / 4) as u32;

/// A pair of queues, of one page each.
pub struct Rings {
    pages: DmaPages,
    submissions: usize,
    completions: usize,
    /// The next entry to be filled, and the value that the doorbell was last rung with.
    tail: usize,
    told: usize,
    /// The next entry to be read, and the phase that it has once the controller has written it.
    head: usize,
    phase: bool,
    unacknowledged: u32,
    submission_doorbell: usize,
    completion_doorbell: usize,
    /// The number of writes to doorbells.
    doorbells: u64,
}

impl Rings {
    /// Allocates the memory of both queues.
    pub fn new(memory: &dyn DmaMemory) -> Result<Rings, NoPages> {
        Ok(Rings {
            pages: DmaPages::new(memory, 2)?,
            submissions: 0,
            completions: 0,
            tail: 0,
            told: 0,
            head: 0,
            phase: true,
            unacknowledged: 0,
            submission_doorbell: 0,
            completion_doorbell: 0,
            doorbells: 0,
        })
    }

    /// Empties both, for a controller that takes queues of up to `most` entries and is told of them next. `stride` is
    /// the number of bytes from one doorbell to the next.
    pub fn reset(&mut self, queue: QueueId, most: usize, stride: usize) {
        self.pages.clear();
        self.pages.set_in_use(true);
        // Powers of two, so that indices wrap without a division.
        let power = |entries: usize| 1 << entries.ilog2();
        self.submissions = power(most.clamp(2, SUBMISSIONS));
        self.completions = power(most.clamp(2, COMPLETIONS));
        (self.tail, self.told, self.head) = (0, 0, 0);
        (self.phase, self.unacknowledged) = (true, 0);
        let (submission, completion) = doorbells(queue.0, stride);
        self.submission_doorbell = submission;
        self.completion_doorbell = completion;
    }

    /// Notes that the controller does not access the queues any more.
    pub fn released(&mut self) {
        self.pages.set_in_use(false);
    }

    /// Returns the bus address and the number of entries of the submission queue.
    pub fn submission_queue(&self) -> (u64, usize) {
        (self.pages.address(SUBMISSION), self.submissions)
    }

    /// Returns the bus address and the number of entries of the completion queue.
    pub fn completion_queue(&self) -> (u64, usize) {
        (self.pages.address(COMPLETION), self.completions)
    }

    /// Returns the number of commands that may be outstanding at a time.
    pub fn depth(&self) -> usize {
        // The completion queue has as many entries at least, so it never overflows (`acknowledge`).
        self.submissions - 1
    }

    /// Adds a command. The caller has no more than [`depth`](Self::depth) commands outstanding, so that the entry is
    /// free: a controller that has completed a command has fetched it and all before it.
    #[inline]
    pub fn push(&mut self, command: &Command) {
        let words = self.pages.words(SUBMISSION);
        let first = (self.tail % SUBMISSIONS) * Command::WORDS;
        for (place, word) in words[first..first + Command::WORDS]
            .iter()
            .zip(command.words())
        {
            place.store(word.to_le(), Ordering::Relaxed);
        }
        self.tail = (self.tail + 1) & (self.submissions - 1);
    }

    /// Rings the submission doorbell, if commands were added.
    #[inline]
    pub fn submit(&mut self, registers: &dyn Registers) {
        if self.told != self.tail {
            self.told = self.tail;
            self.doorbells += 1;
            // The entries are written before the doorbell is rung.
            fence(Ordering::Release);
            registers.write32(self.submission_doorbell, self.tail as u32);
        }
    }

    /// Takes the next completion, if the controller has written one.
    #[inline]
    pub fn take(&mut self) -> Option<Completion> {
        let words = self.pages.words(COMPLETION);
        let first = (self.head % COMPLETIONS) * Completion::WORDS;
        let load = |word: &AtomicU64, order| u64::from_le(word.load(order));
        let second = load(&words[first + 1], Ordering::Acquire);
        if Completion::phase_of(second) != self.phase {
            return None;
        }
        let completion = Completion::from_words([load(&words[first], Ordering::Relaxed), second]);
        self.head = (self.head + 1) & (self.completions - 1);
        self.phase ^= self.head == 0;
        self.unacknowledged += 1;
        Some(completion)
    }

    /// Rings the completion doorbell for the completions that were taken, if there are any and the caller waits for an
    /// interrupt next (`listens`), or if there are enough of them. Returns whether it was rung.
    #[inline]
    pub fn acknowledge(&mut self, registers: &dyn Registers, listens: bool) -> bool {
        // The completions of all outstanding commands must fit beside those that are not acknowledged.
        let room = (self.completions - self.submissions) as u32 + 1;
        let tells = self.unacknowledged >= if listens { 1 } else { UNACKNOWLEDGED.min(room) };
        if tells {
            self.unacknowledged = 0;
            self.doorbells += 1;
            registers.write32(self.completion_doorbell, self.head as u32);
        }
        tells
    }

    /// Returns the number of writes to doorbells so far.
    pub fn doorbell_writes(&self) -> u64 {
        self.doorbells
    }
}
