//! Commands.

/// The bytes of a command, without data.
pub const COMMAND_HEADER: usize = 28;

const MAGIC: u32 = 0x2560_9513;

/// The flag of a command (`NBD_CMD_FLAG_FUA`).
const FUA: u16 = 1 << 0;

/// The kind of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum CommandKind {
    /// Reads data.
    Read = 0,
    /// Writes the data that follows.
    Write = 1,
    /// Ends the connection; there is no reply.
    Disconnect = 2,
    /// Makes durable all data that was written and acknowledged.
    Flush = 3,
    /// Discards data.
    Trim = 4,
    /// Writes zeros.
    WriteZeroes = 6,
}

/// A command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command {
    /// Its kind.
    pub kind: CommandKind,
    /// A number that comes back with the reply.
    pub cookie: u64,
    /// The first byte of the export that it affects.
    pub offset: u64,
    /// The number of bytes.
    pub len: u32,
    /// True if written data has to be durable when the reply comes. Only for exports that support it.
    pub fua: bool,
}

impl Command {
    /// Returns the bytes of the command.
    #[inline]
    pub fn to_bytes(self) -> [u8; COMMAND_HEADER] {
        let mut bytes = [0; COMMAND_HEADER];
        bytes[..4].copy_from_slice(&MAGIC.to_be_bytes());
        let flags = if self.fua { FUA } else { 0 };
        bytes[4..6].copy_from_slice(&flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&(self.kind as u16).to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..].copy_from_slice(&self.len.to_be_bytes());
        bytes
    }
}
