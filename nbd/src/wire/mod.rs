//! The bytes of the NBD protocol: the baseline of its specification, and structured replies.
//!
//! All numbers are big-endian. Nothing here waits or keeps state.

mod option;
mod reply;
mod request;

pub use option::{
    ClientFlags, Greeting, HandshakeFlags, INFO_BLOCK_SIZE, INFO_EXPORT, INFO_NAME, OptionKind,
    OptionReply, OptionReplyKind, SERVER_GREETING, TransmissionFlags, go, option_header,
};
pub use reply::{
    CHUNK_HEADER, Chunk, ChunkKind, ErrorCode, REPLY_MAGIC, SIMPLE_REPLY, STRUCTURED_MAGIC,
    SimpleReply,
};
pub use request::{COMMAND_HEADER, Command, CommandKind};

/// Returns the big-endian number of `N` bytes at that place.
///
/// # Panics
/// If there are not that many.
pub(crate) fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut taken = [0; N];
    taken.copy_from_slice(&bytes[at..at + N]);
    taken
}
