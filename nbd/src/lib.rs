//! The NBD client: exports of servers on the network, as a store of guests' disks:
//! `target=nbd:10.0.0.2:10809/root-alice`.
//!
//! ```text
//!   target=nbd:… ──► ExportDevice ──► ExportQueue, one for each ring of a guest's
//!                      │                │ requests, with the guest's pages
//!                    Export ───────── Line, one connection to the server: its requests until they are answered
//!                                       │
//!   lifecycle.rs: a task for each line, on the network's vCPU: connects, negotiates, sends, receives, connects again
//!                                       │
//!                                   dyn Stream (of crate stream)
//! ```
//!
//! A byte is copied once: from the stream's buffer into the guest's page, or back. Nothing is allocated while requests
//! are served.
//!
//! If a connection drops, or the server does not answer, the line connects again, and asks again for everything that
//! was not answered; guests only see the delay, for as long as [`ExportSettings::timeout`] says. A server that comes back
//! with another export in the old one's place is refused.
//!
//! The protocol has no means to take a command back. A server that is slow, and not gone, may do a write of the old
//! connection after it was asked for it again, and answered, on the new one. So the time after which a silent server is
//! given up is long, twice as long after each attempt, and only counts while nothing comes from the server. If an
//! operator limits the time for which requests wait, they fail when it is over, and are not sent again.
//!
//! The server is trusted with the data of its exports and with nothing else. Every number that it sends is checked, all
//! that it may make us keep is bounded, and every step of a handshake has a time. If it answers what was not asked,
//! its export is given up: the guests that use it lose that disk, and nothing else happens to them or to others.
//!
//! Read next: [`wire`], the protocol; [`Exports`], all exports that are in use; `request_table.rs`, the requests of a line.

#![no_std]
#![deny(unsafe_code)]

extern crate alloc;

mod client;
mod coverage;
mod entry;
mod export;
mod exports;
mod fault;
mod handshake;
mod lifecycle;
mod line;
mod message_stream;
mod name;
mod properties;
mod queue;
mod receiver;
mod request_table;
#[allow(unsafe_code, reason = "keeps segments of requests that are pending")]
mod segments;
mod sender;
mod store;
pub mod wire;

pub use exports::{ExportSettings, Exports};
pub use handshake::HandshakeError;
pub use line::LineCounts;
pub use name::ExportName;
pub use store::{nbd_store, without_tls};
