//! The faults that end the use of a connection.

use crate::coverage::MOST_PIECES;
use crate::wire::ChunkKind;
use bulkhead_stream::Ended;
use core::fmt;

/// A message of a server that breaks the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NbdViolation {
    /// A reply begins with that number.
    Magic(u32),
    /// The server answers a command that it does not have.
    Cookie(u64),
    /// The server answers a read by a simple reply, after it agreed to structured ones.
    SimpleRead,
    /// The server reports success for a write whose data it does not have yet.
    Early,
    /// A part of a reply is of a kind that is not allowed here.
    Kind(ChunkKind),
    /// A part of a reply cannot have that many bytes.
    Length {
        /// The kind of part.
        kind: ChunkKind,
        /// The bytes.
        len: u32,
    },
    /// The server sends data that was not asked for.
    Range {
        /// The first byte.
        offset: u64,
        /// The number of bytes.
        len: u64,
    },
    /// The server sends data that it has sent before.
    Twice,
    /// The server sends the data of a read in too many separate pieces.
    Scattered,
    /// The server sends less data than was asked for.
    TooLittle,
    /// The server reports an error with the number of no error.
    Error,
    /// The server reports errors without an end.
    Endless,
}

impl fmt::Display for NbdViolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the server breaks the protocol: ")?;
        match self {
            NbdViolation::Magic(magic) => write!(f, "a reply begins with {magic:#010x}"),
            NbdViolation::Cookie(cookie) => write!(
                f,
                "it answers the command {cookie:#018x}, which it does not have"
            ),
            NbdViolation::SimpleRead => {
                f.write_str("a simple reply to a read, where structured ones are due")
            }
            NbdViolation::Early => f.write_str("it has done a command of which it has only a part"),
            NbdViolation::Kind(kind) => {
                write!(f, "a reply has a part {kind:?} that cannot be there")
            }
            NbdViolation::Length { kind, len } => {
                write!(f, "a reply has a part {kind:?} of {len} bytes")
            }
            NbdViolation::Range { offset, len } => {
                write!(
                    f,
                    "it sends {len} bytes from {offset} on, which were not asked for"
                )
            }
            NbdViolation::Twice => f.write_str("it sends the same data of a read twice"),
            NbdViolation::Scattered => write!(
                f,
                "it sends the data of a read in more than {MOST_PIECES} pieces that are apart"
            ),
            NbdViolation::TooLittle => f.write_str("it sends less data than was asked for"),
            NbdViolation::Error => f.write_str("it names an error that is none"),
            NbdViolation::Endless => f.write_str("it names errors without an end"),
        }
    }
}

/// The reason why no more replies are taken from a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The server broke the protocol, and is not trusted any more.
    Violation(NbdViolation),
    /// The server is being shut down.
    ShuttingDown,
    /// The connection is over.
    Ended(Ended),
}

impl From<NbdViolation> for Fault {
    fn from(violation: NbdViolation) -> Fault {
        Fault::Violation(violation)
    }
}

impl From<Ended> for Fault {
    fn from(ended: Ended) -> Fault {
        Fault::Ended(ended)
    }
}
