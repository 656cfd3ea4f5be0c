//! The xenstore wire protocol's numbers and layouts (`io/xs_wire.h`).

use crate::DomId;
use core::fmt;

/// The most bytes that may follow a message's header (`XENSTORE_PAYLOAD_MAX`). A domain that sends more
/// loses its connection.
pub const PAYLOAD_MAX: usize = 4096;
/// The longest absolute path (`XENSTORE_ABS_PATH_MAX`).
pub const ABS_PATH_MAX: usize = 3072;
/// The longest path relative to a domain's own directory (`XENSTORE_REL_PATH_MAX`).
pub const REL_PATH_MAX: usize = 2048;
/// Bytes in each direction of the ring (`XENSTORE_RING_SIZE`).
pub const RING_SIZE: usize = 1024;

/// The type of a request or reply (`enum xsd_sockmsg_type`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct MessageType(pub u32);

macro_rules! message_types {
    ($($(#[$doc:meta])* $name:ident = $value:literal;)*) => {
        impl MessageType {
            $($(#[$doc])* pub const $name: MessageType = MessageType($value);)*

            /// The type's name in the header file, less its `XS_`.
            pub fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

message_types! {
    /// Commands to xenstored itself.
    CONTROL = 0;
    /// Names of a node's children.
    DIRECTORY = 1;
    /// A node's value.
    READ = 2;
    /// A node's permissions.
    GET_PERMS = 3;
    /// Registers a watch.
    WATCH = 4;
    /// Removes a watch.
    UNWATCH = 5;
    /// Opens a transaction.
    TRANSACTION_START = 6;
    /// Commits or discards a transaction.
    TRANSACTION_END = 7;
    /// Makes a domain known to xenstored (dom0 alone).
    INTRODUCE = 8;
    /// Ends xenstored's connection to a domain (dom0 alone).
    RELEASE = 9;
    /// A domain's own directory.
    GET_DOMAIN_PATH = 10;
    /// Sets a node's value.
    WRITE = 11;
    /// Makes sure that a node exists.
    MKDIR = 12;
    /// Removes a node and everything below.
    RM = 13;
    /// Sets a node's permissions.
    SET_PERMS = 14;
    /// Tells that something under a watch changed; answers no request.
    WATCH_EVENT = 15;
    /// A refusal, by name.
    ERROR = 16;
    /// Asks whether xenstored knows a domain (dom0 alone).
    IS_DOMAIN_INTRODUCED = 17;
    /// Lets a domain be announced as released again (dom0 alone).
    RESUME = 18;
    /// Gives a domain the rights of another (dom0 alone).
    SET_TARGET = 19;
    /// Removes all watches and transactions of the caller.
    RESET_WATCHES = 21;
    /// A part of a long list of children.
    DIRECTORY_PART = 22;
}

impl fmt::Display for MessageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "message type {}", self.0),
        }
    }
}

impl fmt::Debug for MessageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The number of a request, which the client chooses and xenstored repeats in the reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct RequestId(pub u32);

/// An open transaction, as xenstored numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct TransactionId(pub u32);

impl TransactionId {
    /// Not in a transaction.
    pub const NONE: TransactionId = TransactionId(0);
}

/// The header of each message (`struct xsd_sockmsg`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Header {
    /// The operation that the message asks for or answers.
    pub message_type: MessageType,
    /// The number of the request that this is, or answers.
    pub request: RequestId,
    /// The transaction that it belongs to.
    pub transaction: TransactionId,
    /// The number of bytes that follow.
    pub length: u32,
}

impl Header {
    /// The size of a header in bytes.
    pub const SIZE: usize = 16;

    /// Reads a header. Its values are not checked.
    pub fn from_bytes(bytes: &[u8; Header::SIZE]) -> Header {
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        Header {
            message_type: MessageType(word(0)),
            request: RequestId(word(4)),
            transaction: TransactionId(word(8)),
            length: word(12),
        }
    }

    /// Returns the header as it is sent.
    pub fn to_bytes(self) -> [u8; Header::SIZE] {
        let mut bytes = [0; Header::SIZE];
        bytes[0..4].copy_from_slice(&self.message_type.0.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.request.0.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.transaction.0.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.length.to_le_bytes());
        bytes
    }
}

macro_rules! refusals {
    ($($(#[$doc:meta])* $name:ident = $wire:literal;)*) => {
        /// The reason why xenstored refused, as ERROR messages name it (`xsd_errors`).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Refusal {
            $($(#[$doc])* $name,)*
        }

        impl Refusal {
            /// The name on the wire.
            pub fn name(self) -> &'static str {
                match self {
                    $(Refusal::$name => $wire,)*
                }
            }

            /// The refusal of that name.
            pub fn from_name(name: &[u8]) -> Option<Refusal> {
                $(if name == $wire.as_bytes() {
                    return Some(Refusal::$name);
                })*
                None
            }
        }
    };
}

refusals! {
    /// Malformed request or path.
    Invalid = "EINVAL";
    /// The caller lacks the permission.
    AccessDenied = "EACCES";
    /// Already there.
    Exists = "EEXIST";
    /// Is a directory.
    IsDirectory = "EISDIR";
    /// No such node, watch or transaction.
    NotFound = "ENOENT";
    /// xenstored is out of memory.
    OutOfMemory = "ENOMEM";
    /// A quota of the caller is used up.
    QuotaExceeded = "ENOSPC";
    /// The same in oxenstored's words, which Xen's header does not list.
    OverQuota = "EQUOTA";
    /// The store is damaged.
    Io = "EIO";
    /// Directory not empty.
    NotEmpty = "ENOTEMPTY";
    /// Unknown request.
    NotImplemented = "ENOSYS";
    /// Read-only.
    ReadOnly = "EROFS";
    /// Busy, for instance a transaction inside a transaction.
    Busy = "EBUSY";
    /// A node that the transaction used was changed meanwhile: the transaction is to be repeated.
    Again = "EAGAIN";
    /// Already connected.
    IsConnected = "EISCONN";
    /// The answer is longer than a message.
    TooBig = "E2BIG";
    /// Not the owner.
    NotPermitted = "EPERM";
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The access that one entry of a node's permissions allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NodeAccess {
    /// No access (`n`).
    None,
    /// Reading (`r`).
    Read,
    /// Writing (`w`).
    Write,
    /// Both (`b`).
    Both,
}

impl NodeAccess {
    /// Returns whether this allows reading.
    pub fn reads(self) -> bool {
        matches!(self, NodeAccess::Read | NodeAccess::Both)
    }

    /// Returns whether this allows writing.
    pub fn writes(self) -> bool {
        matches!(self, NodeAccess::Write | NodeAccess::Both)
    }
}

/// One entry of a node's permissions. The first entry of a node's list names the owner, who has all rights, and the
/// access of the domains that are not in the list; each of the others names one domain and its access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Permission {
    /// The domain that the entry is about.
    pub domain: DomId,
    /// The access that it allows.
    pub access: NodeAccess,
}

impl Permission {
    /// Reads an entry, for instance `r5`.
    pub fn parse(text: &[u8]) -> Option<Permission> {
        let (letter, digits) = text.split_first()?;
        let access = match letter {
            b'n' => NodeAccess::None,
            b'r' => NodeAccess::Read,
            b'w' => NodeAccess::Write,
            b'b' => NodeAccess::Both,
            _ => return None,
        };
        if !digits.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let domain = core::str::from_utf8(digits).ok()?.parse().ok()?;
        Some(Permission {
            domain: DomId(domain),
            access,
        })
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = match self.access {
            NodeAccess::None => 'n',
            NodeAccess::Read => 'r',
            NodeAccess::Write => 'w',
            NodeAccess::Both => 'b',
        };
        write!(f, "{letter}{}", self.domain)
    }
}

/// The shared page (`struct xenstore_domain_interface`). Never read as a whole: the type gives the offsets of its
/// fields. The fields after the indices have a meaning only if [`server_features`](Self::server_features) says so.
#[repr(C)]
#[derive(Debug)]
pub struct XenstoreInterface {
    /// Bytes to xenstored.
    pub requests: [u8; RING_SIZE],
    /// Bytes from xenstored.
    pub responses: [u8; RING_SIZE],
    /// The index up to which xenstored has read the requests.
    pub request_consumer: u32,
    /// The index up to which the domain has written requests.
    pub request_producer: u32,
    /// The index up to which the domain has read the responses.
    pub response_consumer: u32,
    /// The index up to which xenstored has written responses.
    pub response_producer: u32,
    /// `XENSTORE_SERVER_FEATURE_*`.
    pub server_features: u32,
    /// [`CONNECTED`] or [`RECONNECT`].
    pub connection: u32,
    /// `XENSTORE_ERROR_*`.
    pub error: u32,
}

/// The ring can be closed and connected again (`XENSTORE_SERVER_FEATURE_RECONNECTION`).
pub const FEATURE_RECONNECTION: u32 = 1;
/// The page's error word is in use (`XENSTORE_SERVER_FEATURE_ERROR`).
pub const FEATURE_ERROR: u32 = 2;
/// The ring is in use (`XENSTORE_CONNECTED`).
pub const CONNECTED: u32 = 0;
/// The ring waits for xenstored to set it up anew (`XENSTORE_RECONNECT`).
pub const RECONNECT: u32 = 1;
/// xenstored has found no error of the domain's (`XENSTORE_ERROR_NONE`).
pub const ERROR_NONE: u32 = 0;
/// xenstored could not use the event channel (`XENSTORE_ERROR_COMM`).
pub const ERROR_COMMUNICATION: u32 = 1;
/// An index of the ring was impossible (`XENSTORE_ERROR_RINGIDX`).
pub const ERROR_RING_INDEX: u32 = 2;
/// A message was too long (`XENSTORE_ERROR_PROTO`).
pub const ERROR_PROTOCOL: u32 = 3;

const _: () = assert!(core::mem::size_of::<XenstoreInterface>() == 2076);
const _: () = assert!(core::mem::offset_of!(XenstoreInterface, request_consumer) == 2048);
const _: () = assert!(core::mem::offset_of!(XenstoreInterface, error) == 2072);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_round_trip() {
        let header = Header {
            message_type: MessageType::DIRECTORY_PART,
            request: RequestId(0x0102_0304),
            transaction: TransactionId(7),
            length: 4096,
        };
        let bytes = header.to_bytes();
        assert_eq!(bytes[..8], [22, 0, 0, 0, 4, 3, 2, 1]);
        assert_eq!(Header::from_bytes(&bytes), header);
    }

    #[test]
    fn refusals_by_name() {
        for refusal in [Refusal::Again, Refusal::TooBig, Refusal::NotPermitted] {
            assert_eq!(Refusal::from_name(refusal.name().as_bytes()), Some(refusal));
        }
        assert_eq!(Refusal::from_name(b"EWHAT"), None);
    }

    #[test]
    fn permissions_as_text() {
        let both = Permission::parse(b"b65535").unwrap();
        assert_eq!(both.domain, DomId(65535));
        assert!(both.access.reads() && both.access.writes());
        assert_eq!(both.to_string(), "b65535");
        for bad in [&b""[..], b"r", b"x1", b"r-1", b"r65536", b"r1 ", b"r+1"] {
            assert_eq!(Permission::parse(bad), None, "{bad:?}");
        }
    }
}
