//! A disk (vbd) from its attach to its detach.
//!
//! ```text
//!   toolstack: backend/vbd/<guest>/<device> ──► config ──► target ──► image opened
//!                                                                        │
//!            ┌──────────── observed states ──► decision ◄────────────────┘
//!            │                                    │
//!       lifecycle ◄── Offer / Connect / Close / Remove
//!            │
//!       connection: one engine queue for each ring that the frontend published
//! ```
//!
//! Read next: [`decision`] for the rules of the state machine, `lifecycle` for what is done.

mod backend_nodes;
pub mod config;
mod connection;
pub mod decision;
mod ending;
pub mod features;
mod lifecycle;
mod observation;
mod problem;
pub mod published;
mod retry;
mod sector_units;
mod statistics_node;

pub use backend_nodes::{Act, Change, write_if_there};
pub use ending::{LINGER, is_over};
pub use lifecycle::live;
pub use problem::Problem;
