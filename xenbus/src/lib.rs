//! Parts that frontends and backends of all devices share: the states of both ends, the nodes of a peer, what
//! [frontends](frontend) do with them, the numbers of disks, requests that an operator makes by writing a node, and what
//! to do while xenstored refuses.
//!
//! ```text
//!   backend's directory              frontend's directory
//!   └─ state, features, …  ◄──────►  └─ state, ring-ref, event-channel, …
//!      ours to write                    the peer's: read once, bounded, hostile
//! ```
//!
//! A device's own protocol (which nodes there are, what they mean) is its crate's.
//!
//! ```
//! use bulkhead_xenbus::{DiskName, XenbusState};
//!
//! assert_eq!(XenbusState::parse(Some("4")), XenbusState::Connected);
//! assert_eq!(XenbusState::parse(Some("rubbish")), XenbusState::Unknown);
//! assert_eq!(DiskName::of(51712).unwrap().to_string(), "xvda");
//! ```
//!
//! Read next: [`XenbusState`], then [`read_nodes`] for what a peer has written.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod command;
mod disk_name;
pub mod frontend;
mod nodes;
pub mod retry;
mod state;

pub use command::CommandNode;
pub use disk_name::DiskName;
pub use nodes::{NodeMap, excerpt, own_node, peer_node, peer_nodes, read_nodes};
pub use state::XenbusState;
