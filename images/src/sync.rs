//! The atomics of `discard_map`, in one place so that a test can replace them with its own.

pub(crate) use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
