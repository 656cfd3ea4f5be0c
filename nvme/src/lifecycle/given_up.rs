//! A controller that was given up: all requests to it fail. It is started again every minute, unless that would fail
//! again.

use super::ControllerTask;
use crate::registers;
use bulkhead_dma::{DeviceQueueState, Refusal, leaves_before_trial};
use bulkhead_xen::Hypervisor;

impl<H: Hypervisor> ControllerTask<'_, H> {
    /// Gives the controller up: all requests to it fail from now on. It is started again every minute, if that may
    /// help. Returns true once it works again, and false when it is to be stopped for good.
    pub(super) async fn give_up(&mut self, refusal: Refusal) -> bool {
        let (again, Refusal { reason, mut stays }) = (refusal.retry_note(), refusal);
        log::error!("nvme:{}: it is given up: {reason}{again}", self.name());
        self.controller.fail(reason);
        self.fail_requests();
        loop {
            if leaves_before_trial(&self.handle, &self.controller, stays).await {
                return false;
            }
            if registers::status(&**self.controller.registers()).is_gone() {
                continue;
            }
            // Requests whose memory it could still access have not failed yet; they do once it has stopped.
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

    /// Fails all requests to a controller that does not work. While it may still access their memory, requests that it
    /// has stay pending, and only new ones fail.
    fn fail_requests(&self) {
        for pair in self.controller.pairs() {
            let mut pair = pair.lock();
            match pair.state() {
                DeviceQueueState::Quiet => pair.die(),
                _ => pair.set_stuck(),
            }
        }
    }
}
