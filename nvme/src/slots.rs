//! The commands of a queue pair, from the time at which the controller may see them until it does not access their
//! memory any more.

use crate::command::{Command, CommandId, NamespaceId};
use alloc::vec::Vec;
use bulkhead_grant::OutOfMemory;
use bulkhead_grant::memory::filled;
use bulkhead_images::Tag;

/// The number of bits of a command's number (CID) that name its slot. The other bits change with each use of the slot,
/// so that a completion that comes twice, or late, is noticed.
const SLOT_BITS: u32 = 6;

/// The number of slots that can be told apart.
pub const MOST: usize = 1 << SLOT_BITS;

/// The request that a command belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A request, as a whole.
    Request(Tag),
    /// A request that is served in parts, by its number among those.
    Split(u8),
}

/// A slot, and the command in it, if it is used.
#[derive(Clone, Copy, Debug)]
pub struct CommandSlot {
    /// The command as it was sent.
    pub command: Command,
    /// The request that it belongs to.
    pub owner: Owner,
    /// The queue that it came from.
    pub client: u16,
    generation: u16,
    /// The time at which it was sent, in seconds.
    pub since: u32,
    /// The number of times that it was sent again; a reset on its account counts twice.
    pub retries: u8,
    /// The controller may have it.
    pub used: bool,
    /// Its request was cancelled: it is not sent again.
    pub unwanted: bool,
    /// The controller was asked to abort it.
    pub aborted: bool,
}

/// All slots of a queue pair.
pub struct CommandSlots {
    all: Vec<CommandSlot>,
    free: Vec<u8>,
}

impl CommandSlots {
    /// Returns `count` free slots, at most [`MOST`].
    pub fn new(count: usize) -> Result<CommandSlots, OutOfMemory> {
        debug_assert!(count <= MOST);
        let unused = CommandSlot {
            command: Command::new(0, NamespaceId::NONE),
            owner: Owner::Split(0),
            client: 0,
            generation: 0,
            since: 0,
            retries: 0,
            used: false,
            unwanted: false,
            aborted: false,
        };
        Ok(CommandSlots {
            all: filled(count, |_| unused)?,
            free: filled(count, |slot| (count - 1 - slot) as u8)?,
        })
    }

    /// Returns the number of slots that are free.
    #[inline]
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Returns the number of slots.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Returns whether all slots are free.
    pub fn all_free(&self) -> bool {
        self.free.len() == self.all.len()
    }

    /// Returns the slot that [`take`](Self::take) would take.
    #[inline]
    pub fn next(&self) -> Option<usize> {
        self.free.last().map(|slot| usize::from(*slot))
    }

    /// Puts a command into the [next](Self::next) slot, and returns it with the number that it gets there; `None` if no
    /// slot is free.
    #[inline]
    pub fn take(
        &mut self,
        command: Command,
        owner: Owner,
        client: u16,
        since: u32,
    ) -> Option<Command> {
        let number = usize::from(self.free.pop()?);
        let slot = &mut self.all[number];
        let generation = slot.generation.wrapping_add(1);
        let command = command.with_id(id(number, generation));
        *slot = CommandSlot {
            command,
            owner,
            client,
            generation,
            since,
            retries: 0,
            used: true,
            unwanted: false,
            aborted: false,
        };
        Some(command)
    }

    /// Finds the command of that number, if there is one outstanding.
    #[inline]
    pub fn find(&self, command: CommandId) -> Option<usize> {
        let number = usize::from(command.0) % MOST;
        let slot = self.all.get(number)?;
        (slot.used && slot.command.id() == command).then_some(number)
    }

    /// Gives the command in a slot a new number, because it is sent again.
    pub fn renew(&mut self, number: usize, since: u32) -> Command {
        let slot = &mut self.all[number];
        slot.generation = slot.generation.wrapping_add(1);
        slot.command = slot.command.with_id(id(number, slot.generation));
        slot.since = since;
        slot.aborted = false;
        slot.command
    }

    /// Removes all slots from `count` on. Returns false, and removes none, if one of these is used.
    pub fn shrink(&mut self, count: usize) -> bool {
        let unused = self.all[count..].iter().all(|slot| !slot.used);
        if unused {
            self.all.truncate(count);
            self.free.retain(|slot| usize::from(*slot) < count);
        }
        unused
    }

    /// Returns a slot.
    #[inline]
    pub fn get(&mut self, number: usize) -> &mut CommandSlot {
        &mut self.all[number]
    }

    /// Returns all slots that are used.
    pub fn used(&mut self) -> impl Iterator<Item = &mut CommandSlot> {
        self.all.iter_mut().filter(|slot| slot.used)
    }

    /// Frees a slot, and returns what was in it.
    #[inline]
    pub fn release(&mut self, number: usize) -> CommandSlot {
        let slot = &mut self.all[number];
        debug_assert!(slot.used);
        slot.used = false;
        self.free.push(number as u8);
        *slot
    }
}

/// Returns the number of a command in a slot.
#[inline]
fn id(number: usize, generation: u16) -> CommandId {
    CommandId(number as u16 | generation << SLOT_BITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_counts_once() {
        let mut slots = CommandSlots::new(3).expect("memory");
        let command = Command::new(2, NamespaceId(1));
        let take = |slots: &mut CommandSlots| slots.take(command, Owner::Request(Tag(9)), 0, 0);
        let first = take(&mut slots).expect("free").id();
        let second = take(&mut slots).expect("free").id();
        assert_ne!(first, second);
        let number = slots.find(first).expect("outstanding");
        slots.release(number);
        assert_eq!(slots.find(first), None, "twice");
        let third = take(&mut slots).expect("free").id();
        assert_eq!(slots.find(third), Some(number), "the same slot");
        assert_eq!(slots.find(first), None, "late");
        let renewed = slots.renew(number, 5).id();
        assert_eq!(
            (slots.find(third), slots.find(renewed)),
            (None, Some(number))
        );
        for unknown in [3, 63, 64, 0xffff] {
            assert_eq!(slots.find(CommandId(unknown)), None, "{unknown}");
        }
        take(&mut slots).expect("free");
        assert_eq!(take(&mut slots), None);
    }
}
