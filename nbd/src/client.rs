//! One of the queues that share a line: its requests, and its completions.

use crate::entry::{Entry, EntryState};
use alloc::vec::Vec;
use bulkhead_grant::OutOfMemory;
use bulkhead_grant::memory::{filled, room_for};
use bulkhead_images::{IoError, QueueState, Tag};
use core::task::Waker;

/// The most requests of a queue: those of the largest ring.
pub const MOST_REQUESTS: usize = 512;

/// A queue's part of a line. All of its memory is taken when it is opened.
pub struct LineClient {
    pub entries: Vec<Entry>,
    free: Vec<u16>,
    done: Vec<(Tag, Result<(), IoError>)>,
    waker: Option<Waker>,
    state: QueueState,
    /// True if a request was not taken, and none has completed since.
    busy: bool,
}

impl LineClient {
    /// Returns a queue for up to `depth` requests at a time.
    pub fn new(depth: usize) -> Result<LineClient, OutOfMemory> {
        let mut client = LineClient {
            entries: Vec::new(),
            free: Vec::new(),
            done: Vec::new(),
            waker: None,
            state: QueueState::Open,
            busy: false,
        };
        client.reopen(depth)?;
        Ok(client)
    }

    /// Opens, as another queue, one that [is unused](Self::is_unused).
    pub fn reopen(&mut self, depth: usize) -> Result<(), OutOfMemory> {
        let mut entries = room_for(depth)?;
        for _ in 0..depth {
            entries.push(Entry::new()?);
        }
        self.free = filled(depth, |entry| (depth - 1 - entry) as u16)?;
        self.done = room_for(depth)?;
        self.entries = entries;
        (self.state, self.busy, self.waker) = (QueueState::Open, false, None);
        Ok(())
    }

    /// Closes the queue: no later completion is reported.
    pub fn close(&mut self) {
        self.state = QueueState::Closed;
        self.done.clear();
    }

    /// Returns whether the queue is open.
    #[inline]
    pub fn is_open(&self) -> bool {
        self.state.is_open()
    }

    /// Notes that the queue, which was closed, is dropped.
    pub fn set_dropped(&mut self) {
        self.state = QueueState::Dropped;
    }

    /// Returns whether the queue was dropped and the server has none of its requests.
    pub fn is_unused(&self) -> bool {
        self.state.is_dropped() && self.free.len() == self.entries.len()
    }

    /// Returns whether the server may still change data for a request of this queue, or has got a write's data in part.
    pub fn may_change_data(&self) -> bool {
        let mut entries = self.entries.iter();
        entries.any(|entry| {
            matches!(entry.state, EntryState::IsSent | EntryState::Sent)
                && entry.work.changes_data()
        })
    }

    /// Takes the place of a request; `None` if all are taken.
    #[inline]
    pub fn take(&mut self) -> Option<u16> {
        let free = self.free.pop();
        self.busy |= free.is_none();
        free
    }

    /// Ends a request.
    #[inline]
    pub fn end(&mut self, slot: u16, outcome: Result<(), IoError>) {
        let entry = &mut self.entries[usize::from(slot)];
        debug_assert_ne!(entry.state, EntryState::Free);
        entry.state = EntryState::Free;
        entry.segments.clear();
        let tag = entry.tag;
        self.free.push(slot);
        if self.state.is_open() {
            self.done.push((tag, outcome));
        }
        self.wake();
    }

    /// Forgets a request that was not begun.
    pub fn forget(&mut self, slot: u16) {
        let entry = &mut self.entries[usize::from(slot)];
        entry.state = EntryState::Free;
        entry.segments.clear();
        self.free.push(slot);
    }

    /// Wakes the task that waits for a completion, or for the end of the queue.
    pub fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Passes the completed requests to `sink`. Returns whether there was one, or one that was not taken may be tried
    /// again.
    #[inline]
    pub fn drain(&mut self, sink: &mut dyn FnMut(Tag, Result<(), IoError>)) -> bool {
        let again = self.busy && !self.free.is_empty();
        self.busy &= !again;
        let any = !self.done.is_empty() || again;
        for (tag, outcome) in self.done.drain(..) {
            sink(tag, outcome);
        }
        any
    }

    /// Keeps the waker of the task that waits for a completion.
    #[inline]
    pub fn wake_with(&mut self, waker: &Waker) {
        match &mut self.waker {
            Some(kept) => kept.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
    }
}
