//! The queues of a disk whose store has not let go of the frontend's pages.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicUsize, Ordering};

/// Counts the queues of one disk whose store has not let go of them.
#[derive(Clone, Debug, Default)]
pub struct Unreleased(Arc<AtomicUsize>);

impl Unreleased {
    /// Returns whether there is any.
    pub fn any(&self) -> bool {
        self.0.load(Ordering::Acquire) > 0
    }

    /// Counts one more queue, until the returned value is dropped.
    pub(super) fn hold(&self) -> Held {
        self.0.fetch_add(1, Ordering::AcqRel);
        Held(self.clone())
    }
}

/// The count of one queue.
pub(super) struct Held(Unreleased);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::AcqRel);
    }
}
