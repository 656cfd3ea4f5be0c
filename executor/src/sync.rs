//! The atomics that `sleep_state` is made of, in one place so that a test can try it with its own.

pub(crate) use core::sync::atomic::{AtomicU8, Ordering};
