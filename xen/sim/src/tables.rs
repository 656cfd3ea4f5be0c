//! Shared grant tables that live forever, lent to one simulated domain after another.
//!
//! `Hypervisor::grant_entries` hands the table out as `&'static`, so its memory is never given back; a simulated
//! machine that is dropped returns its tables for the next one.

use bulkhead_xen::abi::grant_table::EntryV1;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

static FREE: Mutex<Vec<&'static [EntryV1]>> = Mutex::new(Vec::new());

/// Returns an empty table of that many entries.
fn take(entries: usize) -> &'static [EntryV1] {
    let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(at) = free.iter().position(|table| table.len() == entries) {
        return free.swap_remove(at);
    }
    let table: Vec<EntryV1> = (0..entries)
        .map(|_| EntryV1 {
            flags: AtomicU16::new(0),
            domain: AtomicU16::new(0),
            frame: AtomicU32::new(0),
        })
        .collect();
    table.leak()
}

/// Takes a table back, and empties it.
fn put(table: &'static [EntryV1]) {
    for entry in table {
        entry.flags.store(0, Ordering::Relaxed);
        entry.domain.store(0, Ordering::Relaxed);
        entry.frame.store(0, Ordering::Relaxed);
    }
    FREE.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(table);
}

/// Keeps the tables of a machine until the machine itself is dropped: a dead domain's handles may
/// still look at its table.
#[derive(Default)]
pub(super) struct Lent(Vec<&'static [EntryV1]>);

impl Lent {
    pub(super) fn take(&mut self, entries: usize) -> &'static [EntryV1] {
        let table = take(entries);
        self.0.push(table);
        table
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.0.drain(..).for_each(put);
    }
}
