//! TLS, for stores that reach servers over a network: a stream over a stream.
//!
//! ```text
//!   a store (nbd) ─► dyn Stream = TlsStream ─► Records ─► dyn Stream (TCP)
//!                                                 │
//!                                               rustls ─► provider/: RustCrypto
//! ```
//!
//! [`TlsClient`] knows the authorities that are trusted and what the domain shows of itself. It is the client's side of
//! TLS 1.2 and 1.3, without sessions that are resumed. Random numbers come from the caller's [`Random`], and the time by
//! which certificates are judged from its [`Clock`]: nothing here reaches an operating system.
//!
//! A server that is not the one that was asked for is refused with a reason that an operator can act on ([`TlsError`]).
//! One that breaks the protocol, or sends without an end, loses its connection; a connection that ends without the end
//! that TLS has is an error ([`Ended::Truncated`](bulkhead_stream::Ended::Truncated)). A connection has about 98 KiB of
//! memory, which is taken when it begins; besides, rustls allocates for each record, and for the chain of certificates
//! during the handshake, which may be as long as 32 KiB.
//!
//! Read next: [`TlsClient::connect`]; `records.rs`, where bytes become records and data; `verifier.rs`, who
//! judges servers.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod buffer;
mod client;
mod clock;
mod encoding;
mod error;
mod files;
mod handshake;
mod provider;
mod random;
mod records;
mod stream;
mod verifier;

pub use client::{Identity, TlsClient};
pub use clock::{Clock, Date};
pub use error::{ConfigError, TlsError};
pub use files::{FileError, FileNames};
pub use random::{NoRandomness, Random};
pub use stream::TlsStream;
