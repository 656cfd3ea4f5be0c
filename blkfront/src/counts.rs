//! Counts of a disk's requests, for the operator.

use core::ops::AddAssign;

/// The requests of a ring, or of a whole disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingCounts {
    /// Requests sent to the backend. A guest's request counts as several if it has more pages than the backend takes in
    /// one, and is counted again if it is sent again. This frontend's own flushes count, too.
    pub requests: u64,
    /// Requests that the backend answered with an error.
    pub errors: u64,
    /// Requests that the backend has not answered yet.
    pub outstanding: u64,
    /// Guests' requests that wait for room on the ring, or for a backend.
    pub waiting: u64,
}

impl AddAssign for RingCounts {
    fn add_assign(&mut self, other: RingCounts) {
        self.requests += other.requests;
        self.errors += other.errors;
        self.outstanding += other.outstanding;
        self.waiting += other.waiting;
    }
}
