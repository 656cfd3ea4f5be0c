//! A device that was given up: all requests to it fail. It is started again every minute, unless that would fail again.

use super::DeviceTask;
use bulkhead_dma::{DeviceQueueState, Refusal, leaves_before_trial};
use bulkhead_pci::PciHost;

impl<H: PciHost> DeviceTask<'_, H> {
    /// Gives the device up: all requests to it fail from now on. It is started again every minute, if that may help.
    /// Returns true once it works again, and false when it is to be stopped for good.
    pub(super) async fn give_up(&mut self, refusal: Refusal) -> bool {
        let (again, Refusal { reason, mut stays }) = (refusal.retry_note(), refusal);
        log::error!("virtio:{}: it is given up: {reason}{again}", self.name());
        self.device.fail(reason);
        self.fail_requests();
        loop {
            if leaves_before_trial(self.devices.handle(), &self.device, stays).await {
                return false;
            }
            if self.transport.state().is_gone() {
                continue;
            }
            // Requests whose memory it could still access have not failed yet; they do once it was reset.
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

    /// Fails all requests to a device that does not work. While it may still access their memory, requests that it has
    /// stay pending, and only new ones fail.
    fn fail_requests(&self) {
        for queue in self.device.queues() {
            let mut queue = queue.lock();
            match queue.state() {
                DeviceQueueState::Quiet => queue.die(),
                _ => queue.set_stuck(),
            }
        }
    }
}
