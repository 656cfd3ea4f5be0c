//! Requests that cannot be understood, with what it takes to answer them.

use super::request::{Opcode, RequestId};
use super::response::{Response, Status};
use super::segment::BadSegment;
use core::fmt;

/// A request that makes no sense. It is answered, and costs its frontend no more than that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// The request's identifier.
    pub id: RequestId,
    /// The operation to name in the response.
    pub operation: Opcode,
    /// The fault.
    pub fault: Fault,
}

/// A fault of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No such operation.
    UnknownOperation(Opcode),
    /// An indirect request for something that is neither read nor write.
    IndirectOperation(Opcode),
    /// A transfer of nothing.
    NoSegments,
    /// More segments than the message has room for.
    TooManySegments {
        /// The number that the frontend says.
        found: u16,
        /// The most that there could be.
        most: u16,
    },
    /// A segment that is no part of a page.
    Segment {
        /// Its position, from 0.
        number: u8,
        /// Its fault.
        error: BadSegment,
    },
}

impl Malformed {
    /// The error response to it: unknown operations are "not supported", so that a frontend can
    /// do without, everything else is an error.
    pub const fn response(&self) -> Response {
        Response {
            id: self.id,
            operation: self.operation,
            status: match self.fault {
                Fault::UnknownOperation(_) => Status::NotSupported,
                _ => Status::Error,
            },
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::UnknownOperation(opcode) => write!(f, "unknown {opcode}"),
            Fault::IndirectOperation(opcode) => {
                write!(f, "indirect request for {opcode}, expected READ or WRITE")
            }
            Fault::NoSegments => f.write_str("no segments"),
            Fault::TooManySegments { found, most } => {
                write!(f, "{found} segments, at most {most} are possible")
            }
            Fault::Segment { number, error } => write!(f, "segment {number}: {error}"),
        }
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "malformed request {:#x}: {}", self.id.0, self.fault)
    }
}

impl core::error::Error for Malformed {}
