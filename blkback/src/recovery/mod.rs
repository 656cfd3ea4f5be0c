//! What is kept of connected disks, so that the boot that follows a crash in the same domain goes on serving them
//! (`docs/recovery.md`).
//!
//! ```text
//!   places ──► place of a queue ──┬─► record      who is served, where its ring is; sealed by a checksum
//!     │                           ├─► answers     the last responses that were put, each with its index
//!     │                           └─► requests    those that are not on the ring any more, each with its index
//!     └─ after a crash: what was left, by disk
//! ```
//!
//! A store that completes reads and writes at once is answered in the order of the requests, as far as the frontend can
//! see: whenever responses are published, what is not answered are the last requests that were taken. Most are also put in
//! that order: response k is that of request k, and lies in its slot. Then all requests without a response are on
//! the ring, and all responses but the last, which is noted before it is put. Where a response comes before an
//! earlier one, until the next ones are published, each request is kept before a response overwrites it, and after a
//! crash these requests are served again.
//!
//! Other stores answer in any order. There, a request has its place until its response is published, and the index of
//! its response is noted there before: what has none, or one from the published index on, is served again.
//!
//! Whatever made the domain crash may have written here, too. A record counts only with its magic number, version and
//! checksum, a request and a response only with an index that its place can have. The bytes of a request are a guest's,
//! and are checked as those on the ring are.

mod kept_queues;
mod place;
mod record;

pub use kept_queues::{KeptQueues, LeftDisk, QueuePlace};
pub use place::{CONNECTIONS, KeptMemory, KeptQueue, QUEUES, SLOTS};
pub use record::{QueueRecord, mark_of};
