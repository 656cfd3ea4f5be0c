//! The request engine: serves one ring's requests from one device.
//!
//! ```text
//!   ring ──take──► in flight ──map all, one hypercall──► device queue
//!                     │  └─ or copy all, one hypercall ──┐  │ done, in any order
//!   ring ◄─publish── answers ◄──unmap all, one hypercall─┴──┘
//! ```
//!
//! One pass over that picture is a sweep ([`Queue::sweep`]). It allocates nothing, takes no lock
//! and speaks to nobody but the ring, the hypervisor and the device. (A device may take a lock for a
//! discard, and for the first write to what was discarded.) Which requests a sweep takes
//! is decided in `intake`; how it gets at their pages, in `reach`; when the frontend is shown the
//! answers, in `coalescing`.

mod backoff;
#[allow(
    unsafe_code,
    reason = "memory that the hypervisor and the device write to"
)]
mod bounce;
mod choice;
mod coalescing;
mod control;
mod flight;
#[allow(unsafe_code, reason = "memory that the hypervisor writes to")]
mod index;
#[allow(
    unsafe_code,
    reason = "reads guests' pages and has the hypervisor copy"
)]
mod indirect;
mod intake;
mod needs;
mod options;
mod pages;
mod queue;
#[allow(
    unsafe_code,
    reason = "hands guests' pages to the device and the hypervisor"
)]
mod reach;
mod serve;
mod setup;
mod stats;
mod turns;

pub use control::{QueueControl, queue_control};
pub use needs::Needs;
pub use options::{DataPath, OptionError, Options};
pub use queue::Queue;
pub use serve::serve;
pub use setup::{ConnectError, QueueError, QueueSetup};
pub use stats::{Counts, QueueStats};
pub use turns::{GuestTurns, Turn, VcpuTurns};
