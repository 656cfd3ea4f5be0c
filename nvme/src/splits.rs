//! Requests that take several commands: the progress of each.

use crate::command::{DeallocateLimits, Lba, NamespaceId, nvm};
use crate::prp::Part;
use alloc::vec::Vec;
use bulkhead_grant::OutOfMemory;
use bulkhead_grant::memory::{filled, room_for};
use bulkhead_images::{IoError, MOST_FORGOTTEN, Tag};

/// The most requests of a queue pair that are served in parts at a time; further ones wait.
pub const MOST: usize = 8;

/// The most segments of a request.
pub const SEGMENTS: usize = 256;

/// What a request does with blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Reads them.
    Read,
    /// Writes them.
    Write,
    /// Writes them; they are durable when the command completes (FUA).
    WriteThrough,
    /// Discards them, by Dataset Management.
    Deallocate,
    /// Discards them, by Write Zeroes that deallocate.
    WriteZeroes,
}

impl Action {
    /// Returns whether data is transferred.
    #[inline]
    pub fn moves_data(self) -> bool {
        matches!(self, Action::Read | Action::Write | Action::WriteThrough)
    }

    /// Returns the most blocks of one command, of 2^`shift` bytes each, for a controller with these limits.
    pub fn most_blocks(self, shift: u32, limits: DeallocateLimits) -> u64 {
        match self {
            Action::Deallocate => limits.range.min(MOST_FORGOTTEN >> shift),
            Action::WriteZeroes => u64::from(nvm::MOST_BLOCKS).min((limits.zeroes >> shift).max(1)),
            _ => nvm::MOST_BLOCKS.into(),
        }
    }
}

/// The blocks that a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// The namespace.
    pub namespace: NamespaceId,
    /// The size of a block in bytes, as a power of two.
    pub shift: u32,
    /// The first block.
    pub start: Lba,
    /// The number of blocks.
    pub count: u64,
}

/// A request in parts.
pub struct Split {
    /// The queue that it came from.
    pub client: u16,
    /// Its tag there.
    pub tag: Tag,
    /// The action.
    pub action: Action,
    /// The blocks for which no command was sent yet.
    pub left: Blocks,
    /// The memory of its data.
    pub parts: Vec<Part>,
    /// The number of parts for which a command was sent.
    pub next: usize,
    /// The number of commands that have not ended.
    pub pending: usize,
    /// The number of times that its commands were sent again after a reset, if no data is transferred: there is one at
    /// a time then.
    pub retries: u8,
    /// The first failure; after it no more commands are sent.
    pub outcome: Result<(), IoError>,
    used: bool,
}

impl Split {
    /// Returns whether more commands are to be sent.
    pub fn has_more(&self) -> bool {
        self.used && self.outcome.is_ok() && self.left.count > 0
    }

    /// Returns whether all its commands have ended and no more are to be sent.
    pub fn is_done(&self) -> bool {
        self.used && self.pending == 0 && !self.has_more()
    }

    /// Returns whether there is a request here.
    pub fn is_used(&self) -> bool {
        self.used
    }
}

/// The requests in parts of a queue pair.
pub struct Splits {
    all: Vec<Split>,
    used: usize,
}

impl Splits {
    /// Allocates the memory of all.
    pub fn new() -> Result<Splits, OutOfMemory> {
        let mut rooms = room_for(MOST)?;
        for _ in 0..MOST {
            rooms.push(room_for(SEGMENTS)?);
        }
        let unused = |_| Split {
            client: 0,
            tag: Tag(0),
            action: Action::Read,
            left: Blocks {
                namespace: NamespaceId::NONE,
                shift: 0,
                start: Lba(0),
                count: 0,
            },
            parts: rooms.pop().unwrap_or_default(),
            next: 0,
            pending: 0,
            retries: 0,
            outcome: Ok(()),
            used: false,
        };
        Ok(Splits {
            all: filled(MOST, unused)?,
            used: 0,
        })
    }

    /// Returns whether there are any.
    #[inline]
    pub fn any(&self) -> bool {
        self.used > 0
    }

    /// Begins a request, and returns its number; `None` if there are [`MOST`] already. The caller fills its
    /// [`parts`](Split::parts).
    pub fn begin(&mut self, client: u16, tag: Tag, action: Action, blocks: Blocks) -> Option<u8> {
        let number = self.all.iter().position(|split| !split.used)?;
        let split = &mut self.all[number];
        split.parts.clear();
        (split.client, split.tag, split.action) = (client, tag, action);
        (split.left, split.next) = (blocks, 0);
        (split.pending, split.retries) = (0, 0);
        (split.outcome, split.used) = (Ok(()), true);
        self.used += 1;
        Some(number as u8)
    }

    /// Returns a request.
    pub fn get(&mut self, number: u8) -> &mut Split {
        &mut self.all[usize::from(number)]
    }

    /// Forgets a request.
    pub fn end(&mut self, number: u8) {
        let split = self.get(number);
        debug_assert!(split.used);
        split.used = false;
        self.used -= 1;
    }
}
