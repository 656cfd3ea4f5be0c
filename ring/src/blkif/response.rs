//! Responses: the backend's answers to requests.

use super::request::{Opcode, RequestId};
use core::fmt;

/// The answer to one request (`struct blkif_response`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response {
    /// The request's identifier.
    pub id: RequestId,
    /// The request's operation.
    pub operation: Opcode,
    /// The outcome.
    pub status: Status,
}

/// The outcome of a request (`BLKIF_RSP_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// Done (`BLKIF_RSP_OKAY`).
    Okay,
    /// Failed (`BLKIF_RSP_ERROR`).
    Error,
    /// Not an operation of this device (`BLKIF_RSP_EOPNOTSUPP`).
    NotSupported,
    /// A number that the protocol does not define, from a backend that is not ours.
    Other(i16),
}

impl Status {
    /// Returns the number on the wire.
    pub const fn code(self) -> i16 {
        match self {
            Status::Okay => 0,
            Status::Error => -1,
            Status::NotSupported => -2,
            Status::Other(code) => code,
        }
    }

    /// Returns the meaning of a number on the wire.
    pub const fn from_code(code: i16) -> Status {
        match code {
            0 => Status::Okay,
            -1 => Status::Error,
            -2 => Status::NotSupported,
            other => Status::Other(other),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Status::Okay => f.write_str("okay"),
            Status::Error => f.write_str("error"),
            Status::NotSupported => f.write_str("not supported"),
            Status::Other(code) => write!(f, "status {code}"),
        }
    }
}
