//! A request of a queue, and its way to the server and back.

use crate::coverage::Coverage;
use crate::fault::NbdViolation;
use crate::segments::Segments;
use crate::wire::{Command, CommandKind, ErrorCode};
use bulkhead_grant::OutOfMemory;
use bulkhead_images::{IoError, MOST_FORGOTTEN, Tag};

/// The most errors that a server names for one request.
const MOST_ERRORS: u8 = 16;

/// The place of a request on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryState {
    /// There is no request here.
    Free,
    /// The request is to be sent.
    Waits,
    /// The request was sent in part.
    IsSent,
    /// The server has the whole request.
    Sent,
}

/// The content of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// The operation.
    pub kind: CommandKind,
    /// The first byte.
    pub offset: u64,
    /// The number of bytes.
    pub len: u64,
    /// True if written data has to be durable when the request is answered.
    pub fua: bool,
}

impl Work {
    /// Returns whether the request changes the guest's data.
    pub fn changes_data(&self) -> bool {
        matches!(
            self.kind,
            CommandKind::Write | CommandKind::Trim | CommandKind::WriteZeroes
        )
    }
}

/// A request, or the place of one.
pub struct Entry {
    /// The tag by which the queue's user knows the request.
    pub tag: Tag,
    pub work: Work,
    pub segments: Segments,
    pub state: EntryState,
    /// True if the queue does not wait for it any more: it is not sent again.
    pub unwanted: bool,
    /// Its place in the order of submission.
    pub order: u64,
    /// The number of the flush, if it is one.
    pub flush: u64,
    /// The number of its present command.
    generation: u32,
    /// True if the server has answered with an error before all data was sent.
    early: bool,
    /// The bytes of earlier commands that were answered.
    done: u64,
    /// The parts of a read that have come.
    got: Coverage,
    error: ErrorCode,
    errors: u8,
}

impl Entry {
    /// Takes the memory for a request.
    pub fn new() -> Result<Entry, OutOfMemory> {
        Ok(Entry {
            tag: Tag(0),
            work: Work {
                kind: CommandKind::Flush,
                offset: 0,
                len: 0,
                fua: false,
            },
            segments: Segments::new()?,
            state: EntryState::Free,
            unwanted: false,
            order: 0,
            flush: 0,
            generation: 0,
            early: false,
            done: 0,
            got: Coverage::NONE,
            error: ErrorCode::NONE,
            errors: 0,
        })
    }

    /// Begins a request. The caller puts in its segments.
    #[inline]
    pub fn begin(&mut self, tag: Tag, work: Work, order: u64, flush: u64) {
        (self.tag, self.work) = (tag, work);
        (self.order, self.flush) = (order, flush);
        (self.state, self.unwanted) = (EntryState::Waits, false);
        (self.done, self.got) = (0, Coverage::NONE);
        (self.error, self.errors) = (ErrorCode::NONE, 0);
    }

    /// Returns whether the server may answer the command of that number: the server has it, at least in part.
    #[inline]
    pub fn expects(&self, generation: u32) -> bool {
        let there = match self.state {
            EntryState::Sent => true,
            EntryState::IsSent => !self.early,
            EntryState::Free | EntryState::Waits => false,
        };
        there && self.generation == generation
    }

    /// Notes that all of the request's command was sent. Returns true if it was answered before.
    #[inline]
    pub fn was_sent(&mut self) -> bool {
        self.state = EntryState::Sent;
        self.early
    }

    /// Notes an answer before all data was sent. Returns false if the answer reports success, which is impossible
    /// without the data.
    pub fn answered_early(&mut self) -> bool {
        self.early = true;
        self.error != ErrorCode::NONE
    }

    /// Returns the number of bytes of the present command.
    #[inline]
    pub fn part(&self) -> u64 {
        match self.work.kind {
            CommandKind::Trim | CommandKind::WriteZeroes => {
                (self.work.len - self.done).min(MOST_FORGOTTEN)
            }
            _ => self.work.len,
        }
    }

    /// Returns the next command. Its data is in the segments, from the first byte on.
    #[inline]
    pub fn next_command(&mut self, generation: u32, cookie: u64) -> Command {
        (self.generation, self.state, self.early) = (generation, EntryState::IsSent, false);
        self.segments.rewind();
        Command {
            kind: self.work.kind,
            cookie,
            offset: self.work.offset + self.done,
            len: self.part() as u32,
            fua: self.work.fua,
        }
    }

    /// Notes that bytes of a read have come, which are within the read. Fails if some of them had come before.
    #[inline]
    pub fn note_data(&mut self, start: u64, len: u64) -> Result<(), NbdViolation> {
        self.got.add(start, len)
    }

    /// Notes an error. Returns false if there were too many.
    pub fn note_error(&mut self, error: ErrorCode) -> bool {
        // That it has not been done at all counts for more than why a part of it was not.
        if self.error == ErrorCode::NONE || error == ErrorCode::SHUTTING_DOWN {
            self.error = error;
        }
        self.errors += 1;
        self.errors <= MOST_ERRORS
    }

    /// Returns whether the server has not done the request because it is being shut down.
    #[inline]
    pub fn is_refused_for_now(&self) -> bool {
        self.error == ErrorCode::SHUTTING_DOWN
    }

    /// Returns whether all data of a read has come, or an error in place of it.
    #[inline]
    pub fn is_whole(&self) -> bool {
        self.work.kind != CommandKind::Read
            || self.error != ErrorCode::NONE
            || self.got.is_whole(self.work.len)
    }

    /// Notes that the request's command was answered. Returns the outcome of the request; `None` if it needs another
    /// command.
    #[inline]
    pub fn answered(&mut self) -> Option<Result<(), IoError>> {
        self.done += self.part();
        let discards = matches!(self.work.kind, CommandKind::Trim | CommandKind::WriteZeroes);
        if self.error == ErrorCode::NONE && self.done < self.work.len && !self.unwanted {
            return None;
        }
        Some(self.error.outcome(discards))
    }

    /// Has the present command sent again.
    pub fn ask_again(&mut self) {
        self.state = EntryState::Waits;
        self.got = Coverage::NONE;
        (self.error, self.errors) = (ErrorCode::NONE, 0);
    }
}
