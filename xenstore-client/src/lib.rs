//! The xenstore wire protocol and an async client over the ring.
//!
//! Xenstore is where the toolstack tells a driver domain what to serve, and where backend and
//! frontend agree on how. A [`Client`] asks it, any number of requests at a time; a
//! [`Connection`] moves the bytes, as a task of the same vCPU.
//!
//! ```text
//!   Client, Watch, Transaction ──requests──►  Connection  ──bytes──►  Ring ◄─► xenstored
//!                               ◄─replies──      (task)   ◄─bytes──
//!                               ◄──events──
//! ```
//!
//! ```
//! use bulkhead_xenstore_client::{Client, Error};
//!
//! async fn announce(store: &Client) -> Result<u32, Error> {
//!     let mut watch = store.watch("backend/vbd").await?;
//!     watch.next().await?; // Every watch fires once at once.
//!     store
//!         .transaction(async |tx| {
//!             tx.write("data/state", "2").await?;
//!             tx.write("data/feature-flush-cache", "1").await
//!         })
//!         .await?;
//!     store.read_number("backend/vbd/5/51712/frontend-id").await
//! }
//! ```
//!
//! Read next: [`Nodes`], the operations that a client and a transaction have in common;
//! [`Watch`]; [`wire`] for the messages; [`Ring`] for the shared page, where all of this crate's
//! `unsafe` is.

#![no_std]
#![deny(unsafe_code)]

extern crate alloc;

#[cfg(test)]
extern crate std;

mod client;
mod connection;
mod error;
mod listing;
mod nodes;
mod path;
mod pending;
mod resumption;
mod ring;
mod shared;
mod transaction;
mod watch;
pub mod wire;

#[cfg(test)]
mod tests;

pub use bulkhead_xen::abi::xs_wire::{NodeAccess, Permission, Refusal};
pub use client::Client;
pub use connection::{Connection, Transport};
pub use error::{ConnectionFault, Error, Excerpt, Fault};
pub use nodes::Nodes;
pub use path::{Path, PathFault};
pub use resumption::{NotResumed, Positions, Resumable, is_within_request};
pub use ring::Ring;
pub use transaction::{Outcome, Transaction};
pub use watch::Watch;
