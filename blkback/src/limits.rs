//! The limits of what a frontend is offered.

use crate::engine::Needs;

/// The most that the backend serves of a disk.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The most queues (`multi-queue-max-queues`).
    pub queues: u32,
    /// log2 of the most ring pages (`max-ring-page-order`).
    pub ring_page_order: u32,
    /// The most segments of an indirect request (`feature-max-indirect-segments`); 0 offers none.
    pub indirect_segments: u32,
    /// The frontend may keep its data pages granted (`feature-persistent`).
    pub persistent: bool,
}

/// The number of queues that the smallest driver domain offers: frontends make one for each of their
/// own vCPUs, which then share nothing either, also where one vCPU serves all of them.
const LEAST_QUEUES: u32 = 4;

impl Limits {
    /// Returns the limits for a driver domain with `vcpus` vCPUs: at least one queue for each, as xen-blkback
    /// offers.
    pub fn for_vcpus(vcpus: usize) -> Limits {
        Limits {
            queues: LEAST_QUEUES.max(vcpus as u32),
            ring_page_order: 4,
            indirect_segments: 256,
            persistent: true,
        }
    }

    /// Returns the needs of a queue whose ring has as many pages as are offered.
    pub fn queue(&self, persistent: bool) -> Needs {
        self.queue_of(persistent, 1 << self.ring_page_order)
    }

    /// Returns the needs of a queue whose ring has `ring_pages` pages.
    pub fn queue_of(&self, persistent: bool, ring_pages: usize) -> Needs {
        Needs::of_queue(persistent, ring_pages, self.indirect_segments as usize)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits::for_vcpus(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_for_each_vcpu_and_at_least_four() {
        assert_eq!(Limits::for_vcpus(1).queues, 4);
        assert_eq!(Limits::for_vcpus(6).queues, 6);
    }
}
