//! What ends the use of a connection.

use crate::coverage::MOST_PIECES;
use crate::wire::ChunkKind;
use bulkhead_stream::Ended;
use core::fmt;

/// What a server said that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// A reply begins with that.
    Magic(u32),
    /// It answers a command that it does not have.
    Cookie(u64),
    /// It answers a read by a simple reply, after it agreed to structured ones.
    SimpleRead,
    /// It has done a write whose data it does not have.
    Early,
    /// There is no such part of a reply here.
    Kind(ChunkKind),
    /// A part of a reply cannot have that many bytes.
    Length {
        /// The kind of part.
        kind: ChunkKind,
        /// The bytes.
        len: u32,
    },
    /// It sends data that was not asked for.
    Range {
        /// The first byte.
        offset: u64,
        /// The number of bytes.
        len: u64,
    },
    /// It sends data that it has sent before.
    Twice,
    /// It sends the data of a read in too many pieces that are apart.
    Scattered,
    /// It sends less data than was asked for.
    TooLittle,
    /// It names an error that is none.
    Error,
    /// It names errors without an end.
    Endless,
}

impl fmt::Display for Lie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the server breaks the protocol: ")?;
        match self {
            Lie::Magic(magic) => write!(f, "a reply begins with {magic:#010x}"),
            Lie::Cookie(cookie) => write!(
                f,
                "it answers the command {cookie:#018x}, which it does not have"
            ),
            Lie::SimpleRead => {
                f.write_str("a simple reply to a read, where structured ones are due")
            }
            Lie::Early => f.write_str("it has done a command of which it has only a part"),
            Lie::Kind(kind) => write!(f, "a reply has a part {kind:?} that cannot be there"),
            Lie::Length { kind, len } => {
                write!(f, "a reply has a part {kind:?} of {len} bytes")
            }
            Lie::Range { offset, len } => {
                write!(
                    f,
                    "it sends {len} bytes from {offset} on, which were not asked for"
                )
            }
            Lie::Twice => f.write_str("it sends the same data of a read twice"),
            Lie::Scattered => write!(
                f,
                "it sends the data of a read in more than {MOST_PIECES} pieces that are apart"
            ),
            Lie::TooLittle => f.write_str("it sends less data than was asked for"),
            Lie::Error => f.write_str("it names an error that is none"),
            Lie::Endless => f.write_str("it names errors without an end"),
        }
    }
}

/// The reason why the replies of a connection are not looked at any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing that the server says is believed any more.
    Lie(Lie),
    /// It is being shut down.
    ShuttingDown,
    /// The connection is over.
    Ended(Ended),
}

impl From<Lie> for Fault {
    fn from(lie: Lie) -> Fault {
        Fault::Lie(lie)
    }
}

impl From<Ended> for Fault {
    fn from(ended: Ended) -> Fault {
        Fault::Ended(ended)
    }
}
