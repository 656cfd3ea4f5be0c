//! A device that was given up: everything on it fails, and it is tried again, unless nothing can come of that.

use super::Life;
use crate::device_queue::State;
use bulkhead_dma::{Refusal, leaves_before_trial};
use bulkhead_pci::PciHost;

impl<H: PciHost> Life<'_, H> {
    /// Gives the device up: what is asked of it fails from now on. It is tried again every minute, if that may help.
    /// Returns true once it works again, and false when it is to be let go of.
    pub(super) async fn give_up(&mut self, refusal: Refusal) -> bool {
        let (again, Refusal { reason, mut stays }) = (refusal.prospect(), refusal);
        log::error!("virtio:{}: it is given up: {reason}{again}", self.name());
        self.device.fail(reason);
        self.fail_requests();
        loop {
            if leaves_before_trial(self.devices.handle(), &*self.device, stays).await {
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
