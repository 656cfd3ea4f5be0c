//! The log lines about a frontend's mistakes.

use super::stats::QueueStats;
use crate::guest_log::GuestLog;
use alloc::string::String;
use alloc::sync::Arc;
use bulkhead_executor::Handle;
use bulkhead_xen::Hypervisor;
use core::fmt;

/// The number of a frontend's mistakes that a queue puts into the log. A hostile frontend makes them without end.
const MOST_LINES: u32 = 10;

/// Counts a queue's failed requests, and logs the first few.
pub(super) struct ErrorLog<H: Hypervisor> {
    /// The name of the disk and the queue.
    name: String,
    log: Arc<GuestLog>,
    /// The clock for the guest's budget of log lines.
    handle: Handle<H>,
    stats: Arc<QueueStats>,
    count: u32,
}

impl<H: Hypervisor> ErrorLog<H> {
    /// Returns the error log of the queue with that name, which is empty yet.
    pub fn new(
        name: String,
        log: Arc<GuestLog>,
        handle: &Handle<H>,
        stats: Arc<QueueStats>,
    ) -> Self {
        ErrorLog {
            name,
            log,
            handle: handle.clone(),
            stats,
            count: 0,
        }
    }

    /// Returns the name of the disk and the queue.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Counts a frontend's mistake, or a failure of the device, and puts the first few into the
    /// log.
    #[cold]
    pub fn log(&mut self, what: fmt::Arguments<'_>) {
        self.stats.errors.add(1);
        self.count = self.count.saturating_add(1);
        if self.count <= MOST_LINES {
            self.warn(what);
        }
        if self.count == MOST_LINES {
            self.warn(format_args!("further mistakes are not logged"));
        }
    }

    /// Puts a line into the log.
    #[cold]
    pub fn warn(&self, what: fmt::Arguments<'_>) {
        let line = format_args!("{}: {what}", self.name);
        self.log.say(self.handle.now(), log::Level::Warn, line);
    }
}
