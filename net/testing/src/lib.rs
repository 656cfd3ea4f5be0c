//! A network backend of the simulated Xen, and a host in its network.
//!
//! [`NetBack`] does with the rings what Linux's netback does, checks a frontend's packets as strictly as the network
//! would, and breaks the protocol as a test wants ([`Violation`]). [`Peer`] is a host with a TCP/IP stack: it echoes on
//! port 7, and on port 9 it takes everything and sends nothing. [`DhcpServer`] gives addresses in its network, and
//! [`NameServer`] knows names. None does anything by itself: a [`World`](world::World) steps them, and carries packets
//! from one to the other.

#![deny(unsafe_code)]

mod datagram;
mod dhcp;
mod dns;
mod half_open;
#[allow(unsafe_code, reason = "maps and copies the frontend's pages")]
mod netback;
mod peer;
#[allow(unsafe_code, reason = "hands a domain its xenstore ring")]
pub mod world;

pub use datagram::Datagram;
pub use dhcp::{DhcpServer, Lease};
pub use dns::{AnswerKind, NameServer, Record};
pub use netback::{NetBack, Offered, Violation};
pub use peer::{ADDRESS, ADDRESS6, Connection, Frame, MAC, Peer, SECOND};
