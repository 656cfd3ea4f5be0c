//! The block backend: xenbus state machine, request engine, and the unikernel binary.
//!
//! ```text
//!   xl ──► xenstore: backend/vbd/<guest>/<device>
//!              │ watched by
//!              ▼
//!        Backend::serve ── a task for each disk ──► vbd (states, features, rings)
//!                                                     │ a task for each ring,
//!                                                     ▼ on any vCPU
//!                                                   engine (requests, grants, device)
//! ```
//!
//! The control plane, everything above the engine, runs on the first vCPU. Each queue stays on the
//! vCPU that it was given when it connected, and shares nothing with others while it serves.
//!
//! Everything here runs on the host too, against the simulated Xen; only the binary needs the
//! unikernel's runtime.
//!
//! Read next: [`backend`], then [`vbd`] for a disk's life and [`engine`] for its data path.

#![no_std]
#![deny(unsafe_code)]

extern crate alloc;

pub mod admission;
pub mod availability;
pub mod backend;
mod bucket;
mod changes;
pub mod control;
pub mod device;
pub mod engine;
pub mod error_nodes;
pub mod frontends;
pub mod guest_log;
pub mod id;
pub mod limits;
pub mod memory_target;
pub mod operator;
#[cfg(feature = "recover")]
pub mod recovery;
pub mod services;
pub mod statistics;
mod unserved;
#[cfg(feature = "recover")]
pub mod upgrade;
pub mod vbd;
pub mod vcpus;

pub use backend::Backend;
pub use services::Services;
