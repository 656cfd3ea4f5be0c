//! A device's state, which all vCPUs share.

use crate::device_queue::{DeviceQueue, DeviceQueueCounts};
use crate::disk_config::DiskConfig;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_dma::PassedThrough;
use bulkhead_executor::Waiters;
use bulkhead_images::Sector;
use bulkhead_xen::DmaMemory;
use core::ops::Deref;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use core::task::Waker;
use spin::{Mutex, Once};

/// A device, which is one disk.
pub struct Device {
    device: PassedThrough,
    /// Its configuration at its first start. Its size may have changed since.
    config: Once<DiskConfig>,
    /// Its queues, from its first start on.
    queues: Once<Vec<Mutex<DeviceQueue>>>,
    sectors: AtomicU64,
    /// The number of guests' disks that have it open.
    users: AtomicUsize,
    changed: Mutex<Waiters>,
}

impl Deref for Device {
    type Target = PassedThrough;

    fn deref(&self) -> &PassedThrough {
        &self.device
    }
}

impl Device {
    /// Returns a device that has not started. `waiting` are the tasks that are woken by every change of its state.
    pub fn new(name: String, memory: Arc<dyn DmaMemory>, waiting: Arc<Mutex<Waiters>>) -> Device {
        Device {
            device: PassedThrough::new(name, memory, waiting),
            config: Once::new(),
            queues: Once::new(),
            sectors: AtomicU64::new(0),
            users: AtomicUsize::new(0),
            changed: Mutex::default(),
        }
    }

    /// Returns its configuration at its first start; `None` before that.
    pub fn config(&self) -> Option<&DiskConfig> {
        self.config.get()
    }

    /// Keeps its configuration, unless there is an earlier one. Returns the one that is kept.
    pub fn set_config(&self, config: DiskConfig) -> &DiskConfig {
        self.config.call_once(|| config)
    }

    /// Returns its queues; none before it has started.
    #[inline]
    pub fn queues(&self) -> &[Mutex<DeviceQueue>] {
        self.queues.get().map_or(&[], Vec::as_slice)
    }

    /// Gives it queues, once: later ones are dropped.
    pub fn set_queues(&self, queues: Vec<Mutex<DeviceQueue>>) {
        self.queues.call_once(|| queues);
    }

    /// Returns its size, in sectors of 512 bytes.
    #[inline]
    pub fn sectors(&self) -> Sector {
        Sector(self.sectors.load(Ordering::Relaxed))
    }

    /// Sets its size, and tells its users of a change. Returns the size before, if that was another one.
    pub fn set_sectors(&self, sectors: Sector) -> Option<Sector> {
        let before = self.sectors.swap(sectors.0, Ordering::Relaxed);
        (before != sectors.0).then(|| {
            let waiting = self.changed.lock().take();
            waiting.for_each(Waker::wake);
            Sector(before)
        })
    }

    /// Returns the number of its users.
    pub fn users(&self) -> usize {
        self.users.load(Ordering::Acquire)
    }

    /// Adds a user. Returns the number by which it waits for changes.
    pub fn add_user(&self) -> u64 {
        self.users.fetch_add(1, Ordering::AcqRel);
        self.changed.lock().number()
    }

    /// Removes a user.
    pub fn remove_user(&self, number: u64) {
        self.changed.lock().forget(number);
        self.users.fetch_sub(1, Ordering::AcqRel);
        // Wakes the tasks that wait for the device to be unused.
        self.watch().changed();
    }

    /// Wakes a user when the size changes next.
    pub fn wait_for_change(&self, number: u64, waker: &Waker) {
        self.changed.lock().wait(number, waker);
    }

    /// Returns lines about it for the operator.
    pub fn lines(&self) -> Vec<String> {
        let name = self.name();
        let state = match self.failure() {
            Some(reason) => format!("given up: {reason}"),
            None if !self.is_ready() => "not ready".into(),
            None => format!(
                "{} queue(s), open {} time(s)",
                self.queues().len(),
                self.users()
            ),
        };
        let mut lines = Vec::new();
        lines.push(match self.config() {
            Some(config) => format!(
                "virtio:{name}: {} sectors of {}{}{}, {state}",
                self.sectors(),
                config.sector_size,
                if config.read_only { ", read-only" } else { "" },
                if config.flushes { ", with a cache" } else { "" },
            ),
            None => format!("virtio:{name}: {state}"),
        });
        let counts = self.counts();
        lines.push(format!(
            "virtio:{name}: {} requests, {} failed, {} notifications, {} interrupts, {} resets",
            counts.requests,
            counts.failed,
            counts.notifications,
            self.watch().interrupts(),
            self.resets()
        ));
        lines
    }

    fn counts(&self) -> DeviceQueueCounts {
        let mut all = DeviceQueueCounts::default();
        for queue in self.queues() {
            let counts = queue.lock().counts();
            all.requests += counts.requests;
            all.failed += counts.failed;
            all.notifications += counts.notifications;
        }
        all
    }
}
