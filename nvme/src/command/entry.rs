//! The entries of submission and completion queues.

use super::status::Status;
use core::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// The number of a command (CID), unique among those that its queue has outstanding.
    CommandId(u16)
}
number! {
    /// The number of a queue (SQID, CQID). 0 is the admin queue.
    QueueId(u16)
}
number! {
    /// The number of a namespace (NSID), from 1 on.
    NamespaceId(u32)
}
number! {
    /// A logical block of a namespace, in the unit in which that is formatted.
    Lba(u64)
}

impl NamespaceId {
    /// No namespace: the command is about the controller.
    pub const NONE: NamespaceId = NamespaceId(0);
    /// All namespaces of the controller.
    pub const ALL: NamespaceId = NamespaceId(u32::MAX);
}

/// A submission queue entry: 64 bytes, as eight words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Command([u64; 8]);

impl Command {
    /// The number of its words.
    pub const WORDS: usize = 8;

    /// Returns a command without data or parameters.
    pub const fn new(opcode: u8, namespace: NamespaceId) -> Command {
        Command([
            opcode as u64 | (namespace.0 as u64) << 32,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
        ])
    }

    /// Returns the command with these bytes, in a form that [`words`](Self::words) gave.
    pub const fn from_words(words: [u64; 8]) -> Command {
        Command(words)
    }

    /// Returns its words, each to be stored little-endian.
    #[inline]
    pub const fn words(&self) -> &[u64; 8] {
        &self.0
    }

    /// The same command with another number.
    #[inline]
    #[must_use]
    pub const fn with_id(mut self, id: CommandId) -> Command {
        self.0[0] = self.0[0] & !(0xffff << 16) | (id.0 as u64) << 16;
        self
    }

    /// The same command with its data pointer: two PRP entries, or an SGL descriptor.
    #[inline]
    #[must_use]
    pub const fn with_data(mut self, pointer: [u64; 2]) -> Command {
        self.0[3] = pointer[0];
        self.0[4] = pointer[1];
        self
    }

    /// The same command with parameters: dwords 10 and 11.
    #[must_use]
    pub(super) const fn with_10_11(mut self, low: u32, high: u32) -> Command {
        self.0[5] = low as u64 | (high as u64) << 32;
        self
    }

    /// The same command with dwords 12 and 13.
    #[must_use]
    pub(super) const fn with_12_13(mut self, low: u32, high: u32) -> Command {
        self.0[6] = low as u64 | (high as u64) << 32;
        self
    }

    /// Returns its opcode.
    pub const fn opcode(&self) -> u8 {
        self.0[0] as u8
    }

    /// Returns its number.
    pub const fn id(&self) -> CommandId {
        CommandId((self.0[0] >> 16) as u16)
    }

    /// Returns the namespace that it is about.
    pub const fn namespace(&self) -> NamespaceId {
        NamespaceId((self.0[0] >> 32) as u32)
    }

    /// Returns the data pointer.
    pub const fn data(&self) -> [u64; 2] {
        [self.0[3], self.0[4]]
    }

    /// Returns a parameter: one of the dwords from 10 on.
    ///
    /// # Panics
    /// If a command has no such dword.
    pub const fn dword(&self, number: usize) -> u32 {
        assert!(
            number >= 10 && number < 16,
            "parameters are dwords 10 to 15"
        );
        (self.0[number / 2] >> (32 * (number % 2))) as u32
    }
}

/// A completion queue entry: 16 bytes, as two words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion([u64; 2]);

impl Completion {
    /// The number of its words.
    pub const WORDS: usize = 2;

    /// Returns the completion with these words.
    #[inline]
    pub const fn from_words(words: [u64; 2]) -> Completion {
        Completion(words)
    }

    /// Returns a completion as a controller makes it.
    pub const fn new(
        result: u32,
        queue: QueueId,
        head: u16,
        id: CommandId,
        status: Status,
    ) -> Self {
        let high = head as u64 | (queue.0 as u64) << 16 | (id.0 as u64) << 32;
        Completion([result as u64, high | (status.field() as u64) << 48])
    }

    /// Returns its words.
    pub const fn words(&self) -> [u64; 2] {
        self.0
    }

    /// The same completion with that phase.
    #[must_use]
    pub const fn with_phase(mut self, phase: bool) -> Completion {
        self.0[1] = self.0[1] & !(1 << 48) | (phase as u64) << 48;
        self
    }

    /// Returns the phase that the second word of a completion tells: it changes with each pass through the queue.
    #[inline]
    pub const fn phase_of(second: u64) -> bool {
        second >> 48 & 1 == 1
    }

    /// Returns what the command has returned in dword 0.
    pub const fn result(&self) -> u32 {
        self.0[0] as u32
    }

    /// Returns the number of the command.
    #[inline]
    pub const fn id(&self) -> CommandId {
        CommandId((self.0[1] >> 32) as u16)
    }

    /// Returns how the command ended.
    #[inline]
    pub const fn status(&self) -> Status {
        Status::new((self.0[1] >> 49) as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_completion_says_what_it_was_made_with() {
        let status = Status::new(0x4281);
        let completion = Completion::new(7, QueueId(3), 9, CommandId(0xabcd), status);
        for phase in [true, false, true] {
            let completion = completion.with_phase(phase);
            assert_eq!(Completion::phase_of(completion.words()[1]), phase);
            assert_eq!(completion.id(), CommandId(0xabcd));
            assert_eq!(completion.status(), status);
            assert_eq!(completion.result(), 7);
        }
        // Dword 2: the submission queue and its head.
        assert_eq!(completion.words()[1] as u32, 3 << 16 | 9);
    }

    #[test]
    fn the_number_of_a_command_is_replaced() {
        let command = Command::new(0x81, NamespaceId(0xdead_beef)).with_id(CommandId(0xffff));
        let command = command.with_id(CommandId(0x1234)).with_data([1, 2]);
        assert_eq!(command.words()[0], 0xdead_beef_1234_0081);
        assert_eq!(command.id(), CommandId(0x1234));
        assert_eq!(command.namespace(), NamespaceId(0xdead_beef));
        assert_eq!((command.opcode(), command.data()), (0x81, [1, 2]));
    }
}
