//! The request engine: serves one ring's requests from one device.
//!
//! ```text
//!   ring ──take──► in flight ──map all, one hypercall──► device queue
//!                     │  └─ or copy all, one hypercall ──┐  │ done, in any order
//!   ring ◄─publish── answers ◄──unmap all, one hypercall─┴──┘
//! ```
//!
//! One pass over that picture is a sweep ([`Queue::sweep`]). It allocates nothing, takes no lock and uses
//! nothing but the ring, the hypervisor and the device. (A device may take a lock for a discard, and for the
//! first write to what was discarded.)
//!
//! ```text
//!   serve ──► queue ──┬─► dispatch    the ring, the requests in flight, their answers
//!     │               ├─► data_path   the pages, mapped or copied: a sweep's order is its type
//!     └─► coalescing  └─► submit      the device
//! ```
//!
//! `dispatch` decides which requests a sweep takes, `data_path` how it reaches their pages, and `coalescing` when the
//! frontend is shown the responses. `later` gives new requests to a store that is at work on others. A module further
//! right calls none further left; `dispatch` and `submit` use `data_path`, and `submit` uses `dispatch`.

mod backoff;
#[allow(
    unsafe_code,
    reason = "memory that the hypervisor and the device write to"
)]
mod bounce;
mod closed_loop;
mod closing;
mod coalescing;
mod cost_model;
#[allow(
    unsafe_code,
    reason = "hands guests' pages to the device and the hypervisor"
)]
mod data_path;
#[allow(unsafe_code, reason = "memory that the hypervisor writes to")]
mod descriptors;
mod dispatch;
mod error_log;
mod gathering;
mod hold_scale;
#[allow(
    unsafe_code,
    reason = "reads guests' pages and has the hypervisor copy"
)]
mod indirect;
mod inflight;
#[cfg_attr(not(feature = "recover"), path = "without_journal.rs")]
mod journal;
mod later;
mod mappings;
mod needs;
mod options;
mod pages;
#[allow(
    unsafe_code,
    reason = "hands the device's memory to the hypervisor and back to the device"
)]
mod pieces;
mod poll_window;
mod queue;
mod queue_control;
mod serve;
mod setup;
mod stats;
mod store;
mod submit;
mod turns;
mod unreleased;

pub use journal::Journal;
pub use needs::Needs;
pub use options::{DataPath, OptionError, QueueOptions};
pub use queue::Queue;
pub use queue_control::{QueueControl, queue_control};
pub use serve::serve;
pub use setup::{QueueError, QueueSetup, QueueSetupError};
pub use stats::{QueueCounts, QueueStats};
pub use turns::{GuestTurns, Turn, VcpuTurns};
pub use unreleased::Unreleased;
