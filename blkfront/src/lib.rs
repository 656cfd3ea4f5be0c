//! The block frontend: serves guests' disks from disks that the driver domain itself is given (`disk=` in its
//! configuration, `xl block-attach`). A guest's disk names one as its target: `target=vbd:xvda`.
//!
//! ```text
//!   device/vbd/51712 ──► DiskTask, a task of the first vCPU: decides, connects, reconnects
//!                          │
//!                        Disk ── Link, one for each vCPU: a ring to the backend, if it takes that many
//!                          │        └─ RingClient, one for each VbdQueue: its requests until they are answered
//!                          │
//!   target=vbd:xvda ──► VbdDevice ──► VbdQueue, one for each ring of a guest's
//! ```
//!
//! A guest's data goes through pages of the queue's own, granted to the backend once for each connection.
//! The hypervisor copies between them and the guest's pages, and nothing is mapped. Requests that a backend has
//! not answered when it goes away are sent again to the next one; meanwhile they wait, for [`UNSENT_TIMEOUT`] at most.
//!
//! The backend is not trusted with more than its own data. The nodes that it publishes are checked like those of
//! a hostile guest, and so is every response. If a backend lies, the guests that use its disk lose that disk, and
//! nothing else happens to them or to other guests.
//!
//! Read next: [`decide`], the state machine; [`Link`], a ring and its queues; [`VbdQueue`], the data.
//!
//! [`decide`]: bulkhead_xenbus::frontend::decide

#![no_std]
#![deny(unsafe_code)]

extern crate alloc;

mod assignment;
mod backend_nodes;
mod client;
mod connection;
mod counts;
mod device;
mod free_pages;
mod frontends;
mod lifecycle;
mod link;
#[allow(unsafe_code, reason = "names parts of its own memory")]
mod queue;
mod store;
#[allow(unsafe_code, reason = "makes a ring in memory that it owns")]
mod wire;

pub use counts::RingCounts;
pub use device::{Disk, VbdDevice};
pub use frontends::Frontends;
pub use link::Link;
pub use queue::{UNSENT_TIMEOUT, VbdQueue};
pub use store::vbd_store;
pub use wire::BlkifViolation;
