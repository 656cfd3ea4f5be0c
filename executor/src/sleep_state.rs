//! The sleep state of an executor's vCPU: one word, which it shares with wakers on all vCPUs.
//!
//! ```text
//!            wake                         wake: interrupt the vCPU
//!   awake ─────────► woken ◄──────────────────────────────────┐
//!     ▲                │                                      │
//!     ├──── take ──────┘   awake ──── begin_sleep ────────► asleep
//!     └────────────────────── end_sleep ──────────────────────┘
//! ```
//!
//! Each step is one exchange of the word, so of a `wake` and a `begin_sleep` one is first. If it is the
//! `wake`, the vCPU does not sleep; if it is the `begin_sleep`, the waker finds the vCPU asleep and
//! has it interrupted, which Xen remembers for a vCPU that is only about to sleep. While a vCPU is
//! awake, waking its tasks costs no hypercall, neither on that vCPU nor on others.
//!
//! `tests/lost_wake.rs` tries all interleavings of these steps, on this very code.

use super::sync::{AtomicU8, Ordering};

/// Awake: checks for woken tasks before it sleeps.
const AWAKE: u8 = 0;
/// Woken: some task can make progress.
const WOKEN: u8 = 1;
/// Asleep, or about to sleep.
const ASLEEP: u8 = 2;

#[derive(Debug)]
pub(crate) struct SleepState(AtomicU8);

impl SleepState {
    pub(crate) fn new() -> SleepState {
        SleepState(AtomicU8::new(AWAKE))
    }

    /// Records that some task can make progress. Returns true if the vCPU has to be interrupted for that.
    #[inline]
    pub(crate) fn wake(&self) -> bool {
        self.0.swap(WOKEN, Ordering::AcqRel) == ASLEEP
    }

    /// Returns whether some task was woken since the last call. The waker's earlier writes are visible from
    /// here on.
    #[inline]
    pub(crate) fn take(&self) -> bool {
        self.0.swap(AWAKE, Ordering::AcqRel) == WOKEN
    }

    /// Marks the vCPU as awake. It looks for notifications and deadlines after this.
    #[inline]
    pub(crate) fn end_sleep(&self) {
        // If this fails, it was awake already, or some task was woken.
        let _ = self
            .0
            .compare_exchange(ASLEEP, AWAKE, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// Marks the vCPU as asleep, before it blocks; returns false if it must not, because some task was woken.
    #[inline]
    pub(crate) fn begin_sleep(&self) -> bool {
        self.0
            .compare_exchange(AWAKE, ASLEEP, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }
}
