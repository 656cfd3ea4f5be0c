//! Byte streams to servers: the seam between a store that speaks a protocol and the network beneath it.
//!
//! ```text
//!   a store (nbd)       ─► dyn Network::connect ─► Box<dyn Stream>: receive, send, push, wake_with, close
//!   a layer (TLS)       ─► is a Stream over a Stream
//!   a network (TCP)     ─► is a Network, on the vCPU of its interface
//! ```
//!
//! Bytes are never copied on the way: the network lends the contiguous part of its own buffers, from which the user
//! takes what has arrived, and into which it writes what is to be sent. That is how smoltcp's sockets work, too.
//!
//! A stream belongs to the vCPU whose network made it, and stays there. Everything that the other end sends is
//! whatever it likes; this crate only carries it.
//!
//! ```
//! use bulkhead_stream::Endpoint;
//!
//! let endpoint = Endpoint::parse("[fd00::7]:10810", 10809)?;
//! assert_eq!((endpoint.host.as_str(), endpoint.port), ("fd00::7", 10810));
//! assert_eq!(endpoint.to_string(), "[fd00::7]:10810");
//! assert_eq!(Endpoint::parse("storage.example", 10809)?.to_string(), "storage.example:10809");
//! # Ok::<(), bulkhead_stream::EndpointError>(())
//! ```
//!
//! Read next: [`Stream`], [`Network`], [`Tls`].

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod address;
mod endpoint;
mod error;
mod tls;

pub use address::AddressChoice;
pub use endpoint::{Endpoint, EndpointError};
pub use error::{ConnectError, Ended};
pub use tls::{StartTlsError, StartingTls, Tls};

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::future::Future;
use core::pin::Pin;
use core::task::Waker;

/// A connection to a server: bytes in both directions, in order.
///
/// No method waits. Dropping a stream ends the connection at once.
pub trait Stream {
    /// Calls `take` with bytes that have arrived: the contiguous part of them that comes next, which is not empty.
    /// `take` returns the number of bytes, from the first on, that it has used: those are gone then, and later calls
    /// pass the others again.
    ///
    /// Returns that number, or 0 if there are no bytes now; `take` was not called then. It is called at most once. The
    /// error comes after all bytes that arrived before the end.
    fn receive(&mut self, take: &mut dyn FnMut(&mut [u8]) -> usize) -> Result<usize, Ended>;

    /// Calls `fill` with the contiguous room that comes next, which is not empty, to write bytes there that are to be
    /// sent. `fill` returns the number of bytes that it has written, from the first on.
    ///
    /// Returns that number, or 0 if there is no room now; `fill` was not called then. It is called at most once.
    fn send(&mut self, fill: &mut dyn FnMut(&mut [u8]) -> usize) -> Result<usize, Ended>;

    /// Ends a batch of calls of [`send`](Self::send) and [`receive`](Self::receive): the bytes that were filled in are
    /// sent now, and the other end learns of the room that was made.
    fn push(&mut self);

    /// Keeps the waker, in the place of an earlier one, and wakes it once bytes arrive, room is made, or the connection
    /// ends. The caller calls this before its last check for these, and then sleeps.
    fn wake_with(&mut self, waker: &Waker);

    /// Ends the connection in order: the bytes that were filled in are still sent, as far as the other end takes them,
    /// also after the stream was dropped. Only [`receive`](Self::receive) is called afterwards.
    fn close(&mut self);
}

/// The bytes of a stream's buffers that a user asks for. The network may give it less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffers {
    /// For bytes that have arrived.
    pub receive: usize,
    /// For bytes that are to be sent, or that the other end has not acknowledged.
    pub send: usize,
}

/// The future that connects to a server ([`Network::connect`]).
pub type Connecting<'a> = Pin<Box<dyn Future<Output = Result<Box<dyn Stream>, ConnectError>> + 'a>>;

/// Makes connections, for users on its own vCPU.
pub trait Network {
    /// Connects to a server: finds its address if it is named, and waits until the connection is there. The caller
    /// gives that up by dropping the future. Of several addresses, the one is tried first that `choice` says; it learns
    /// which one is tried.
    fn connect<'a>(
        &'a self,
        server: &'a Endpoint,
        choice: &'a AddressChoice,
        buffers: Buffers,
    ) -> Connecting<'a>;

    /// Returns lines about its interfaces, for the operator.
    fn lines(&self) -> Vec<String> {
        Vec::new()
    }
}
