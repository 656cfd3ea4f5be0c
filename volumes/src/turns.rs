//! Work that a hostile disk can make long, cut so that other tasks of the vCPU have their turns meanwhile.

use core::future::poll_fn;
use core::task::Poll;

/// The number of things that are looked at in one turn.
const PER_TURN: usize = 64;

/// The work that was done since the last turn began.
#[derive(Default)]
pub(crate) struct Turns(usize);

impl Turns {
    /// Counts one thing that is looked at, and waits for the next turn if there were enough.
    pub async fn count(&mut self) {
        self.0 += 1;
        if self.0 >= PER_TURN {
            self.next().await;
        }
    }

    /// Waits for the next turn.
    pub async fn next(&mut self) {
        self.0 = 0;
        let mut waited = false;
        poll_fn(|context| match core::mem::replace(&mut waited, true) {
            true => Poll::Ready(()),
            false => {
                context.waker().wake_by_ref();
                Poll::Pending
            }
        })
        .await;
    }
}
