//! The network frontend and TCP/IP: interfaces that the driver domain is given (`vif=` in its configuration, `xl
//! network-attach`), and streams to servers over them, for stores.
//!
//! ```text
//!   device/vif/0 ──► InterfaceTask, a task of the first vCPU: decides, connects, reconnects
//!                      │
//!                    Interface, and its task ── smoltcp's stack and sockets
//!                      │        └─ NetDevice ── Rings: packets to and from the backend
//!                      │
//!   a store ─► Interfaces, a Network ─► TcpStream, a Stream: the socket's own buffers, lent
//! ```
//!
//! Packets lie in pages that are granted to the backend once for each connection. A packet that arrives is read in its
//! pages, while their grants are suspended, as the backend could change it otherwise; small packets are copied out. The
//! stack copies the bytes of a stream into the socket's buffer, and its user copies them from there to where they
//! belong, or back. The backend computes checksums and cuts large TCP packets where it offers to; packets of up to 64
//! KiB are received.
//!
//! An interface has one queue, or more if the command line asks for them. All streams are one task's whatever their
//! number: what a further queue gives is a further thread of the backend. A stream is sent by one queue, so that its
//! packets stay in order, and packets of all queues are received.
//!
//! Memory is bounded: an interface has 1.5 MiB of granted pages and 130 KiB of its own, 1.1 MiB more for each further
//! queue, and each stream the buffers that its user asked for. A user that takes nothing holds up its own server alone, by TCP's window.
//!
//! The backend is not trusted with more than its packets. If it breaks the protocol of the rings, the streams over its
//! interface end, the interface is given up, and nothing else happens. When a backend is restarted, the interface
//! connects to it again; streams go on over it, unless that takes longer than TCP's time-out. A stream ends when the
//! domain loses the address from which it comes. A backend that keeps pages does not hold up the next one, nor an end
//! of the interface: they are taken back when it lets go of them.
//!
//! Read next: [`Interfaces`]; [`TcpStream`]; [`decide`], the state machine; [`InterfaceSettings`], the command line.
//!
//! [`decide`]: bulkhead_xenbus::frontend::decide

#![no_std]
#![deny(unsafe_code)]

extern crate alloc;

mod addresses;
mod backend_nodes;
mod device;
mod duplicate;
mod interface;
mod interfaces;
mod lease;
mod leftovers;
mod lifecycle;
mod names;
mod neighbours;
mod packet;
mod question;
mod receiver;
mod receivers;
#[allow(unsafe_code, reason = "makes rings in memory that it owns")]
mod rings;
mod sender;
mod sequences;
mod settings;
mod tcp;
mod traces;
mod violation;

pub use device::PacketCounts;
pub use interface::Interface;
pub use interfaces::Interfaces;
pub use sequences::Repeats;
pub use settings::{InterfaceSettings, SettingsError};
pub use tcp::TcpStream;
pub use traces::{Numbers, Traces};
pub use violation::NetifViolation;
