//! The detection of a server that does not answer.

use bulkhead_executor::{Handle, Sleep};
use bulkhead_xen::Hypervisor;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll};
use core::time::Duration;

/// The pause between two looks at whether the server has answered anything.
const TICK: Duration = Duration::from_secs(5);

/// Notices that a server does not answer. While nothing is asked of it, no timer runs beyond the present tick.
pub struct Silence<'h, H: Hypervisor> {
    handle: &'h Handle<H>,
    tick: Option<Sleep<H>>,
    progress: u64,
    ticks: u32,
    most: u32,
}

impl<'h, H: Hypervisor> Silence<'h, H> {
    /// Begins with a connection, on which a server may be silent for that many ticks.
    pub fn new(handle: &'h Handle<H>, most: u32) -> Self {
        Silence {
            handle,
            tick: None,
            progress: 0,
            ticks: 0,
            most,
        }
    }

    /// Returns ready if the server has something to answer, and has made no progress for too long; with that time.
    #[inline]
    pub fn poll(
        &mut self,
        context: &mut Context<'_>,
        waits: bool,
        progress: u64,
    ) -> Poll<Duration> {
        if self.tick.is_none() && waits {
            (self.progress, self.ticks) = (progress, 0);
            self.tick = Some(self.handle.sleep(TICK));
        }
        while let Some(tick) = &mut self.tick
            && Pin::new(tick).poll(context).is_ready()
        {
            self.tick = None;
            match waits && progress == self.progress {
                true => self.ticks += 1,
                false => (self.progress, self.ticks) = (progress, 0),
            }
            if self.ticks >= self.most {
                return Poll::Ready(TICK * self.ticks);
            }
            if waits {
                self.tick = Some(self.handle.sleep(TICK));
            }
        }
        Poll::Pending
    }
}
