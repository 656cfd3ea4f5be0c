//! The resources that a queue takes, known before the queue is made.

use super::data_path::{MOST_ADDRESS_SPACE, MOST_PERSISTENT};
use bulkhead_ring::blkif::MAX_SEGMENTS;
use core::ops::Add;

/// Requests that fit on one page of a ring.
pub const SLOTS_OF_A_PAGE: usize = 32;

/// The most pages that all requests in service have together. More may be on a ring of many pages or in indirect
/// requests: they wait there until there is room. This bounds the memory and the address space of a queue.
const MOST_PAGES: usize = 512;

/// The resources that one or several queues take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Pages of address space.
    pub pages: usize,
    /// Bytes of the heap.
    pub bytes: usize,
    /// Grants that the frontend keeps for good.
    pub grants: usize,
}

impl Needs {
    /// Returns the needs of a queue whose ring has `ring_pages` pages. `persistent` says that its frontend keeps its
    /// data pages granted. The bytes are rounded up: the true number depends on the device.
    pub fn of_queue(persistent: bool, ring_pages: usize, indirect_segments: usize) -> Needs {
        let slots = SLOTS_OF_A_PAGE * ring_pages;
        let data = most_pages(slots, indirect_segments);
        let (pages, cache, page, grants) = match persistent {
            true => (MOST_ADDRESS_SPACE, 36 * 1024, 16, MOST_PERSISTENT),
            false => (data, 0, 136, 0),
        };
        Needs {
            pages: ring_pages + pages,
            bytes: 15 * 1024 + cache + slots * 72 + data * page,
            grants,
        }
    }

    /// Returns the needs of `count` such queues.
    pub fn times(self, count: usize) -> Needs {
        Needs {
            pages: self.pages * count,
            bytes: self.bytes * count,
            grants: self.grants * count,
        }
    }
}

impl Add for Needs {
    type Output = Needs;

    fn add(self, other: Needs) -> Needs {
        Needs {
            pages: self.pages + other.pages,
            bytes: self.bytes + other.bytes,
            grants: self.grants + other.grants,
        }
    }
}

/// Returns the most pages that the requests in service have on a ring of `slots` slots.
pub(super) fn most_pages(slots: usize, indirect_segments: usize) -> usize {
    let largest = indirect_segments.max(MAX_SEGMENTS);
    (slots * MAX_SEGMENTS).min(MOST_PAGES).max(largest)
}
