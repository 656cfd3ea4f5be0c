//! Requests that have waited for too long, although there is a connection.

use bulkhead_executor::{Handle, Sleep};
use bulkhead_xen::{Hypervisor, Instant};
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll};
use core::time::Duration;

/// The time for an answer on a connection to a server that has not answered in time before: as long as it takes to
/// notice that a server is silent.
const LATER: Duration = Duration::from_secs(30);

/// Notices that requests have waited for too long on a connection. While none waits, there is no timer.
pub struct Expiry<'h, H: Hypervisor> {
    handle: &'h Handle<H>,
    /// The time at which requests fail; if it is over, requests have failed before. `None`: a request was answered, or
    /// there is no limit.
    at: Option<Instant>,
    /// The time since which a request waits, and the timer for its answer.
    timer: Option<(Instant, Sleep<H>)>,
}

impl<'h, H: Hypervisor> Expiry<'h, H> {
    /// Begins with a connection, whose requests fail at the time `at` if none was answered.
    pub fn new(handle: &'h Handle<H>, at: Option<Instant>) -> Self {
        Expiry {
            handle,
            at,
            timer: None,
        }
    }

    /// Returns ready if no request was answered on the connection in time, with the time that one has waited on it.
    #[inline]
    pub fn poll(
        &mut self,
        context: &mut Context<'_>,
        waits: bool,
        answered: bool,
    ) -> Poll<Duration> {
        if answered {
            self.at = None;
        }
        let Some(at) = self.at.filter(|_| waits) else {
            self.timer = None;
            return Poll::Pending;
        };
        let (since, timer) = self.timer.get_or_insert_with(|| {
            let now = self.handle.now();
            let at = if at <= now { now + LATER } else { at };
            (now, self.handle.sleep_until(at))
        });
        let since = *since;
        let waited = |()| self.handle.now().since(since);
        Pin::new(timer).poll(context).map(waited)
    }
}
