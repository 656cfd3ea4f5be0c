//! Queues as the controller knows them.

/// A submission queue.
pub struct SubmissionQueue {
    base: u64,
    entries: usize,
    head: usize,
    tail: usize,
    /// The completion queue.
    pub completions: u16,
}

impl SubmissionQueue {
    pub fn new(base: u64, entries: usize, completions: u16) -> Self {
        SubmissionQueue {
            base,
            entries,
            head: 0,
            tail: 0,
            completions,
        }
    }

    /// The driver has rung its doorbell. False if that cannot be.
    pub fn ring(&mut self, tail: usize) -> bool {
        let possible = tail < self.entries;
        if possible {
            self.tail = tail;
        }
        possible
    }

    /// Returns the address of the next command.
    pub fn next(&mut self) -> Option<u64> {
        if self.head == self.tail {
            return None;
        }
        let at = self.head;
        self.head = (self.head + 1) % self.entries;
        Some(self.base + (at * 64) as u64)
    }

    pub fn head(&self) -> u16 {
        self.head as u16
    }
}

/// A completion queue.
pub struct CompletionQueue {
    base: u64,
    entries: usize,
    tail: usize,
    /// What the driver has taken.
    head: usize,
    phase: bool,
    pub vector: Option<u16>,
}

impl CompletionQueue {
    pub fn new(base: u64, entries: usize, vector: Option<u16>) -> Self {
        CompletionQueue {
            base,
            entries,
            tail: 0,
            head: 0,
            phase: true,
            vector,
        }
    }

    /// The driver has rung its doorbell. False if that cannot be.
    pub fn ring(&mut self, head: usize) -> bool {
        let possible = head < self.entries;
        if possible {
            self.head = head;
        }
        possible
    }

    /// Returns whether the driver has taken all entries.
    pub fn is_taken(&self) -> bool {
        self.head == self.tail
    }

    /// Returns the address of the next entry, and its phase. `None` if the queue is full.
    pub fn next(&mut self) -> Option<(u64, bool)> {
        let next = (self.tail + 1) % self.entries;
        if next == self.head {
            return None;
        }
        let at = (self.base + (self.tail * 16) as u64, self.phase);
        self.tail = next;
        self.phase ^= next == 0;
        Some(at)
    }
}
