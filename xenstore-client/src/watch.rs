//! Watches: what changed, as a stream.

use crate::error::{Error, Fault};
use crate::path::Path;
use crate::pending::Pending;
use crate::shared::Handle;
use crate::wire::{self, Request, Token, TransactionId};
use core::task::{Context, Poll};

/// A stream of changes at a node and below it. Dropping it ends the watch.
///
/// Every watch fires once as soon as it is set, with its own path. An event says no more than
/// that the node at its path may have changed, appeared or vanished: look at it. Equal events
/// that wait are one, and if very many wait they become one event with the watch's own path: the
/// owner then has to look at everything.
///
/// Paths come as the watch was set: relative to the domain's directory, or absolute.
#[derive(Debug)]
pub struct Watch {
    shared: Handle,
    token: Token,
    path: Path,
}

impl Watch {
    pub(crate) async fn set(shared: Handle, path: Path) -> Result<Watch, Error> {
        let token = shared.borrow_mut().add_watch(path.clone());
        // From here on, dropping it unwatches, also if this future ends early.
        let watch = Watch {
            shared,
            token,
            path,
        };
        Pending::ask(
            &watch.shared,
            Request::Watch(watch.path.as_str(), token),
            TransactionId::NONE,
        )?
        .parsed(wire::parse_okay)
        .await?;
        Ok(watch)
    }

    /// Returns the path that is watched.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for the next event and returns the path that may have changed. If the future is dropped early,
    /// no event is lost.
    pub async fn next(&mut self) -> Result<Path, Error> {
        core::future::poll_fn(|context| self.poll_next(context)).await
    }

    /// Polls for what [`next`](Self::next) waits for.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Path, Error>> {
        let mut shared = self.shared.borrow_mut();
        let broken = shared.broken.clone();
        let watching = shared
            .watches
            .get_mut(&self.token)
            .expect("a watch stays until it is dropped");
        if let Some(path) = watching.events.pop_front() {
            return Poll::Ready(Ok(path));
        }
        if let Some(breakdown) = broken {
            return Poll::Ready(Err(Fault::Disconnected(breakdown).into()));
        }
        watching.waiter = Some(context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut shared = self.shared.borrow_mut();
        shared.watches.remove(&self.token);
        // Requests are served in order, so this finds the watch even if it is being set. Where
        // setting was refused there is none, and that answer is thrown away.
        shared.tell(
            &Request::Unwatch(self.path.as_str(), self.token),
            TransactionId::NONE,
        );
    }
}
