//! The command that is being sent.

use crate::entry::EntryState;
use crate::request_table::{RequestTable, Slot};
use crate::wire::{COMMAND_HEADER, Command, CommandKind};

/// The progress of sending a command.
pub struct Sender {
    header: [u8; COMMAND_HEADER],
    /// The number of bytes of the header that were sent.
    sent: usize,
    /// The number of bytes of data that are still to be sent.
    left: u64,
    /// The request to which the command belongs.
    current: Option<Slot>,
}

impl Sender {
    pub const IDLE: Sender = Sender {
        header: [0; COMMAND_HEADER],
        sent: 0,
        left: 0,
        current: None,
    };

    /// Returns whether all of the last command was sent.
    #[inline]
    pub fn is_idle(&self) -> bool {
        self.current.is_none()
    }

    #[inline]
    fn begin(&mut self, command: Command, slot: Slot) {
        *self = Sender {
            header: command.to_bytes(),
            sent: 0,
            left: match command.kind {
                CommandKind::Write => command.len.into(),
                _ => 0,
            },
            current: Some(slot),
        };
    }
}

impl RequestTable {
    /// Writes the bytes that are to be sent into a stream's buffer, as far as there is room. Returns their number.
    #[inline]
    pub(crate) fn fill(&mut self, room: &mut [u8]) -> usize {
        let mut at = 0;
        while at < room.len() {
            let slot = match self.sender.current {
                Some(slot) => slot,
                None => match self.next_to_send() {
                    Some((slot, command)) => {
                        self.sender.begin(command, slot);
                        slot
                    }
                    None => break,
                },
            };
            let sender = &mut self.sender;
            let part = (COMMAND_HEADER - sender.sent).min(room.len() - at);
            let header = &sender.header[sender.sent..sender.sent + part];
            room[at..at + part].copy_from_slice(header);
            sender.sent += part;
            at += part;
            let part = sender.left.min((room.len() - at) as u64) as usize;
            sender.left -= part as u64;
            let over = sender.sent == COMMAND_HEADER && sender.left == 0;
            let entry = self.entry(slot);
            if part > 0 {
                entry.segments.copy_to(&mut room[at..at + part]);
                at += part;
            }
            if over {
                self.sender.current = None;
                if self.entry(slot).was_sent() {
                    self.settle(slot);
                }
            }
        }
        at
    }

    /// Takes the request that is to be sent next.
    #[inline]
    fn next_to_send(&mut self) -> Option<(Slot, Command)> {
        let slot = self.unsent.pop_front()?;
        self.commands = self.commands.wrapping_add(1);
        let (generation, cookie) = (self.commands, slot.cookie(self.commands));
        let entry = self.entry(slot);
        debug_assert_eq!(entry.state, EntryState::Waits);
        let command = entry.next_command(generation, cookie);
        self.note_sent();
        Some((slot, command))
    }
}
