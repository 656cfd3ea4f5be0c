//! A disk (vbd) from its attach to its detach.
//!
//! ```text
//!   toolstack: backend/vbd/<guest>/<device> ──► config ──► target ──► image opened
//!                                                                        │
//!            ┌──────────── observed states ─► state machine ◄────────────┘
//!            │                                    │
//!       lifecycle ◄── Offer / Connect / Close / Remove
//!            │
//!       connection: one engine queue for each ring that the frontend published
//! ```
//!
//! Read next: [`state_machine`] for the rules of the state machine, `lifecycle` for what is done.

mod backend_nodes;
pub mod config;
mod connection;
pub mod features;
pub mod frontend_nodes;
mod lifecycle;
mod observation;
mod problem;
mod retry;
mod sector_units;
pub mod state_machine;
mod statistics_node;
mod teardown;

pub use backend_nodes::{Act, DirectoryChange, write_if_there};
pub use lifecycle::live;
pub use problem::Problem;
pub use teardown::{LINGER, is_over};
