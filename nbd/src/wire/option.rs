//! The handshake: greeting, options, and replies to options.

use super::bytes_at;
use alloc::vec::Vec;
use bitflags::bitflags;

/// The bytes of the part of a server's greeting that every server sends.
pub const SERVER_GREETING: usize = 18;

const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// The second number of a server that negotiates nothing.
const OLD_STYLE_MAGIC: u64 = 0x0000_4202_8186_1253;
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

bitflags! {
    /// The abilities of a server in the handshake.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct HandshakeFlags: u16 {
        /// The server answers each option.
        const FIXED_NEWSTYLE = 1 << 0;
        /// The server can leave out the zeros at the end.
        const NO_ZEROES = 1 << 1;
        const _ = !0;
    }

    /// The choices of the client in the handshake.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ClientFlags: u32 {
        /// The client knows that the server answers each option.
        const FIXED_NEWSTYLE = 1 << 0;
        /// The client wants no zeros at the end.
        const NO_ZEROES = 1 << 1;
    }

    /// The operations and properties of an export.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct TransmissionFlags: u16 {
        /// The other flags are valid.
        const HAS_FLAGS = 1 << 0;
        /// The export cannot be written to.
        const READ_ONLY = 1 << 1;
        /// The server makes data durable when it is asked to.
        const SEND_FLUSH = 1 << 2;
        /// The server knows writes that are durable when they are answered.
        const SEND_FUA = 1 << 3;
        /// The server can discard data.
        const SEND_TRIM = 1 << 5;
        /// The server can write zeros by itself.
        const SEND_WRITE_ZEROES = 1 << 6;
        /// A flush on one connection covers the writes on all of them.
        const CAN_MULTI_CONN = 1 << 8;
        const _ = !0;
    }
}

/// A server's greeting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Greeting {
    /// The server negotiates options.
    Newstyle(HandshakeFlags),
    /// The server is of the old kind, which does not negotiate.
    OldStyle,
    /// The other end is not an NBD server.
    Unknown,
}

impl Greeting {
    /// Returns whether a greeting is not one of an NBD server, by its first eight bytes: other servers may send no
    /// more.
    pub fn is_other(bytes: &[u8; SERVER_GREETING]) -> bool {
        u64::from_be_bytes(bytes_at(bytes, 0)) != NBD_MAGIC
    }

    /// Reads a greeting.
    pub fn parse(bytes: &[u8; SERVER_GREETING]) -> Greeting {
        if Greeting::is_other(bytes) {
            return Greeting::Unknown;
        }
        match u64::from_be_bytes(bytes_at(bytes, 8)) {
            OPTION_MAGIC => Greeting::Newstyle(HandshakeFlags::from_bits_retain(
                u16::from_be_bytes(bytes_at(bytes, 16)),
            )),
            OLD_STYLE_MAGIC => Greeting::OldStyle,
            _ => Greeting::Unknown,
        }
    }
}

/// An option that the client requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum OptionKind {
    /// The end of the handshake, without an export.
    Abort = 2,
    /// The names of all exports.
    List = 3,
    /// TLS from here on.
    StartTls = 5,
    /// An export, and the end of the handshake.
    Go = 7,
    /// Replies in parts.
    StructuredReply = 8,
}

/// Returns the header of an option with `len` bytes of data.
pub fn option_header(option: OptionKind, len: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
    bytes[8..12].copy_from_slice(&(option as u32).to_be_bytes());
    bytes[12..].copy_from_slice(&len.to_be_bytes());
    bytes
}

/// The information about an export that the client asks for: its size and flags.
pub const INFO_EXPORT: u16 = 0;
/// The name of the export, as the server has it.
pub const INFO_NAME: u16 = 1;
/// The sizes of requests to the export.
pub const INFO_BLOCK_SIZE: u16 = 3;

/// Returns the data of [`OptionKind::Go`] for an export.
pub fn go(export: &str) -> Vec<u8> {
    let mut data = Vec::with_capacity(export.len() + 10);
    data.extend((export.len() as u32).to_be_bytes());
    data.extend(export.as_bytes());
    data.extend(2_u16.to_be_bytes());
    data.extend(INFO_NAME.to_be_bytes());
    data.extend(INFO_BLOCK_SIZE.to_be_bytes());
    data
}

/// The kind of a server's reply to an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionReplyKind {
    /// The option is done.
    Ack,
    /// An export's name.
    Server,
    /// Something about an export.
    Info,
    /// The server does not know the option.
    Unsupported,
    /// The server does not allow the option.
    Policy,
    /// The server requires TLS for it.
    TlsRequired,
    /// The server has no such export.
    UnknownExport,
    /// The server is being shut down.
    ShuttingDown,
    /// Another error.
    Error(u32),
    /// A number that is not in the specification.
    Other(u32),
}

impl OptionReplyKind {
    const ERROR: u32 = 1 << 31;

    /// Reads the kind of a reply.
    pub fn parse(number: u32) -> OptionReplyKind {
        match number {
            1 => Self::Ack,
            2 => Self::Server,
            3 => Self::Info,
            _ if number & Self::ERROR == 0 => Self::Other(number),
            _ => match number & !Self::ERROR {
                1 => Self::Unsupported,
                2 => Self::Policy,
                5 => Self::TlsRequired,
                6 => Self::UnknownExport,
                7 => Self::ShuttingDown,
                other => Self::Error(other),
            },
        }
    }

    /// Returns whether the server has not done what the option asked for.
    pub fn is_error(self) -> bool {
        !matches!(self, Self::Ack | Self::Server | Self::Info | Self::Other(_))
    }
}

/// The header of a reply to an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionReply {
    /// The kind of the reply.
    pub kind: OptionReplyKind,
    /// The number of bytes that follow.
    pub len: u32,
}

impl OptionReply {
    /// The bytes of the header.
    pub const HEADER: usize = 20;

    /// Reads the header of a reply; `None` if it is not a reply to that option.
    pub fn parse(bytes: &[u8; Self::HEADER], option: OptionKind) -> Option<OptionReply> {
        let magic = u64::from_be_bytes(bytes_at(bytes, 0));
        let to = u32::from_be_bytes(bytes_at(bytes, 8));
        (magic == REPLY_MAGIC && to == option as u32).then(|| OptionReply {
            kind: OptionReplyKind::parse(u32::from_be_bytes(bytes_at(bytes, 12))),
            len: u32::from_be_bytes(bytes_at(bytes, 16)),
        })
    }
}
