//! Messages: checked on the way in, typed on the way out.
//!
//! Nothing past this module sees raw bytes of the stream. Each message is a [`Header`] and up to
//! [`PAYLOAD_MAX`] bytes (`io/xs_wire.h`); Xen's `docs/misc/xenstore.txt` says what they are
//! for each kind of message.

use crate::error::{ConnectionFault, Excerpt};
use crate::path::Path;
use alloc::string::String;
use alloc::vec::Vec;
use bulkhead_xen::DomId;
pub use bulkhead_xen::abi::xs_wire::{
    Header, MessageType, PAYLOAD_MAX, Permission, Refusal, RequestId, TransactionId,
};
use core::fmt::{self, Write};

/// Names a watch among those of this domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u32);

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A message that has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Its header.
    pub header: Header,
    /// The bytes after it.
    pub payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// Splits the first message off a stream of bytes. `None` if it is not complete yet.
    ///
    /// ```
    /// use bulkhead_xenstore_client::wire::{Message, MessageType};
    ///
    /// let mut bytes = vec![2, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, b'o'];
    /// assert_eq!(Message::split(&bytes), Ok(None));
    /// bytes.push(b'k');
    /// let (message, rest) = Message::split(&bytes).unwrap().unwrap();
    /// assert_eq!(message.header.message_type, MessageType::READ);
    /// assert_eq!((message.payload, rest), (&b"ok"[..], &b""[..]));
    /// ```
    pub fn split(stream: &'a [u8]) -> Result<Option<(Message<'a>, &'a [u8])>, ConnectionFault> {
        let Some((start, rest)) = stream.split_first_chunk() else {
            return Ok(None);
        };
        let header = Header::from_bytes(start);
        let length = header.length as usize;
        if length > PAYLOAD_MAX {
            return Err(ConnectionFault::TooLong(Excerpt::of(stream)));
        }
        let message = rest.split_at_checked(length);
        Ok(message.map(|(payload, rest)| (Message { header, payload }, rest)))
    }

    /// Returns the message as it arrived.
    pub fn excerpt(&self) -> Excerpt {
        let mut bytes = self.header.to_bytes().to_vec();
        bytes.extend_from_slice(self.payload);
        Excerpt::of(&bytes)
    }
}

/// A request to xenstored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// Names of a node's children.
    Directory(&'a str),
    /// Names of a node's children, from a byte of their list on.
    DirectoryPart(&'a str, usize),
    /// A node's value.
    Read(&'a str),
    /// The start of a node's value, of 64 bytes at most, though xenstored sends all of it.
    ReadStart(&'a str),
    /// Sets a node's value.
    Write(&'a str, &'a [u8]),
    /// Makes sure that a node exists.
    Mkdir(&'a str),
    /// Removes a node and everything below.
    Remove(&'a str),
    /// A node's permissions.
    GetPermissions(&'a str),
    /// Sets a node's permissions.
    SetPermissions(&'a str, &'a [Permission]),
    /// Sets a watch.
    Watch(&'a str, Token),
    /// Removes a watch.
    Unwatch(&'a str, Token),
    /// Removes all watches and transactions of this domain.
    ResetWatches,
    /// Opens a transaction.
    TransactionStart,
    /// Ends a transaction: true commits it.
    TransactionEnd(bool),
    /// A domain's own directory.
    DomainPath(DomId),
}

impl Request<'_> {
    /// Returns its type on the wire.
    pub fn message_type(&self) -> MessageType {
        match self {
            Request::Directory(_) => MessageType::DIRECTORY,
            Request::DirectoryPart(..) => MessageType::DIRECTORY_PART,
            Request::Read(_) | Request::ReadStart(_) => MessageType::READ,
            Request::Write(..) => MessageType::WRITE,
            Request::Mkdir(_) => MessageType::MKDIR,
            Request::Remove(_) => MessageType::RM,
            Request::GetPermissions(_) => MessageType::GET_PERMS,
            Request::SetPermissions(..) => MessageType::SET_PERMS,
            Request::Watch(..) => MessageType::WATCH,
            Request::Unwatch(..) => MessageType::UNWATCH,
            Request::ResetWatches => MessageType::RESET_WATCHES,
            Request::TransactionStart => MessageType::TRANSACTION_START,
            Request::TransactionEnd(_) => MessageType::TRANSACTION_END,
            Request::DomainPath(_) => MessageType::GET_DOMAIN_PATH,
        }
    }

    /// Returns the path that it is about; empty if it is about none.
    pub fn subject(&self) -> &str {
        match self {
            Request::Directory(path)
            | Request::DirectoryPart(path, _)
            | Request::Read(path)
            | Request::ReadStart(path)
            | Request::Write(path, _)
            | Request::Mkdir(path)
            | Request::Remove(path)
            | Request::GetPermissions(path)
            | Request::SetPermissions(path, _)
            | Request::Watch(path, _)
            | Request::Unwatch(path, _) => path,
            _ => "",
        }
    }

    /// Returns the payload, of any length.
    fn payload(&self) -> Vec<u8> {
        let mut payload = Payload(Vec::new());
        match *self {
            Request::Directory(path)
            | Request::Read(path)
            | Request::ReadStart(path)
            | Request::Mkdir(path)
            | Request::Remove(path)
            | Request::GetPermissions(path) => payload.string(path),
            Request::DirectoryPart(path, offset) => {
                payload.string(path);
                payload.string(offset);
            }
            Request::Write(path, value) => {
                payload.string(path);
                payload.0.extend_from_slice(value);
            }
            Request::SetPermissions(path, permissions) => {
                payload.string(path);
                for permission in permissions {
                    payload.string(permission);
                }
            }
            Request::Watch(path, token) | Request::Unwatch(path, token) => {
                payload.string(path);
                payload.string(token);
            }
            Request::ResetWatches | Request::TransactionStart => payload.string(""),
            Request::TransactionEnd(commit) => payload.string(if commit { "T" } else { "F" }),
            Request::DomainPath(domain) => payload.string(domain),
        }
        payload.0
    }

    /// Returns the message as it is sent, or the length of its payload if that is too long.
    pub fn emit(&self, request: RequestId, transaction: TransactionId) -> Result<Vec<u8>, usize> {
        let payload = self.payload();
        if payload.len() > PAYLOAD_MAX {
            return Err(payload.len());
        }
        let header = Header {
            message_type: self.message_type(),
            request,
            transaction,
            length: payload.len() as u32,
        };
        let mut message = header.to_bytes().to_vec();
        message.extend_from_slice(&payload);
        Ok(message)
    }
}

struct Payload(Vec<u8>);

impl Payload {
    /// Adds a string and its nul.
    fn string(&mut self, text: impl fmt::Display) {
        // Writing into memory cannot fail.
        let _ = write!(self, "{text}\0");
    }
}

impl Write for Payload {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

/// Returns the strings of a payload that consists only of strings, each with its nul.
fn strings(payload: &[u8]) -> Option<impl Iterator<Item = &str>> {
    let text = core::str::from_utf8(payload).ok()?;
    if text.is_empty() {
        // An empty list of strings.
        return Some("".split_terminator('\0'));
    }
    text.ends_with('\0').then(|| text.split_terminator('\0'))
}

/// Returns the only string of a payload.
fn only(payload: &[u8]) -> Option<&str> {
    let mut list = strings(payload)?;
    let first = list.next()?;
    list.next().is_none().then_some(first)
}

/// Reads the answer to requests whose answer says only that they were done.
pub fn parse_okay(payload: &[u8]) -> Option<()> {
    (payload == b"OK\0").then_some(())
}

/// Reads the answer to [`Request::Directory`].
pub fn parse_names(payload: &[u8]) -> Option<Vec<String>> {
    let names = strings(payload)?;
    names
        .map(|name| (!name.is_empty()).then(|| name.into()))
        .collect()
}

/// Reads the answer to [`Request::GetPermissions`].
pub fn parse_permissions(payload: &[u8]) -> Option<Vec<Permission>> {
    let list: Option<Vec<_>> = strings(payload)?
        .map(|text| Permission::parse(text.as_bytes()))
        .collect();
    list.filter(|list| !list.is_empty())
}

/// Reads the answer to [`Request::TransactionStart`].
pub fn parse_transaction(payload: &[u8]) -> Option<TransactionId> {
    let id = TransactionId(only(payload)?.parse().ok()?);
    (id != TransactionId::NONE).then_some(id)
}

/// Reads the answer to [`Request::DomainPath`].
pub fn parse_path(payload: &[u8]) -> Option<Path> {
    let path = only(payload)?;
    Path::new(path).ok().filter(|_| path.starts_with('/'))
}

/// Reads an ERROR. A name that `io/xs_wire.h` does not list is malformed.
pub fn parse_refusal(payload: &[u8]) -> Option<Refusal> {
    Refusal::from_name(payload.strip_suffix(b"\0")?)
}

/// The answer to [`Request::DirectoryPart`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryPart<'a> {
    /// Changes whenever the node does.
    pub generation: &'a str,
    /// The names in this part.
    pub names: Vec<&'a str>,
    /// The number of bytes of the whole list that they are.
    pub length: usize,
    /// True if the list ends here.
    pub last: bool,
}

impl<'a> DirectoryPart<'a> {
    /// Reads a part: the generation, names, and at the list's end an empty name.
    pub fn parse(payload: &'a [u8]) -> Option<DirectoryPart<'a>> {
        let text = core::str::from_utf8(payload).ok()?;
        let (generation, mut list) = text.split_once('\0')?;
        let last = list == "\0" || list.ends_with("\0\0");
        if last {
            list = &list[..list.len() - 1];
        }
        let names: Vec<&str> = strings(list.as_bytes())?.collect();
        let digits = !generation.is_empty() && generation.bytes().all(|b| b.is_ascii_digit());
        // A part that neither names anything nor ends the list would lead nowhere.
        let useful = last || !names.is_empty();
        if !digits || !useful || names.iter().any(|name| name.is_empty()) {
            return None;
        }
        Some(DirectoryPart {
            generation,
            names,
            length: list.len(),
            last,
        })
    }
}

/// Something under a watch has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The path of the node that has changed.
    pub path: Path,
    /// The watch that it is for; `None` if no client of this crate has set it (an earlier system of this
    /// domain may have).
    pub token: Option<Token>,
}

impl Event {
    /// Reads the payload of a WATCH_EVENT.
    pub fn parse(payload: &[u8]) -> Option<Event> {
        let mut list = strings(payload)?;
        let path = Path::new(list.next()?).ok()?;
        let token = list.next()?.parse().ok().map(Token);
        // Servers may append more in the future.
        Some(Event { path, token })
    }
}
