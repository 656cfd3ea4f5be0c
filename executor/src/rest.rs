//! The one word that an executor shares with whoever wakes its tasks, from whichever vCPU.
//!
//! ```text
//!            wake                      wake: interrupt the vCPU
//!   awake ─────────► woken ◄───────────────────────────────┐
//!     ▲                │                                   │
//!     ├──── take ──────┘   awake ──── lie down ────────► asleep
//!     └───────────────────── get up ───────────────────────┘
//! ```
//!
//! Each step is one exchange of the word, so of a wake and a lying down one is first. If it is the
//! wake, the vCPU does not lie down; if it is the lying down, the wake finds the vCPU asleep and
//! has it interrupted, which Xen remembers for a vCPU that is only about to sleep. While a vCPU is
//! awake, waking its tasks costs no hypercall, neither to itself nor to others.
//!
//! `tests/lost_wake.rs` has all interleavings of this tried, on this very code.

use super::sync::{AtomicU8, Ordering};

/// Looks for what was woken before it sleeps.
const AWAKE: u8 = 0;
/// Some task can make progress.
const WOKEN: u8 = 1;
/// Sleeps, or is about to.
const ASLEEP: u8 = 2;

#[derive(Debug)]
pub(crate) struct Rest(AtomicU8);

impl Rest {
    pub(crate) fn new() -> Rest {
        Rest(AtomicU8::new(AWAKE))
    }

    /// Some task can make progress. True if the vCPU has to be interrupted for that.
    #[inline]
    pub(crate) fn wake(&self) -> bool {
        self.0.swap(WOKEN, Ordering::AcqRel) == ASLEEP
    }

    /// Whether some task was woken since this was asked last. What its waker did before can be
    /// seen from here on.
    #[inline]
    pub(crate) fn take(&self) -> bool {
        self.0.swap(AWAKE, Ordering::AcqRel) == WOKEN
    }

    /// Says that the vCPU does not sleep any more, before it looks for what has happened.
    #[inline]
    pub(crate) fn get_up(&self) {
        // If this fails, it was awake already, or some task was woken.
        let _ = self
            .0
            .compare_exchange(ASLEEP, AWAKE, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// Says that the vCPU is about to sleep; false if it must not, because some task was woken.
    #[inline]
    pub(crate) fn lie_down(&self) -> bool {
        self.0
            .compare_exchange(AWAKE, ASLEEP, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }
}
