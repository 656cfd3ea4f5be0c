//! Words between tasks of one vCPU: a flag that stays set, and a signal that is taken.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::task::{Poll, Waker};

/// Set once, stays set. Clones are the same flag.
#[derive(Clone, Debug, Default)]
pub struct Flag(Rc<State>);

#[derive(Debug, Default)]
struct State {
    set: Cell<bool>,
    waiters: RefCell<Vec<Waker>>,
}

impl Flag {
    /// Sets the flag and wakes everyone who waits for it.
    pub fn set(&self) {
        self.0.set.set(true);
        for waiter in self.0.waiters.borrow_mut().drain(..) {
            waiter.wake();
        }
    }

    /// Whether it is set.
    pub fn is_set(&self) -> bool {
        self.0.set.get()
    }

    /// Waits until it is set.
    pub async fn wait(&self) {
        core::future::poll_fn(|context| {
            if self.0.set.get() {
                return Poll::Ready(());
            }
            let mut waiters = self.0.waiters.borrow_mut();
            if !waiters
                .iter()
                .any(|waiter| waiter.will_wake(context.waker()))
            {
                waiters.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}

/// A nudge from one task to another: it ends one wait, and any number of nudges before that wait
/// count as one. Clones are the same signal.
#[derive(Clone, Debug, Default)]
pub struct Signal(Rc<SignalState>);

#[derive(Debug, Default)]
struct SignalState {
    raised: Cell<bool>,
    waiter: RefCell<Option<Waker>>,
}

impl Signal {
    /// Ends the current wait, or the next one.
    pub fn raise(&self) {
        self.0.raised.set(true);
        if let Some(waiter) = self.0.waiter.take() {
            waiter.wake();
        }
    }

    /// Whether it is raised; lowers it.
    pub fn take(&self) -> bool {
        self.0.raised.take()
    }

    /// Waits until it is raised, and lowers it. Only one task waits at a time.
    pub async fn raised(&self) {
        core::future::poll_fn(|context| {
            if self.0.raised.take() {
                return Poll::Ready(());
            }
            *self.0.waiter.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}
