//! A device that was given up: everything on it fails, and it is tried again, unless nothing can come of that.

use super::Life;
use crate::device::Device;
use crate::device_queue::State;
use crate::error::StartError;
use alloc::string::{String, ToString};
use bulkhead_executor::Handle;
use bulkhead_pci::PciHost;
use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::Poll;
use core::time::Duration;
use futures_util::future::OptionFuture;

/// The pause before a device that was given up is started again.
const TRIED_AGAIN: Duration = Duration::from_secs(60);

/// The reason why a device is given up.
pub(super) struct Refusal {
    reason: String,
    /// It would fail again for the same reason.
    stays: bool,
}

impl Refusal {
    /// Returns that of a device that does not start.
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

impl<H: PciHost> Life<'_, H> {
    /// Gives the device up: what is asked of it fails from now on. It is tried again every minute, if that may help.
    /// Returns true once it works again, and false when it is to be let go of.
    pub(super) async fn give_up(&mut self, refusal: Refusal) -> bool {
        let (reason, mut stays) = (refusal.reason, refusal.stays);
        let again = if stays {
            ""
        } else {
            "; it is tried again every minute"
        };
        log::error!("virtio:{}: it is given up: {reason}{again}", self.name());
        self.device.fail(reason);
        self.fail_requests();
        loop {
            let pause = (!stays).then_some(TRIED_AGAIN);
            if leaves_within(self.devices.handle(), &self.device, pause).await {
                return false;
            }
            if self.transport.state().is_gone() {
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
                    log::warn!("virtio:{}: it works again", self.name());
                    self.device.recover();
                    self.device.set_ready(true);
                    return true;
                }
                Err(error) => {
                    log::debug!("virtio:{}: it does not start: {error}", self.name());
                    stays = error.stays();
                    self.halt().await;
                    self.fail_requests();
                }
            }
        }
    }

    /// Fails all requests to a device that does not work; those whose memory it may still access stay.
    fn fail_requests(&self) {
        for queue in self.device.queues() {
            let mut queue = queue.lock();
            match queue.state() {
                State::Quiet => queue.die(),
                _ => queue.stick(),
            }
        }
    }
}

/// Waits until a device is to be let go of, for that long at most. Returns whether it is.
pub(super) async fn leaves_within<H: PciHost>(
    handle: &Handle<H>,
    device: &Device,
    limit: Option<Duration>,
) -> bool {
    let mut over = pin!(OptionFuture::from(limit.map(|limit| handle.sleep(limit))));
    poll_fn(|context| {
        device.watch().wake_with(context.waker());
        if device.is_leaving() {
            return Poll::Ready(true);
        }
        match over.as_mut().poll(context) {
            Poll::Ready(Some(())) => Poll::Ready(false),
            _ => Poll::Pending,
        }
    })
    .await
}
