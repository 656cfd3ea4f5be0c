//! The state of a device that was passed through to this domain, whatever kind of device it is. All vCPUs share it.

use crate::Watch;
use alloc::string::String;
use alloc::sync::Arc;
use bulkhead_executor::Waiters;
use bulkhead_xen::DmaMemory;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use spin::Mutex;

/// A device that was passed through to this domain. Its driver adds the state that depends on the kind of device.
pub struct PassedThrough {
    name: String,
    memory: Arc<dyn DmaMemory>,
    watch: Arc<Watch>,
    /// It works.
    ready: AtomicBool,
    /// It is to be stopped for good.
    leaving: AtomicBool,
    /// It was stopped for good.
    left: AtomicBool,
    /// The reason why it was given up.
    failure: Mutex<Option<Arc<str>>>,
    resets: AtomicU32,
}

impl PassedThrough {
    /// Returns a device that has not started. `waiting` are the tasks that are woken by every change of its state.
    pub fn new(
        name: String,
        memory: Arc<dyn DmaMemory>,
        waiting: Arc<Mutex<Waiters>>,
    ) -> PassedThrough {
        PassedThrough {
            name,
            memory,
            watch: Arc::new(Watch::new(waiting)),
            ready: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            left: AtomicBool::new(false),
            failure: Mutex::default(),
            resets: AtomicU32::new(0),
        }
    }

    /// Returns its name, as targets have it: its PCI function without the segment 0000, such as `03:00.0`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns what knows the bus addresses of this domain's memory.
    pub fn memory(&self) -> &Arc<dyn DmaMemory> {
        &self.memory
    }

    /// Returns what wakes its task.
    #[inline]
    pub fn watch(&self) -> &Arc<Watch> {
        &self.watch
    }

    /// Returns whether it can be opened.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire) && !self.is_leaving()
    }

    /// Notes that it works, or does not for the moment.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Release);
        self.watch.changed();
    }

    /// Asks its task to stop it for good. Does not wait for that: see [`Devices::let_go`](crate::Devices::let_go).
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::Release);
        self.watch.call();
    }

    /// Returns whether it is to be stopped for good.
    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    /// Notes that it was stopped for good.
    pub fn set_left(&self) {
        self.left.store(true, Ordering::Release);
        self.watch.changed();
    }

    /// Returns whether it was stopped for good.
    pub fn has_left(&self) -> bool {
        self.left.load(Ordering::Acquire)
    }

    /// Returns the reason why it was given up.
    pub fn failure(&self) -> Option<Arc<str>> {
        self.failure.lock().clone()
    }

    /// Gives it up: it cannot be opened until it [works again](Self::recover).
    pub fn fail(&self, reason: String) {
        self.failure.lock().get_or_insert_with(|| reason.into());
        self.watch.changed();
    }

    /// Notes that it works again, unless it is to be stopped for good.
    pub fn recover(&self) {
        if !self.is_leaving() {
            *self.failure.lock() = None;
        }
    }

    /// Counts a reset.
    pub fn count_reset(&self) {
        self.resets.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the number of resets so far.
    pub fn resets(&self) -> u32 {
        self.resets.load(Ordering::Relaxed)
    }
}
