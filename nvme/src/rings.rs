//! A submission queue and the completion queue that belongs to it.

use crate::command::{Command, Completion, QueueId};
use crate::registers::doorbells;
use bulkhead_dma::{DmaPages, NoPages, WORDS};
use bulkhead_xen::{DmaMemory, PAGE_SIZE, Registers};
use core::sync::atomic::{AtomicU64, Ordering, fence};

/// The most entries of a submission queue: those of a page. One of them stays free.
pub const SUBMISSIONS: usize = WORDS / Command::WORDS;

/// The most entries of a completion queue: those of a page.
const COMPLETIONS: usize = WORDS / Completion::WORDS;

// An entry of a list of pages, or of a queue, is found in the same page by both sides.
const _: () = assert!(crate::command::PAGE == PAGE_SIZE);

/// The page of each queue.
const SUBMISSION: usize = 0;
const COMPLETION: usize = 1;

/// The entries that are taken off a completion queue before the controller learns of it, as long as no interrupt is
/// waited for.
const UNACKNOWLEDGED: u32 = (COMPLETIONS / 4) as u32;

/// A pair of queues, of one page each.
pub struct Rings {
    pages: DmaPages,
    submissions: usize,
    completions: usize,
    /// The next entry to be filled, and what the controller knows of that.
    tail: usize,
    told: usize,
    /// The next entry to be read, and the phase that it has when it was written.
    head: usize,
    phase: bool,
    unacknowledged: u32,
    submission_doorbell: usize,
    completion_doorbell: usize,
    /// The writes to doorbells.
    doorbells: u64,
}

impl Rings {
    /// Takes the memory of both.
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

    /// Empties both, for a controller that takes queues of up to `most` entries and is told of them next.
    pub fn reset(&mut self, queue: QueueId, most: usize, stride: usize) {
        self.pages.clear();
        self.pages.set_in_use(true);
        // Powers of two: the place of an entry is then found without a division.
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

    /// Adds a command. The caller has no more than [`depth`](Self::depth) outstanding: a controller that has completed
    /// a command has taken it and all before it off the queue.
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

    /// Tells the controller of the commands that were added.
    #[inline]
    pub fn submit(&mut self, registers: &dyn Registers) {
        if self.told != self.tail {
            self.told = self.tail;
            self.doorbells += 1;
            // The entries are there before the controller is told.
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

    /// Tells the controller which completions were taken, if there are any and an interrupt is waited for next
    /// (`listens`), or if there are enough of them to make that worthwhile. Returns whether it was told.
    #[inline]
    pub fn acknowledge(&mut self, registers: &dyn Registers, listens: bool) -> bool {
        // All that is outstanding must find room beside what the controller does not know to be taken.
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
