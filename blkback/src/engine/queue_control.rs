//! The connection between a disk's task and its queues' tasks, which may run on different vCPUs.

use super::setup::{QueueError, QueueSetupError};
use super::stats::QueueStats;
use alloc::sync::Arc;
use core::cell::RefCell;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::{Context, Poll, Waker};
use futures_util::task::AtomicWaker;

/// A flag that is set once. One task waits for it; any vCPU may set it.
#[derive(Debug, Default)]
struct Latch {
    set: AtomicBool,
    waiter: AtomicWaker,
}

impl Latch {
    fn set(&self) {
        self.set.store(true, Ordering::Release);
        self.waiter.wake();
    }

    #[inline]
    fn is_set(&self) -> bool {
        self.set.load(Ordering::Acquire)
    }

    async fn wait(&self) {
        core::future::poll_fn(|context| self.poll_wait(context)).await;
    }

    #[inline]
    fn poll_wait(&self, context: &mut Context<'_>) -> Poll<()> {
        if self.is_set() {
            return Poll::Ready(());
        }
        self.waiter.register(context.waker());
        // It may have been set before the waiter was known.
        match self.is_set() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }
}

#[derive(Debug, Default)]
struct Shared {
    tried: Latch,
    connected: spin::Once<Result<Arc<QueueStats>, QueueSetupError>>,
    /// Set to start, and to stop.
    go: Latch,
    stop: Latch,
    /// Set when the frontend cannot be told that the queue is to stop.
    unreachable: Latch,
    /// Set when no frontend waits for the requests in flight.
    given_up: Latch,
    done: Latch,
    outcome: spin::Once<Result<(), QueueError>>,
}

impl Shared {
    fn stop(&self) {
        self.stop.set();
        self.go.set();
    }
}

/// The disk's end: stops a queue, and learns how the queue ended. Dropping it stops the queue too, without waiting for
/// it.
#[derive(Debug)]
pub struct QueueControl(Arc<Shared>);

/// The queue's end: learns that it is to stop, and reports its end.
#[derive(Debug)]
pub struct QueueGuard {
    shared: Arc<Shared>,
    /// The waker that is woken when the queue is to stop.
    stop_waiter: RefCell<Option<Waker>>,
}

/// Returns both ends for a new queue.
pub fn queue_control() -> (QueueControl, QueueGuard) {
    let shared = Arc::new(Shared::default());
    let guard = QueueGuard {
        shared: shared.clone(),
        stop_waiter: RefCell::default(),
    };
    (QueueControl(shared), guard)
}

impl QueueControl {
    /// Waits until the queue has connected, and returns its counters.
    pub async fn connected(&self) -> Result<Arc<QueueStats>, QueueSetupError> {
        self.0.tried.wait().await;
        let outcome = self.0.connected.get().cloned();
        outcome.unwrap_or(Err(QueueSetupError::Abandoned))
    }

    /// Lets a queue that has connected serve.
    pub fn start(&self) {
        self.0.go.set();
    }

    /// Asks the queue to stop.
    pub fn ask_to_stop(&self) {
        self.0.stop();
    }

    /// Asks the queue to stop, and waits until it has given back everything it held.
    pub async fn stop(&self) {
        self.0.stop();
        self.0.done.wait().await;
    }

    /// Tells the queue that no frontend waits for the requests in flight: once it is stopped, it does not finish those
    /// that the store can cancel.
    pub fn give_up(&self) {
        self.0.given_up.set();
    }

    /// Tells the queue that the frontend may live on and cannot be told that its disk goes away: once the queue
    /// is to stop, it serves on until the frontend lets go or is silent.
    pub fn set_unreachable(&self) {
        self.0.unreachable.set();
    }

    /// Returns whether [`set_unreachable`](Self::set_unreachable) was called.
    pub fn is_unreachable(&self) -> bool {
        self.0.unreachable.is_set()
    }

    /// Waits until the queue ends by itself, and returns the reason.
    pub async fn ended(&self) -> Result<(), QueueError> {
        self.0.done.wait().await;
        self.0.outcome.get().cloned().unwrap_or(Ok(()))
    }
}

impl Drop for QueueControl {
    fn drop(&mut self) {
        self.0.stop();
    }
}

impl QueueGuard {
    /// Reports whether the queue has connected.
    pub fn tried(&self, outcome: Result<Arc<QueueStats>, QueueSetupError>) {
        self.shared.connected.call_once(|| outcome);
        self.shared.tried.set();
    }

    /// Waits until the queue is to serve, or to stop.
    pub async fn started(&self) {
        self.shared.go.wait().await;
    }

    /// Waits until the queue is to stop.
    pub async fn stopped(&self) {
        core::future::poll_fn(|context| self.poll_stopped(context)).await;
    }

    /// Returns ready if the queue is to stop. Otherwise the task is woken when it is.
    #[inline]
    pub fn poll_stopped(&self, context: &mut Context<'_>) -> Poll<()> {
        if self.is_stopped() {
            return Poll::Ready(());
        }
        let waiter = &mut *self.stop_waiter.borrow_mut();
        if let Some(waiter) = waiter
            && waiter.will_wake(context.waker())
        {
            return Poll::Pending;
        }
        *waiter = Some(context.waker().clone());
        self.shared.stop.poll_wait(context)
    }

    /// Returns whether the queue is to stop.
    #[inline]
    pub fn is_stopped(&self) -> bool {
        self.shared.stop.is_set()
    }

    /// Waits until no frontend waits for the requests in flight.
    pub async fn given_up(&self) {
        self.shared.given_up.wait().await;
    }

    /// Returns whether no frontend waits for the requests in flight.
    pub fn is_given_up(&self) -> bool {
        self.shared.given_up.is_set()
    }

    /// Notes that no frontend waits for the requests in flight.
    pub fn give_up(&self) {
        self.shared.given_up.set();
    }

    /// Returns whether the frontend may live on and cannot be told that its disk goes away.
    pub fn is_unreachable(&self) -> bool {
        self.shared.unreachable.is_set()
    }

    /// Reports the queue's end; all that it held must have been given back by now.
    pub fn finish(self, outcome: Result<(), QueueError>) {
        self.shared.outcome.call_once(|| outcome);
    }
}

impl Drop for QueueGuard {
    fn drop(&mut self) {
        // Also if the task was dropped at a wait: nobody may wait for it for ever.
        self.shared.tried.set();
        self.shared.done.set();
    }
}
