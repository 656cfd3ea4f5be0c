//! What is kept of connected disks, so that the boot that follows a crash in the same domain goes on serving them
//! (`docs/recovery.md`).
//!
//! ```text
//!   keeper ──► place of a queue ──┬─► record      who is served, where its ring is; sealed by a checksum
//!     │                           └─► requests    as they were taken, each with its index
//!     └─ after a crash: what was left, by disk
//! ```
//!
//! Each request is taken off the ring straight into its place, which is the private copy that is checked and served:
//! keeping it costs the note of its index. Stores that complete reads and writes at once are answered in the order of
//! the requests, as far as the frontend can see: whenever responses are published, what is not answered are the last
//! requests that were taken. So the ring's published index alone tells what is to be served again.
//!
//! Other stores answer in any order. There, a request has its place until its response is published, and the index of
//! its response is noted there before: what has none, or one from the published index on, is served again.
//!
//! Whatever made the domain crash may have written here, too. A record counts only with its magic number, version and
//! checksum, a request only with the index that its place has to have. The bytes of a request are a guest's, and are
//! checked as those on the ring are.

mod keeper;
mod place;
mod record;

pub use keeper::{Claim, Keeper, LeftDisk};
pub use place::{CONNECTIONS, Kept, Memory, Place, QUEUES, SLOTS};
pub use record::{Record, mark_of};
