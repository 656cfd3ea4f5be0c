//! Breaches of the protocol by a backend.

use bulkhead_ring::Overrun;
use core::fmt;

/// A breach of the protocol by the backend. Its interface is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetifViolation {
    /// The backend's producer index is impossible.
    Overrun(Overrun),
    /// The backend answered a request that it does not have.
    Unasked(u16),
    /// The backend answered details that were not sent.
    NoDetails,
    /// The backend's part of a packet does not lie in one page.
    OutsidePage {
        /// The first byte.
        offset: u16,
        /// The number of bytes.
        len: usize,
    },
    /// The backend's packet is longer than any can be.
    TooLong,
}

impl fmt::Display for NetifViolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Overrun(overrun) => overrun.fmt(f),
            Self::Unasked(id) => write!(
                f,
                "the backend answered request {id}, which it does not have"
            ),
            Self::NoDetails => {
                f.write_str("the backend answered details of a packet that had none")
            }
            Self::OutsidePage { offset, len } => write!(
                f,
                "the backend put {len} bytes at byte {offset} of a page, which has no room for them"
            ),
            Self::TooLong => f.write_str("the backend's packet is longer than any packet"),
        }
    }
}

impl core::error::Error for NetifViolation {}

impl From<Overrun> for NetifViolation {
    fn from(overrun: Overrun) -> NetifViolation {
        NetifViolation::Overrun(overrun)
    }
}
