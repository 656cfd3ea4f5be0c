//! A connection to a server, whether it is up or not: the state that its task and the queues share.

use crate::request_table::RequestTable;
use alloc::string::String;
use alloc::sync::Arc;
use bulkhead_images::Flushes;
use core::ops::AddAssign;
use core::task::Waker;
use futures_util::task::AtomicWaker;
use spin::{Mutex, MutexGuard};

/// The counts of a line, or of all lines of an export, so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LineCounts {
    /// Connections that were made.
    pub connections: u64,
    /// Commands that were sent, and sent again.
    pub commands: u64,
    /// Commands that were answered.
    pub answers: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Requests that wait to be sent.
    pub waiting: u64,
}

impl AddAssign for LineCounts {
    fn add_assign(&mut self, other: LineCounts) {
        self.connections += other.connections;
        self.commands += other.commands;
        self.answers += other.answers;
        self.failed += other.failed;
        self.waiting += other.waiting;
    }
}

/// A line.
pub struct Line {
    table: Mutex<RequestTable>,
    task: AtomicWaker,
    connections: Mutex<u64>,
    /// The reason why there is no connection, if there is none.
    disconnect_reason: Mutex<Option<String>>,
}

impl Line {
    /// Returns a line of an export whose flushes are counted in `flushes`.
    pub fn new(flushes: Arc<Flushes>) -> Line {
        Line {
            table: Mutex::new(RequestTable::new(flushes)),
            task: AtomicWaker::new(),
            connections: Mutex::new(0),
            disconnect_reason: Mutex::new(None),
        }
    }

    /// Returns the line's requests. Only a queue of another vCPU than that of the line's task ever waits for the lock.
    #[inline]
    pub fn table(&self) -> MutexGuard<'_, RequestTable> {
        self.table.lock()
    }

    /// Wakes the line's task: there is a request to send, or the export was given up.
    #[inline]
    pub fn wake(&self) {
        self.task.wake();
    }

    /// Keeps the waker of the line's task.
    pub fn wake_with(&self, waker: &Waker) {
        self.task.register(waker);
    }

    /// Notes that a connection was made. Returns its number.
    pub fn count_connection(&self) -> u64 {
        let mut connections = self.connections.lock();
        *connections += 1;
        *connections
    }

    /// Returns the number of connections that were made.
    pub fn connections(&self) -> u64 {
        *self.connections.lock()
    }

    /// Notes the reason why there is no connection, or that there is one. Returns whether that is new.
    pub fn set_disconnect_reason(&self, disconnect_reason: Option<String>) -> bool {
        let mut known = self.disconnect_reason.lock();
        let new = *known != disconnect_reason;
        *known = disconnect_reason;
        new
    }

    /// Returns the reason why there is no connection.
    pub fn disconnect_reason(&self) -> Option<String> {
        self.disconnect_reason.lock().clone()
    }

    /// Returns the counts of the line so far.
    pub fn counts(&self) -> LineCounts {
        let table = self.table();
        let [commands, answers, failed] = table.counts();
        let waiting = table.waiting() as u64;
        drop(table);
        LineCounts {
            connections: self.connections(),
            commands,
            answers,
            failed,
            waiting,
        }
    }
}
