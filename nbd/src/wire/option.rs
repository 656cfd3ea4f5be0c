//! The handshake: greeting, options, and replies to options.

use super::bytes_at;
use alloc::vec::Vec;
use bitflags::bitflags;

/// The bytes of a server's greeting, as far as every server sends them.
pub const SERVER_GREETING: usize = 18;

const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// The second number of a server that negotiates nothing.
const OLD_STYLE_MAGIC: u64 = 0x0000_4202_8186_1253;
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

bitflags! {
    /// What a server can do in the handshake.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct HandshakeFlags: u16 {
        /// It answers each option.
        const FIXED_NEWSTYLE = 1 << 0;
        /// It can leave out zeros at the end.
        const NO_ZEROES = 1 << 1;
        const _ = !0;
    }

    /// What the client does in the handshake.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ClientFlags: u32 {
        /// It knows that the server answers each option.
        const FIXED_NEWSTYLE = 1 << 0;
        /// It wants no zeros at the end.
        const NO_ZEROES = 1 << 1;
    }

    /// What an export can do.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct TransmissionFlags: u16 {
        /// The other flags mean something.
        const HAS_FLAGS = 1 << 0;
        /// It cannot be written to.
        const READ_ONLY = 1 << 1;
        /// It makes data durable when it is asked to.
        const SEND_FLUSH = 1 << 2;
        /// It knows writes that are durable when they are answered.
        const SEND_FUA = 1 << 3;
        /// It forgets data.
        const SEND_TRIM = 1 << 5;
        /// It writes zeros.
        const SEND_WRITE_ZEROES = 1 << 6;
        /// A flush of one connection is one of all.
        const CAN_MULTI_CONN = 1 << 8;
        const _ = !0;
    }
}

/// A server's greeting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Greeting {
    /// It negotiates.
    Newstyle(HandshakeFlags),
    /// It is a server of the old kind, which does not.
    OldStyle,
    /// It is no NBD server.
    Unknown,
}

impl Greeting {
    /// Returns whether a greeting is not one of an NBD server, by its first eight bytes: others may send no more.
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

/// An option that the client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum OptionKind {
    /// The handshake is over without an export.
    Abort = 2,
    /// The names of all exports.
    List = 3,
    /// TLS from now on.
    StartTls = 5,
    /// That export, and the end of the handshake.
    Go = 7,
    /// Replies in parts.
    StructuredReply = 8,
}

/// Returns the bytes that an option with that much data begins with.
pub fn option_header(option: OptionKind, len: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
    bytes[8..12].copy_from_slice(&(option as u32).to_be_bytes());
    bytes[12..].copy_from_slice(&len.to_be_bytes());
    bytes
}

/// What is asked about an export, and told.
pub const INFO_EXPORT: u16 = 0;
/// Its name, as the server has it.
pub const INFO_NAME: u16 = 1;
/// The sizes of its requests.
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

/// What a server answers to an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionReplyKind {
    /// It is done.
    Ack,
    /// An export's name.
    Server,
    /// Something about an export.
    Info,
    /// It does not know the option.
    Unsupported,
    /// It does not want to.
    Policy,
    /// It only does that by TLS.
    TlsRequired,
    /// It has no such export.
    UnknownExport,
    /// It is being shut down.
    ShuttingDown,
    /// Another error.
    Error(u32),
    /// What the specification does not have.
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

    /// Returns whether the server has not done what was asked.
    pub fn is_error(self) -> bool {
        !matches!(self, Self::Ack | Self::Server | Self::Info | Self::Other(_))
    }
}

/// What a reply to an option begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionReply {
    /// What it says.
    pub kind: OptionReplyKind,
    /// The bytes that follow.
    pub len: u32,
}

impl OptionReply {
    /// The bytes that a reply begins with.
    pub const HEADER: usize = 20;

    /// Reads the beginning of a reply; `None` if it is none to that option.
    pub fn parse(bytes: &[u8; Self::HEADER], option: OptionKind) -> Option<OptionReply> {
        let magic = u64::from_be_bytes(bytes_at(bytes, 0));
        let to = u32::from_be_bytes(bytes_at(bytes, 8));
        (magic == REPLY_MAGIC && to == option as u32).then(|| OptionReply {
            kind: OptionReplyKind::parse(u32::from_be_bytes(bytes_at(bytes, 12))),
            len: u32::from_be_bytes(bytes_at(bytes, 16)),
        })
    }
}
