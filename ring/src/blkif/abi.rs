//! Whose compiler laid out the messages: the ABIs of the protocol (`io/protocols.h`).

use core::fmt;
use core::str::FromStr;

/// How a frontend lays out its messages: its `protocol` node in xenstore.
///
/// The two differ in the alignment of 64-bit numbers, and so in where fields lie and how large a
/// slot is.
///
/// ```
/// use bulkhead_ring::blkif::Abi;
///
/// assert_eq!("x86_32-abi".parse(), Ok(Abi::X86_32));
/// assert!("sparc-abi".parse::<Abi>().is_err());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Abi {
    /// `x86_64-abi`: 64-bit numbers aligned to 8 bytes.
    X86_64,
    /// `x86_32-abi`: 64-bit numbers aligned to 4 bytes.
    X86_32,
}

impl Abi {
    /// The backend's own ABI: what a frontend without a `protocol` node speaks
    /// (`XEN_IO_PROTO_ABI_NATIVE`).
    pub const NATIVE: Abi = Abi::X86_64;

    /// Its name in xenstore.
    pub const fn name(self) -> &'static str {
        match self {
            Abi::X86_64 => "x86_64-abi",
            Abi::X86_32 => "x86_32-abi",
        }
    }

    /// Bytes of `struct blkif_request`, the largest message and so the size of a slot.
    pub const fn request_size(self) -> usize {
        match self {
            Abi::X86_64 => 112,
            Abi::X86_32 => 108,
        }
    }

    /// Bytes of `struct blkif_response`.
    pub const fn response_size(self) -> usize {
        match self {
            Abi::X86_64 => 16,
            Abi::X86_32 => 12,
        }
    }
}

impl fmt::Display for Abi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A `protocol` that no frontend of ours can speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownProtocol;

impl fmt::Display for UnknownProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("unknown protocol, expected x86_64-abi or x86_32-abi")
    }
}

impl core::error::Error for UnknownProtocol {}

impl FromStr for Abi {
    type Err = UnknownProtocol;

    fn from_str(name: &str) -> Result<Abi, UnknownProtocol> {
        [Abi::X86_64, Abi::X86_32]
            .into_iter()
            .find(|abi| abi.name() == name)
            .ok_or(UnknownProtocol)
    }
}
