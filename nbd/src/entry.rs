//! One request of a queue, and where it is on its way.

use crate::coverage::Coverage;
use crate::fault::Lie;
use crate::segments::Segments;
use crate::wire::{Command, CommandKind, ErrorCode};
use bulkhead_grant::OutOfMemory;
use bulkhead_images::{IoError, MOST_FORGOTTEN, Tag};

/// The most errors that a server names for one request.
const MOST_ERRORS: u8 = 16;

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// There is none.
    Free,
    /// It is to be sent.
    Waits,
    /// Some of it was sent.
    IsSent,
    /// The server has it.
    Sent,
}

/// What a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// What is to be done.
    pub kind: CommandKind,
    /// The first byte.
    pub offset: u64,
    /// The number of bytes.
    pub len: u64,
    /// What is written is durable when it is answered.
    pub fua: bool,
}

impl Work {
    /// Returns whether the guest's data is changed.
    pub fn changes_data(&self) -> bool {
        matches!(
            self.kind,
            CommandKind::Write | CommandKind::Trim | CommandKind::WriteZeroes
        )
    }
}

/// A request, or the place of one.
pub struct Entry {
    /// What the queue's user calls it.
    pub tag: Tag,
    pub work: Work,
    pub segments: Segments,
    pub place: Place,
    /// Nobody waits for it any more: it is not sent again.
    pub unwanted: bool,
    /// Its place in the order of submission.
    pub order: u64,
    /// The number of the flush, if it is one.
    pub flush: u64,
    /// The number of its present command.
    generation: u32,
    /// The server has answered with an error before all data was sent.
    early: bool,
    /// The bytes of earlier commands that were answered.
    done: u64,
    /// What has come of a read.
    got: Coverage,
    error: ErrorCode,
    errors: u8,
}

impl Entry {
    /// Takes the memory of a request.
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
            place: Place::Free,
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

    /// Begins with a request. The caller puts its segments in.
    #[inline]
    pub fn begin(&mut self, tag: Tag, work: Work, order: u64, flush: u64) {
        (self.tag, self.work) = (tag, work);
        (self.order, self.flush) = (order, flush);
        (self.place, self.unwanted) = (Place::Waits, false);
        (self.done, self.got) = (0, Coverage::NONE);
        (self.error, self.errors) = (ErrorCode::NONE, 0);
    }

    /// Returns whether the server may answer the command of that number: it has it, at least in part.
    #[inline]
    pub fn expects(&self, generation: u32) -> bool {
        let there = match self.place {
            Place::Sent => true,
            Place::IsSent => !self.early,
            Place::Free | Place::Waits => false,
        };
        there && self.generation == generation
    }

    /// Notes that all of its command was sent. Returns true if it was answered before.
    #[inline]
    pub fn was_sent(&mut self) -> bool {
        self.place = Place::Sent;
        self.early
    }

    /// Notes an answer before all data was sent. Returns false if there was nothing yet that it could answer: that
    /// it was done cannot be so.
    pub fn answered_early(&mut self) -> bool {
        self.early = true;
        self.error != ErrorCode::NONE
    }

    /// Returns the bytes of its present command.
    #[inline]
    pub fn part(&self) -> u64 {
        match self.work.kind {
            CommandKind::Trim | CommandKind::WriteZeroes => {
                (self.work.len - self.done).min(MOST_FORGOTTEN)
            }
            _ => self.work.len,
        }
    }

    /// Returns its next command, whose data is in the segments from the first byte on.
    #[inline]
    pub fn next_command(&mut self, generation: u32, cookie: u64) -> Command {
        (self.generation, self.place, self.early) = (generation, Place::IsSent, false);
        self.segments.rewind();
        Command {
            kind: self.work.kind,
            cookie,
            offset: self.work.offset + self.done,
            len: self.part() as u32,
            fua: self.work.fua,
        }
    }

    /// Notes that bytes of a read come, which were asked for. The error is that they came before.
    #[inline]
    pub fn note_data(&mut self, start: u64, len: u64) -> Result<(), Lie> {
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

    /// Returns whether the server has not done it because it is being shut down.
    #[inline]
    pub fn is_refused_for_now(&self) -> bool {
        self.error == ErrorCode::SHUTTING_DOWN
    }

    /// Returns whether all data of a read is there, or an error in place of it.
    #[inline]
    pub fn is_whole(&self) -> bool {
        self.work.kind != CommandKind::Read
            || self.error != ErrorCode::NONE
            || self.got.is_whole(self.work.len)
    }

    /// Notes that its command was answered. Returns how the request went; `None` if it has another command.
    #[inline]
    pub fn answered(&mut self) -> Option<Result<(), IoError>> {
        self.done += self.part();
        let forgets = matches!(self.work.kind, CommandKind::Trim | CommandKind::WriteZeroes);
        if self.error == ErrorCode::NONE && self.done < self.work.len && !self.unwanted {
            return None;
        }
        Some(self.error.outcome(forgets))
    }

    /// Has its present command be sent again.
    pub fn ask_again(&mut self) {
        self.place = Place::Waits;
        self.got = Coverage::NONE;
        (self.error, self.errors) = (ErrorCode::NONE, 0);
    }
}
