//! Decides how long requests wait on the ring for others to join them, so that a device is given them together.
//!
//! A device has to be told of what it is given: an NVMe controller by a write to a doorbell, a backend below by a
//! notification. While it has others to work on, or while responses wait for a batch anyway, requests may wait for each
//! other: up to a number, and for a time that begins with the first of them.

use super::poll_window::Nanos;
use bulkhead_xen::Instant;

/// The requests of one queue that wait to be given to its device.
#[derive(Debug, Default)]
pub struct Gathering {
    /// The number of those that there were at the last look.
    seen: u32,
    /// A time before the first of them came, and the time at which the last was seen.
    first: Instant,
    last: Instant,
}

/// The limits to a wait, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The longest time that a request waits.
    pub most: Nanos,
    /// The longest time for which none joins those that wait.
    pub quiet: Nanos,
}

/// The way in which a frontend sends its requests, as far as it is known.
#[derive(Clone, Copy, Debug)]
pub struct RequestPattern {
    /// The number of requests that it is believed to keep outstanding.
    pub depth: u32,
    /// It sends the next requests as soon as it has responses.
    pub closed_loop: bool,
}

impl RequestPattern {
    /// Returns the number of requests that wait for each other although the device has nothing to do: the frontend is busy
    /// with as many responses of before, and more. If a device is faster than its guest, what it is given at a time would
    /// get fewer and fewer otherwise.
    pub fn together(self) -> u32 {
        match self.closed_loop {
            true => self.depth / 4,
            false => 0,
        }
    }
}

impl Gathering {
    /// Notes that `waiting` requests wait, one at least, where none did at a look `before`. Returns whether there are more
    /// than at the last look.
    #[inline]
    pub fn look(&mut self, before: Instant, now: Instant, waiting: u32) -> bool {
        let more = waiting > self.seen;
        if self.seen == 0 {
            self.first = before;
        }
        if more {
            self.last = now;
        }
        self.seen = waiting;
        more
    }

    /// Returns the time at which they are given to the device in any case.
    pub fn deadline(&self, limits: Limits) -> Instant {
        let most = self.first.0.saturating_add(limits.most);
        Instant(most.min(self.last.0.saturating_add(limits.quiet)))
    }

    /// Notes that the device was given them.
    #[inline]
    pub fn given(&mut self) {
        self.seen = 0;
    }
}
