//! The request engine: serves one ring's requests from one device.
//!
//! ```text
//!   ring ──take──► in flight ──map all, one hypercall──► device queue
//!                                                           │ done, in any order
//!   ring ◄─publish── responses ◄──unmap all, one hypercall──┘
//! ```
//!
//! One pass over that picture is a sweep ([`Queue::sweep`]). It allocates nothing, takes no lock
//! and speaks to nobody but the ring, the hypervisor and the device.

mod control;
mod flight;
mod queue;
mod serve;

pub use control::{QueueControl, queue_control};
pub use queue::{ConnectError, Queue, QueueError, QueueSetup};
pub use serve::serve;
