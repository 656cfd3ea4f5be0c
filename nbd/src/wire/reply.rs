//! Replies to commands: simple ones, and chunks of structured ones.

use super::bytes_at;
use bulkhead_images::IoError;
use core::fmt;

/// What a simple reply begins with.
pub const REPLY_MAGIC: u32 = 0x6744_6698;
/// The bytes of a simple reply, without data.
pub const SIMPLE_REPLY: usize = 16;

/// What a chunk begins with.
pub const STRUCTURED_MAGIC: u32 = 0x668e_33ef;
/// The bytes of a chunk, without its payload.
pub const CHUNK_HEADER: usize = 20;

/// An error, as a server names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorCode(pub u32);

impl ErrorCode {
    /// None.
    pub const NONE: ErrorCode = ErrorCode(0);
    /// Input or output failed.
    pub const IO: ErrorCode = ErrorCode(5);
    /// The server does not do that.
    pub const NOT_SUPPORTED: ErrorCode = ErrorCode(95);
    /// The server is being shut down, and has not done it.
    pub const SHUTTING_DOWN: ErrorCode = ErrorCode(108);

    /// Returns what the request fails with. That a server does not know a flush or a transfer makes it fail, and does
    /// not mean that the guest can do without.
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
    /// How it went.
    pub error: ErrorCode,
    /// The command's.
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

/// What a chunk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkKind {
    /// Nothing follows.
    None,
    /// Data.
    Data,
    /// Zeros that are not sent.
    Hole,
    /// An error, and a text.
    Error,
    /// An error at that byte, and a text.
    ErrorAt,
    /// An error that the specification did not have.
    OtherError,
    /// Something else.
    Other(u16),
}

/// What a chunk begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// It is the last one of the reply.
    pub done: bool,
    /// What it is.
    pub kind: ChunkKind,
    /// The command's.
    pub cookie: u64,
    /// The bytes that follow.
    pub len: u32,
}

impl Chunk {
    /// The most bytes of an error's chunk: the text may have 4096.
    pub const LONGEST_ERROR: u32 = 6 + 4096 + 8;

    /// Reads the beginning of a chunk, behind the number that it begins with.
    ///
    /// # Panics
    /// If there are not so many bytes.
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

    /// Returns the number of bytes at the beginning of the payload that have a meaning of their own; `None` if the
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
