//! The handshake: from a connection to an export. Every length is bounded, and so is the number of messages; the
//! caller bounds the time.

use crate::message_stream::MessageStream;
use crate::name::shown;
use crate::properties::{BlockSizes, Properties, Unusable};
use crate::wire::{
    ClientFlags, Greeting, HandshakeFlags, INFO_BLOCK_SIZE, INFO_EXPORT, INFO_NAME, OptionKind,
    OptionReply, OptionReplyKind, SERVER_GREETING, TransmissionFlags, bytes_at, go, option_header,
};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use bulkhead_stream::{Ended, StartTlsError, Stream, Tls};
use core::fmt;

/// The most bytes of a reply's data: a name, and a description beside it.
const LONGEST: u32 = 16 << 10;

/// The most replies to the option that asks for the export.
const MOST_INFOS: usize = 64;

/// The most names of exports that are counted, and the most of them that are shown.
const MOST_NAMES: usize = 10_000;
const SHOWN_NAMES: usize = 16;

/// The reason why a handshake did not lead to an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandshakeError {
    /// The connection is over.
    Ended(Ended),
    /// The handshake takes too long.
    Late,
    /// The other end is not an NBD server.
    NotNbd,
    /// The server is of a kind that is not supported.
    TooOld,
    /// The server does not keep to the protocol.
    Violation(&'static str),
    /// The server has no such export.
    NoExport {
        /// The name.
        export: String,
        /// The names of other exports; none if the server does not list them.
        others: Vec<String>,
        /// The number of further ones.
        more: usize,
    },
    /// The server refuses, for a reason that it may have given.
    Refused {
        /// The option that was asked for.
        option: OptionKind,
        /// The server's answer.
        reply: OptionReplyKind,
        /// The server's own words.
        text: String,
    },
    /// The server requires TLS.
    TlsRequired,
    /// The server has no TLS.
    NoTls,
    /// TLS failed.
    Tls(StartTlsError),
    /// The export cannot be served.
    Unusable(Unusable),
}

impl HandshakeError {
    /// Returns whether the next attempt may have another outcome.
    pub fn may_pass(&self) -> bool {
        let ends = OptionReplyKind::ShuttingDown;
        match self {
            HandshakeError::Ended(ended) => ended.may_pass(),
            HandshakeError::Late => true,
            HandshakeError::Tls(error) => error.passes,
            HandshakeError::Refused { reply, .. } => *reply == ends,
            _ => false,
        }
    }
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HandshakeError::Ended(ended) => write!(f, "{ended} before it had offered the export"),
            HandshakeError::Late => f.write_str("the server takes too long to offer the export"),
            HandshakeError::NotNbd => f.write_str("that is not an NBD server"),
            HandshakeError::TooOld => f.write_str(
                "the server is too old: it does not know the fixed newstyle handshake and NBD_OPT_GO",
            ),
            HandshakeError::Violation(what) => write!(f, "the server breaks the protocol: {what}"),
            HandshakeError::NoExport {
                export,
                others,
                more,
            } => {
                write!(f, "no export '{}'", shown(export))?;
                if others.is_empty() {
                    return f.write_str(" on the server, which does not say what it has");
                }
                write!(f, ", there are: {}", others.join(", "))?;
                match more {
                    0 => Ok(()),
                    more => write!(f, " and {more} more"),
                }
            }
            HandshakeError::Refused {
                option,
                reply,
                text,
            } => {
                match reply {
                    OptionReplyKind::Policy => f.write_str("the server does not permit it")?,
                    OptionReplyKind::ShuttingDown => f.write_str("the server is shutting down")?,
                    _ => write!(f, "the server refuses {option:?} ({reply:?})")?,
                }
                match text.is_empty() {
                    true => Ok(()),
                    false => write!(f, ": '{text}'"),
                }
            }
            HandshakeError::TlsRequired => {
                f.write_str("the server wants TLS (a target of nbds: in place of nbd:)")
            }
            HandshakeError::NoTls => f.write_str("the server has no TLS, which nbds: asks for"),
            HandshakeError::Tls(reason) => write!(f, "TLS failed: {reason}"),
            HandshakeError::Unusable(reason) => reason.fmt(f),
        }
    }
}

impl core::error::Error for HandshakeError {}

impl From<Ended> for HandshakeError {
    fn from(ended: Ended) -> Self {
        HandshakeError::Ended(ended)
    }
}

/// A connection on which commands can be sent.
pub struct Session {
    /// The connection.
    pub stream: Box<dyn Stream>,
    /// The properties of the export.
    pub properties: Properties,
    /// True if replies to reads are structured.
    pub structured: bool,
}

/// Asks a server for an export.
pub async fn negotiate(
    stream: Box<dyn Stream>,
    export: &str,
    tls: Option<(&dyn Tls, &str)>,
) -> Result<Session, HandshakeError> {
    let mut messages = MessageStream(stream);
    greet(&mut messages).await?;
    if let Some((tls, server)) = tls {
        messages = start_tls(messages, tls, server).await?;
    }
    let structured = wants_structured(&mut messages).await?;
    let properties = open(&mut messages, export).await?;
    Ok(Session {
        stream: messages.0,
        properties,
        structured,
    })
}

async fn greet(messages: &mut MessageStream) -> Result<(), HandshakeError> {
    let mut greeting = [0; SERVER_GREETING];
    messages.read(&mut greeting[..8]).await?;
    if Greeting::is_other(&greeting) {
        return Err(HandshakeError::NotNbd);
    }
    messages.read(&mut greeting[8..]).await?;
    let flags = match Greeting::parse(&greeting) {
        Greeting::Newstyle(flags) => flags,
        Greeting::OldStyle => return Err(HandshakeError::TooOld),
        Greeting::Unknown => return Err(HandshakeError::NotNbd),
    };
    if !flags.contains(HandshakeFlags::FIXED_NEWSTYLE) {
        return Err(HandshakeError::TooOld);
    }
    let mut ours = ClientFlags::FIXED_NEWSTYLE;
    ours.set(
        ClientFlags::NO_ZEROES,
        flags.contains(HandshakeFlags::NO_ZEROES),
    );
    messages.write(&ours.bits().to_be_bytes()).await?;
    Ok(())
}

async fn ask(
    messages: &mut MessageStream,
    option: OptionKind,
    data: &[u8],
) -> Result<(), HandshakeError> {
    let header = option_header(option, data.len() as u32);
    messages.write(&header).await?;
    messages.write(data).await?;
    Ok(())
}

/// Reads a reply to an option, and its data.
async fn reply(
    messages: &mut MessageStream,
    option: OptionKind,
) -> Result<(OptionReplyKind, Vec<u8>), HandshakeError> {
    let mut header = [0; OptionReply::HEADER];
    messages.read(&mut header).await?;
    let reply = OptionReply::parse(&header, option);
    let reply = reply.ok_or(HandshakeError::Violation(
        "that is not a reply to what was asked",
    ))?;
    if reply.len > LONGEST {
        return Err(HandshakeError::Violation("a reply is too long"));
    }
    let mut data = vec![0; reply.len as usize];
    messages.read(&mut data).await?;
    Ok((reply.kind, data))
}

fn refused(option: OptionKind, reply: OptionReplyKind, data: &[u8]) -> HandshakeError {
    match reply {
        OptionReplyKind::TlsRequired => HandshakeError::TlsRequired,
        _ => HandshakeError::Refused {
            option,
            reply,
            text: shown(&String::from_utf8_lossy(data)),
        },
    }
}

const UNEXPECTED: HandshakeError =
    HandshakeError::Violation("a reply says what cannot be said here");

async fn start_tls(
    mut messages: MessageStream,
    tls: &dyn Tls,
    server: &str,
) -> Result<MessageStream, HandshakeError> {
    let option = OptionKind::StartTls;
    ask(&mut messages, option, &[]).await?;
    match reply(&mut messages, option).await? {
        (OptionReplyKind::Ack, data) if data.is_empty() => {}
        (OptionReplyKind::Unsupported | OptionReplyKind::Policy, _) => {
            return Err(HandshakeError::NoTls);
        }
        (kind, data) if kind.is_error() => return Err(refused(option, kind, &data)),
        _ => return Err(UNEXPECTED),
    }
    // What has come behind the reply is for TLS to judge.
    match tls.start(messages.0, server).await {
        Ok(stream) => Ok(MessageStream(stream)),
        Err(error) => Err(HandshakeError::Tls(error)),
    }
}

/// Asks for structured replies: only they can report an error within a read.
async fn wants_structured(messages: &mut MessageStream) -> Result<bool, HandshakeError> {
    let option = OptionKind::StructuredReply;
    ask(messages, option, &[]).await?;
    match reply(messages, option).await? {
        (OptionReplyKind::Ack, data) if data.is_empty() => Ok(true),
        (OptionReplyKind::TlsRequired, _) => Err(HandshakeError::TlsRequired),
        (kind, _) if kind.is_error() => Ok(false),
        _ => Err(UNEXPECTED),
    }
}

/// Asks for an export.
async fn open(messages: &mut MessageStream, export: &str) -> Result<Properties, HandshakeError> {
    let option = OptionKind::Go;
    ask(messages, option, &go(export)).await?;
    let (mut size, mut sizes, mut name) = (None, BlockSizes::USUAL, None);
    for _ in 0..MOST_INFOS {
        let (kind, data) = reply(messages, option).await?;
        match kind {
            OptionReplyKind::Info => info(&data, &mut size, &mut sizes, &mut name)?,
            OptionReplyKind::Ack => {
                let (bytes, flags) = size.ok_or(HandshakeError::Violation(
                    "it does not say how large the export is",
                ))?;
                let properties = Properties::new(bytes, flags, sizes, name);
                return properties.map_err(HandshakeError::Unusable);
            }
            OptionReplyKind::UnknownExport => return Err(other_exports(messages, export).await),
            OptionReplyKind::Unsupported => return Err(HandshakeError::TooOld),
            _ if kind.is_error() => return Err(refused(option, kind, &data)),
            _ => return Err(UNEXPECTED),
        }
    }
    Err(HandshakeError::Violation(
        "it has no end to tell of the export",
    ))
}

/// Takes a server's information about an export.
fn info(
    data: &[u8],
    size: &mut Option<(u64, TransmissionFlags)>,
    sizes: &mut BlockSizes,
    name: &mut Option<String>,
) -> Result<(), HandshakeError> {
    const LENGTH: HandshakeError = HandshakeError::Violation("an information has the wrong length");
    if data.len() < 2 {
        return Err(LENGTH);
    }
    let value = &data[2..];
    match u16::from_be_bytes(bytes_at(data, 0)) {
        INFO_EXPORT if value.len() == 10 => {
            let flags = u16::from_be_bytes(bytes_at(value, 8));
            *size = Some((
                u64::from_be_bytes(bytes_at(value, 0)),
                TransmissionFlags::from_bits_retain(flags),
            ));
        }
        INFO_BLOCK_SIZE if value.len() == 12 => {
            let number = |at| u32::from_be_bytes(bytes_at(value, at));
            *sizes = BlockSizes {
                minimum: number(0),
                preferred: number(4),
                maximum: number(8),
            };
        }
        INFO_EXPORT | INFO_BLOCK_SIZE => return Err(LENGTH),
        INFO_NAME => *name = Some(String::from_utf8_lossy(value).into_owned()),
        _ => {}
    }
    Ok(())
}

/// Asks for the names of other exports.
async fn other_exports(messages: &mut MessageStream, export: &str) -> HandshakeError {
    let (mut others, mut count) = (Vec::new(), 0);
    if let Err(error @ HandshakeError::Violation(_)) = list(messages, &mut others, &mut count).await
    {
        return error;
    }
    // It is only polite.
    let _ = ask(messages, OptionKind::Abort, &[]).await;
    messages.0.close();
    HandshakeError::NoExport {
        export: export.into(),
        more: count - others.len(),
        others,
    }
}

async fn list(
    messages: &mut MessageStream,
    others: &mut Vec<String>,
    count: &mut usize,
) -> Result<(), HandshakeError> {
    let option = OptionKind::List;
    ask(messages, option, &[]).await?;
    while *count < MOST_NAMES {
        let (kind, data) = reply(messages, option).await?;
        match kind {
            OptionReplyKind::Server => {
                let name = listed(&data)
                    .ok_or(HandshakeError::Violation("a name has the wrong length"))?;
                *count += 1;
                if others.len() < SHOWN_NAMES {
                    others.push(match name {
                        b"" => "'' (the default)".into(),
                        name => shown(&String::from_utf8_lossy(name)),
                    });
                }
            }
            OptionReplyKind::Ack => return Ok(()),
            // It does not tell.
            _ if kind.is_error() => return Ok(()),
            _ => return Err(UNEXPECTED),
        }
    }
    Ok(())
}

/// Returns the name in a reply that lists one.
fn listed(data: &[u8]) -> Option<&[u8]> {
    let len = u32::from_be_bytes(data.get(..4)?.try_into().ok()?);
    data.get(4..)?.get(..len as usize)
}
