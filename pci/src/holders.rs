//! The parts of a function that are still held: by its driver, and by each of the driver's register windows and
//! interrupts, on any vCPU.

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

    /// Returns whether anything still holds a part of the function.
    pub fn any(&self) -> bool {
        self.0.strong_count() > 0
    }
}
