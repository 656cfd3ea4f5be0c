//! Who still has a part of a function: its driver, and every register window and interrupt of the driver's, on any
//! vCPU.

use alloc::sync::{Arc, Weak};
use futures_util::task::AtomicWaker;

/// Held by each part of a function. The last one to go wakes the frontend's task.
pub struct Holder(Arc<AtomicWaker>);

impl Drop for Holder {
    fn drop(&mut self) {
        self.0.wake();
    }
}

/// The frontend's view of the holders of a function.
pub struct Holders(Weak<Holder>);

impl Holders {
    /// Returns the first holder of a function, and the view of all. `waker` is of the frontend's task.
    pub fn new(waker: &Arc<AtomicWaker>) -> (Arc<Holder>, Holders) {
        let holder = Arc::new(Holder(waker.clone()));
        let holders = Holders(Arc::downgrade(&holder));
        (holder, holders)
    }

    /// Returns whether there is any.
    pub fn any(&self) -> bool {
        self.0.strong_count() > 0
    }
}
