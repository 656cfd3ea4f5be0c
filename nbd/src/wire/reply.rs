//! Replies to commands: simple ones, and chunks of structured ones.

use super::bytes_at;
use bulkhead_images::IoError;
use core::fmt;

/// The number with which a simple reply begins.
pub const REPLY_MAGIC: u32 = 0x6744_6698;
/// The bytes of a simple reply, without data.
pub const SIMPLE_REPLY: usize = 16;

/// The number with which a chunk begins.
pub const STRUCTURED_MAGIC: u32 = 0x668e_33ef;
/// The bytes of a chunk, without its payload.
pub const CHUNK_HEADER: usize = 20;

/// The number of an error, as a server reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorCode(pub u32);

impl ErrorCode {
    /// No error.
    pub const NONE: ErrorCode = ErrorCode(0);
    /// Input or output failed.
    pub const IO: ErrorCode = ErrorCode(5);
    /// The server does not support the operation.
    pub const NOT_SUPPORTED: ErrorCode = ErrorCode(95);
    /// The server is being shut down, and has not done the command.
    pub const SHUTTING_DOWN: ErrorCode = ErrorCode(108);

    /// Returns the outcome of the request. If the server does not know a flush or a transfer, the request fails: the
    /// guest cannot do without those.
    pub fn outcome(self, may_be_unsupported: bool) -> Result<(), IoError> {
        match self {
            Self::NONE => Ok(()),
            Self::NOT_SUPPORTED if may_be_unsupported => Err(IoError::NotSupported),
            _ => Err(IoError::Medium),
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.0 {
            1 => "not permitted",
            5 => "input or output failed",
            12 => "no memory",
            22 => "not valid",
            28 => "no space left",
            75 => "too large",
            95 => "not supported",
            108 => "shutting down",
            other => return write!(f, "error {other}"),
        };
        f.write_str(text)
    }
}

/// A simple reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimpleReply {
    /// The outcome.
    pub error: ErrorCode,
    /// The cookie of the command.
    pub cookie: u64,
}

impl SimpleReply {
    /// Reads a simple reply, behind the number that it begins with.
    ///
    /// # Panics
    /// If there are not so many bytes.
    pub fn parse(bytes: &[u8]) -> SimpleReply {
        SimpleReply {
            error: ErrorCode(u32::from_be_bytes(bytes_at(bytes, 4))),
            cookie: u64::from_be_bytes(bytes_at(bytes, 8)),
        }
    }
}

/// The kind of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkKind {
    /// A chunk without a payload.
    None,
    /// Data.
    Data,
    /// Zeros that are not sent.
    Hole,
    /// An error, and a text.
    Error,
    /// An error at a byte of the export, and a text.
    ErrorAt,
    /// An error of a kind that is not in the specification.
    OtherError,
    /// Another kind.
    Other(u16),
}

/// The header of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// True if it is the last one of the reply.
    pub done: bool,
    /// Its kind.
    pub kind: ChunkKind,
    /// The cookie of the command.
    pub cookie: u64,
    /// The number of bytes that follow.
    pub len: u32,
}

impl Chunk {
    /// The most bytes of an error's chunk: the text may have 4096.
    pub const LONGEST_ERROR: u32 = 6 + 4096 + 8;

    /// Reads the header of a chunk, behind the number with which it begins.
    ///
    /// # Panics
    /// If there are not that many bytes.
    pub fn parse(bytes: &[u8]) -> Chunk {
        let flags = u16::from_be_bytes(bytes_at(bytes, 4));
        let kind = match u16::from_be_bytes(bytes_at(bytes, 6)) {
            0 => ChunkKind::None,
            1 => ChunkKind::Data,
            2 => ChunkKind::Hole,
            0x8001 => ChunkKind::Error,
            0x8002 => ChunkKind::ErrorAt,
            error if error & 0x8000 != 0 => ChunkKind::OtherError,
            other => ChunkKind::Other(other),
        };
        Chunk {
            done: flags & 1 != 0,
            kind,
            cookie: u64::from_be_bytes(bytes_at(bytes, 8)),
            len: u32::from_be_bytes(bytes_at(bytes, 16)),
        }
    }

    /// Returns the number of bytes at the beginning of the payload that are neither data nor text; `None` if the
    /// payload cannot be that long.
    pub fn payload_head(&self) -> Option<usize> {
        let (head, fits) = match self.kind {
            ChunkKind::None => (0, self.len == 0),
            ChunkKind::Data => (8, self.len > 8),
            ChunkKind::Hole => (12, self.len == 12),
            ChunkKind::Error | ChunkKind::OtherError => (6, self.len >= 6),
            ChunkKind::ErrorAt => (6, self.len >= 14),
            ChunkKind::Other(_) => (0, false),
        };
        let is_error = matches!(
            self.kind,
            ChunkKind::Error | ChunkKind::ErrorAt | ChunkKind::OtherError
        );
        (fits && (!is_error || self.len <= Self::LONGEST_ERROR)).then_some(head)
    }
}
