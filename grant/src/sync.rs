//! The atomics that an entry's protocol is made of, in one place so that a test can try it with its own.

pub(crate) use core::sync::atomic::{AtomicU16, AtomicU32, Ordering};

/// Waits a moment for Xen.
pub(crate) fn relax() {
    core::hint::spin_loop();
}
