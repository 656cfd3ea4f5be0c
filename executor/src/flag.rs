//! Messages between tasks of one vCPU: a flag that stays set, and a signal that is consumed.

use crate::waiters::Waiters;
use alloc::rc::Rc;
use core::cell::{Cell, RefCell};
use core::task::{Poll, Waker};

/// Set once, stays set. Clones are the same flag.
#[derive(Clone, Debug, Default)]
pub struct Flag(Rc<State>);

#[derive(Debug, Default)]
struct State {
    set: Cell<bool>,
    waiters: RefCell<Waiters>,
}

/// The wait of one task for a flag. Its entry is removed with it, since a flag may be waited for any number of times,
/// by tasks that have ended when it is set.
struct Wait<'f> {
    state: &'f State,
    number: u64,
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.state.waiters.borrow_mut().forget(self.number);
    }
}

impl Flag {
    /// Sets the flag and wakes all tasks that wait for it.
    pub fn set(&self) {
        self.0.set.set(true);
        let waiters = self.0.waiters.borrow_mut().take();
        waiters.for_each(Waker::wake);
    }

    /// Returns whether it is set.
    pub fn is_set(&self) -> bool {
        self.0.set.get()
    }

    /// Waits until it is set.
    pub async fn wait(&self) {
        let state = &*self.0;
        let number = state.waiters.borrow_mut().number();
        let wait = Wait { state, number };
        core::future::poll_fn(|context| {
            if self.0.set.get() {
                return Poll::Ready(());
            }
            let mut waiters = wait.state.waiters.borrow_mut();
            waiters.wait(wait.number, context.waker());
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

    /// Lowers the signal, and returns whether it was raised.
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

#[cfg(test)]
mod tests {
    use super::*;
    use core::future::Future;
    use core::pin::pin;
    use core::task::Context;

    #[test]
    fn who_waits_no_more_is_forgotten() {
        let flag = Flag::default();
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..3 {
            let mut wait = pin!(flag.wait());
            assert!(wait.as_mut().poll(&mut context).is_pending());
            assert!(wait.as_mut().poll(&mut context).is_pending());
            assert_eq!(flag.0.waiters.borrow().len(), 1);
        }
        assert_eq!(flag.0.waiters.borrow().len(), 0);
        let mut wait = pin!(flag.wait());
        assert!(wait.as_mut().poll(&mut context).is_pending());
        flag.set();
        assert!(wait.as_mut().poll(&mut context).is_ready());
    }
}
