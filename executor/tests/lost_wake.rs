//! No interleaving of wakers with an executor that is about to sleep leaves a woken task behind.
//!
//! loom runs the crate's own `sleep_state` module on its own atomics, and tries interleavings and stale
//! values that the memory model allows. A vCPU's sleep is a wait for the interrupt, which Xen
//! remembers if it comes before the wait. The tests that must panic break one rule each, to show
//! that the search would find out.

#[allow(dead_code, reason = "the test uses a part of it")]
#[path = "../src/sleep_state.rs"]
mod sleep_state;

/// The atomics of `sleep_state` in this test.
mod sync {
    pub(crate) use loom::sync::atomic::{AtomicU8, Ordering};
}

use loom::sync::Notify;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;
use sleep_state::SleepState;
// Not loom's, so that a failed search can be told from a leak.
use std::sync::Arc;

/// A rule that a test breaks.
#[derive(Clone, Copy, PartialEq)]
enum Broken {
    Nothing,
    /// The vCPU sleeps without looking whether a task was woken meanwhile.
    BeginSleep,
    /// A waker that finds the vCPU asleep does not interrupt it.
    Interrupt,
}

struct Vcpu {
    sleep_state: SleepState,
    interrupt: Notify,
    /// The work of the woken tasks, one for each waker.
    work: [AtomicUsize; 2],
}

/// Has `wakers` threads wake the executor, each after leaving something to do. Ends when the
/// executor has found all of it.
fn search(wakers: usize, broken: Broken) {
    let mut model = loom::model::Builder::new();
    // More switches at a time find nothing new and take for ever.
    model.preemption_bound = Some(3);
    model.check(move || {
        let vcpu = Arc::new(Vcpu {
            sleep_state: SleepState::new(),
            interrupt: Notify::new(),
            work: [AtomicUsize::new(0), AtomicUsize::new(0)],
        });
        let others: Vec<_> = (0..wakers)
            .map(|waker| {
                let vcpu = vcpu.clone();
                thread::spawn(move || {
                    // Relaxed: the word alone has to carry it over.
                    vcpu.work[waker].store(1, Ordering::Relaxed);
                    if vcpu.sleep_state.wake() && broken != Broken::Interrupt {
                        vcpu.interrupt.notify();
                    }
                })
            })
            .collect();
        let mut found = 0;
        while found < wakers {
            if vcpu.sleep_state.take() {
                let work = vcpu.work.iter().map(|work| work.load(Ordering::Relaxed));
                found = work.sum();
            } else if vcpu.sleep_state.begin_sleep() || broken == Broken::BeginSleep {
                vcpu.interrupt.wait();
                vcpu.sleep_state.end_sleep();
            }
        }
        for other in others {
            other.join().unwrap();
        }
    });
}

#[test]
fn no_wake_is_lost() {
    search(1, Broken::Nothing);
    search(2, Broken::Nothing);
}

#[test]
#[should_panic(expected = "deadlock")]
fn to_sleep_without_looking_loses_wakes() {
    search(1, Broken::BeginSleep);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_sleeper_is_to_be_interrupted() {
    search(1, Broken::Interrupt);
}
