//! A value that one vCPU gives, and a task of another vCPU waits for.

use alloc::sync::Arc;
use core::future::poll_fn;
use core::task::Poll;
use futures_util::task::AtomicWaker;
use spin::Mutex;

/// A place for one value. Clones are the same place.
pub struct Handover<T>(Arc<HandoverSlot<T>>);

struct HandoverSlot<T> {
    value: Mutex<Option<T>>,
    waiter: AtomicWaker,
}

impl<T> Clone for Handover<T> {
    fn clone(&self) -> Self {
        Handover(self.0.clone())
    }
}

impl<T> Default for Handover<T> {
    fn default() -> Self {
        Handover(Arc::new(HandoverSlot {
            value: Mutex::new(None),
            waiter: AtomicWaker::new(),
        }))
    }
}

impl<T> Handover<T> {
    /// Gives the value.
    pub fn give(&self, value: T) {
        *self.0.value.lock() = Some(value);
        self.0.waiter.wake();
    }

    /// Waits for the value.
    pub async fn taken(&self) -> T {
        poll_fn(|context| {
            self.0.waiter.register(context.waker());
            match self.0.value.lock().take() {
                Some(value) => Poll::Ready(value),
                None => Poll::Pending,
            }
        })
        .await
    }
}
