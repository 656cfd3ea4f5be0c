//! The ABIs of the protocol (`io/protocols.h`), which differ in the layout of messages.

use core::fmt;
use core::str::FromStr;

/// The layout of a frontend's messages, named by its `protocol` node in xenstore.
///
/// The two differ in the alignment of 64-bit numbers, and so in the places of fields and in the size of a slot.
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
    /// The backend's own ABI, which a frontend without a `protocol` node has (`XEN_IO_PROTO_ABI_NATIVE`).
    pub const NATIVE: Abi = Abi::X86_64;

    /// Returns its name in xenstore.
    pub const fn name(self) -> &'static str {
        match self {
            Abi::X86_64 => "x86_64-abi",
            Abi::X86_32 => "x86_32-abi",
        }
    }

    /// Returns the size of `struct blkif_request` in bytes. It is the largest message, and so the size of a slot.
    pub const fn request_size(self) -> usize {
        match self {
            Abi::X86_64 => 112,
            Abi::X86_32 => 108,
        }
    }

    /// Returns the size of `struct blkif_response` in bytes.
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

/// A value of `protocol` that is not supported.
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
