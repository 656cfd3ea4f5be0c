//! The signals by which the queues of a device, on any vCPU, wake its task on the first vCPU.

use alloc::sync::Arc;
use bulkhead_executor::Waiters;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::task::Waker;
use futures_util::task::AtomicWaker;
use spin::Mutex;

/// The state that queues share with the device's task.
pub struct Watch {
    task: AtomicWaker,
    /// The task checks at intervals whether commands take too long.
    ticks: AtomicBool,
    /// A queue has called the task, and the task has not looked yet.
    attention: AtomicBool,
    /// The interrupts that were taken.
    interrupts: AtomicU64,
    waiting: Arc<Mutex<Waiters>>,
}

impl Watch {
    /// Returns one without a task. `waiting` are the tasks that wait for a change of the device's state.
    pub fn new(waiting: Arc<Mutex<Waiters>>) -> Watch {
        Watch {
            task: AtomicWaker::new(),
            ticks: AtomicBool::new(false),
            attention: AtomicBool::new(false),
            interrupts: AtomicU64::new(0),
            waiting,
        }
    }

    /// Has the task check at intervals whether commands take too long: a command is about to be given to the device.
    #[inline]
    pub fn begin_ticks(&self) {
        if !self.ticks.load(Ordering::Relaxed) {
            self.call_for_ticks();
        }
    }

    #[cold]
    fn call_for_ticks(&self) {
        self.ticks.store(true, Ordering::Release);
        self.task.wake();
    }

    /// Returns whether the device may have commands.
    pub fn ticks(&self) -> bool {
        self.ticks.load(Ordering::Acquire)
    }

    /// Notes that the device may have none. The caller checks the queues after this: one that is given a command later
    /// calls [`begin_ticks`](Self::begin_ticks) again.
    pub fn end_ticks(&self) {
        self.ticks.store(false, Ordering::SeqCst);
    }

    /// Has the task look at the queues.
    #[cold]
    pub fn call(&self) {
        self.attention.store(true, Ordering::Release);
        self.task.wake();
    }

    /// Returns whether the task was called.
    pub fn is_called(&self) -> bool {
        self.attention.load(Ordering::Acquire)
    }

    /// Returns whether the task was called, and forgets it.
    pub fn take_call(&self) -> bool {
        self.attention.swap(false, Ordering::AcqRel)
    }

    /// Counts an interrupt, of the queues or of the device itself. Several that come before a task runs count as one.
    #[inline]
    pub fn count_interrupt(&self) {
        self.interrupts.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the number of interrupts so far.
    pub fn interrupts(&self) -> u64 {
        self.interrupts.load(Ordering::Relaxed)
    }

    /// Keeps the waker of the device's task.
    pub fn wake_with(&self, waker: &Waker) {
        self.task.register(waker);
    }

    /// Wakes all tasks that wait for a change of the device's state.
    pub fn changed(&self) {
        let waiting = self.waiting.lock().take();
        waiting.for_each(Waker::wake);
    }
}
