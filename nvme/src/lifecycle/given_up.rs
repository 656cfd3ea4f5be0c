//! A controller that was given up: everything on it fails, and it is tried again, unless nothing can come of that.

use super::Life;
use super::starting::StartError;
use crate::controller::Controller;
use crate::pair::State;
use crate::registers;
use alloc::string::{String, ToString};
use bulkhead_executor::Handle;
use bulkhead_xen::Hypervisor;
use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::Poll;
use core::time::Duration;
use futures_util::future::OptionFuture;

/// The pause before a controller that was given up is started again.
const TRIED_AGAIN: Duration = Duration::from_secs(60);

/// The reason why a controller is given up.
pub(super) struct Refusal {
    reason: String,
    /// It would fail again for the same reason.
    stays: bool,
}

impl Refusal {
    /// Returns that of a controller that does not start.
    pub fn of(error: &StartError) -> Refusal {
        Refusal {
            reason: error.to_string(),
            stays: error.stays(),
        }
    }

    /// Returns a reason that may pass.
    pub fn for_now(reason: String) -> Refusal {
        let stays = false;
        Refusal { reason, stays }
    }
}

impl<H: Hypervisor> Life<'_, H> {
    /// Gives the controller up: what is asked of it fails from now on. It is tried again every minute, if that may help.
    /// Returns true once it works again, and false when it is to be let go of.
    pub(super) async fn give_up(&mut self, refusal: Refusal) -> bool {
        let (reason, mut stays) = (refusal.reason, refusal.stays);
        let again = if stays {
            ""
        } else {
            "; it is tried again every minute"
        };
        log::error!("nvme:{}: it is given up: {reason}{again}", self.name());
        self.controller.fail(reason);
        self.fail_requests();
        loop {
            let pause = (!stays).then_some(TRIED_AGAIN);
            if leaves_within(&self.handle, &self.controller, pause).await {
                return false;
            }
            if registers::status(&**self.controller.registers()).is_gone() {
                continue;
            }
            // It may still have had memory of requests, which fail now.
            let stopped = self.halt().await;
            self.fail_requests();
            if !stopped {
                continue;
            }
            match self.start().await {
                Ok(()) => {
                    log::warn!("nvme:{}: it works again", self.name());
                    self.controller.recover();
                    self.controller.set_ready(true);
                    return true;
                }
                Err(error) => {
                    log::debug!("nvme:{}: it does not start: {error}", self.name());
                    stays = error.stays();
                    self.halt().await;
                    self.fail_requests();
                }
            }
        }
    }

    /// Fails all requests to a controller that does not work; those whose memory it may still access stay.
    fn fail_requests(&self) {
        for pair in self.controller.pairs() {
            let mut pair = pair.lock();
            match pair.state() {
                State::Quiet => pair.die(),
                _ => pair.stick(),
            }
        }
    }
}

/// Waits until a controller is to be let go of, for that long at most. Returns whether it is.
pub(super) async fn leaves_within<H: Hypervisor>(
    handle: &Handle<H>,
    controller: &Controller,
    limit: Option<Duration>,
) -> bool {
    let mut over = pin!(OptionFuture::from(limit.map(|limit| handle.sleep(limit))));
    poll_fn(|context| {
        controller.watch().wake_with(context.waker());
        if controller.is_leaving() {
            return Poll::Ready(true);
        }
        match over.as_mut().poll(context) {
            Poll::Ready(Some(())) => Poll::Ready(false),
            _ => Poll::Pending,
        }
    })
    .await
}
