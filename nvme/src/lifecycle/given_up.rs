//! A controller that was given up: everything on it fails, and it is tried again, unless nothing can come of that.

use super::Life;
use crate::pair::State;
use crate::registers;
use bulkhead_dma::{Refusal, leaves_before_trial};
use bulkhead_xen::Hypervisor;

impl<H: Hypervisor> Life<'_, H> {
    /// Gives the controller up: what is asked of it fails from now on. It is tried again every minute, if that may help.
    /// Returns true once it works again, and false when it is to be let go of.
    pub(super) async fn give_up(&mut self, refusal: Refusal) -> bool {
        let (again, Refusal { reason, mut stays }) = (refusal.prospect(), refusal);
        log::error!("nvme:{}: it is given up: {reason}{again}", self.name());
        self.controller.fail(reason);
        self.fail_requests();
        loop {
            if leaves_before_trial(&self.handle, &*self.controller, stays).await {
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
