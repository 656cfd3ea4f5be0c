//! The atomics that `discard_map` is made of, in one place so that a test can try it with its own.

pub(crate) use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
