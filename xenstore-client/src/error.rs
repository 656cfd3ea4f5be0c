//! Errors: of one request, or of the connection as a whole.

use crate::path::PathFault;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use bulkhead_xen::abi::xs_wire::{
    ERROR_COMMUNICATION, ERROR_PROTOCOL, ERROR_RING_INDEX, MessageType, PAYLOAD_MAX, Refusal,
};
use core::fmt;

/// The first bytes of something that could not be understood, to be shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Excerpt {
    start: Vec<u8>,
    length: usize,
}

impl Excerpt {
    /// The number of bytes that are shown.
    pub const SHOWN: usize = 64;

    /// Keeps the start of `bytes`.
    pub fn of(bytes: &[u8]) -> Excerpt {
        Excerpt {
            start: bytes[..bytes.len().min(Self::SHOWN)].into(),
            length: bytes.len(),
        }
    }
}

impl fmt::Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.start.escape_ascii())?;
        if self.length > self.start.len() {
            write!(f, "… ({} bytes)", self.length)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The reason why a request failed: see [`Fault`]. It is as large as a pointer, since many functions pass it
/// on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error(Box<Fault>);

/// A fault of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// xenstored refused.
    Refused {
        /// The kind of the request.
        request: MessageType,
        /// The path of the request.
        subject: String,
        /// xenstored's reply.
        refusal: Refusal,
    },
    /// xenstored's answer is not of the form that answers this request.
    Malformed {
        /// The kind of the request.
        request: MessageType,
        /// The path of the request.
        subject: String,
        /// xenstored's reply.
        answer: Excerpt,
    },
    /// Not a path; nothing was sent.
    Path {
        /// The text that was given as a path.
        path: String,
        /// The mistake in it.
        fault: PathFault,
    },
    /// The request would be longer than a message may be; nothing was sent.
    TooLong {
        /// The kind of the request that was to be sent.
        request: MessageType,
        /// The path of the request.
        subject: String,
        /// The number of bytes that it would have been.
        length: usize,
    },
    /// A value that ought to be text is not.
    NotText {
        /// The node.
        path: String,
        /// Its value.
        value: Excerpt,
    },
    /// A value that ought to be a number is not, or is out of its range.
    NotANumber {
        /// The node.
        path: String,
        /// Its value.
        value: String,
    },
    /// A transaction conflicted with others every time it was tried.
    Conflicts {
        /// Number of attempts.
        attempts: u32,
    },
    /// A listing that needs several messages changed between them every time it was tried.
    Changing {
        /// The node.
        path: String,
        /// Number of attempts.
        attempts: u32,
    },
    /// The connection to xenstored is broken.
    Disconnected(ConnectionFault),
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Error {
        Error(Box::new(fault))
    }
}

impl Error {
    /// Returns the fault.
    pub fn fault(&self) -> &Fault {
        &self.0
    }

    /// Returns whether there will be no more answers to any request.
    pub fn is_disconnected(&self) -> bool {
        matches!(self.fault(), Fault::Disconnected(_))
    }

    /// Returns xenstored's answer, if it refused.
    pub fn refusal(&self) -> Option<Refusal> {
        match self.fault() {
            Fault::Refused { refusal, .. } => Some(*refusal),
            _ => None,
        }
    }

    /// Returns whether the node is not there.
    pub fn is_not_found(&self) -> bool {
        self.refusal() == Some(Refusal::NotFound)
    }
}

/// `READ of "x"`, or the request alone where it is about no path.
struct Asked<'a>(&'a MessageType, &'a str);

impl fmt::Display for Asked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.1 {
            "" => write!(f, "{}", self.0),
            subject => write!(f, "{} of {subject:?}", self.0),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.fault() {
            Fault::Refused {
                request,
                subject,
                refusal,
            } => write!(f, "xenstore: {}: {refusal}", Asked(request, subject)),
            Fault::Malformed {
                request,
                subject,
                answer,
            } => write!(
                f,
                "xenstore: {}: malformed reply {answer}",
                Asked(request, subject)
            ),
            Fault::Path { path, fault } => write!(f, "xenstore: {path:?} is not a path: {fault}"),
            Fault::TooLong {
                request,
                subject,
                length,
            } => write!(
                f,
                "xenstore: {}: {length} bytes are too many: at most {PAYLOAD_MAX} can be sent",
                Asked(request, subject)
            ),
            Fault::NotText { path, value } => {
                write!(f, "xenstore: {path:?} is not text: {value}")
            }
            Fault::NotANumber { path, value } => {
                write!(f, "xenstore: {path:?} is not a number in range: {value:?}")
            }
            Fault::Conflicts { attempts } => write!(
                f,
                "xenstore: transaction given up after {attempts} conflicts with others"
            ),
            Fault::Changing { path, attempts } => write!(
                f,
                "xenstore: listing of {path:?} given up: the node changed {attempts} times meanwhile"
            ),
            Fault::Disconnected(breakdown) => write!(f, "xenstore: {breakdown}"),
        }
    }
}

impl core::error::Error for Error {}

/// The reason why the connection as a whole is broken.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectionFault {
    /// An index of the ring is further ahead than the ring is long.
    RingIndex {
        /// The reader's index.
        consumer: u32,
        /// The writer's index.
        producer: u32,
    },
    /// A message announces more bytes than a message may have: the start of the next is unknown.
    TooLong(Excerpt),
    /// xenstored wrote into the ring page that it has given up on this domain.
    GivenUp {
        /// `XENSTORE_ERROR_*`.
        code: u32,
    },
    /// The task that served the connection is gone.
    Stopped,
}

impl fmt::Display for ConnectionFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConnectionFault::RingIndex { consumer, producer } => write!(
                f,
                "impossible ring indices: read up to {consumer}, written up to {producer}"
            ),
            ConnectionFault::TooLong(bytes) => {
                write!(f, "message longer than the protocol allows: {bytes}")
            }
            ConnectionFault::GivenUp { code } => {
                let reason = match *code {
                    ERROR_COMMUNICATION => "event channel does not work",
                    ERROR_RING_INDEX => "impossible ring index",
                    ERROR_PROTOCOL => "message too long",
                    _ => "unknown reason",
                };
                write!(f, "xenstored has disconnected us: {reason} ({code})")
            }
            ConnectionFault::Stopped => f.write_str("the connection's task has ended"),
        }
    }
}

impl core::error::Error for ConnectionFault {}

/// A message that xenstored has no reason to send. It is logged and skipped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unexpected {
    /// The message is of a kind that is not known.
    Kind(Excerpt),
    /// A reply to something that was never asked, or of another kind than what was asked.
    Reply(Excerpt),
    /// An event that names no path and token.
    Event(Excerpt),
}

impl fmt::Display for Unexpected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unexpected::Kind(bytes) => write!(f, "message of an unknown kind: {bytes}"),
            Unexpected::Reply(bytes) => write!(f, "reply that belongs to no request: {bytes}"),
            Unexpected::Event(bytes) => write!(f, "malformed watch event: {bytes}"),
        }
    }
}
