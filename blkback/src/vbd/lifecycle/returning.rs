//! Devices of disks that the boot before has served, whose stores may take a while to come back.

use crate::id::VbdId;
use crate::services::Services;
use bulkhead_executor::Sleep;
use bulkhead_xen::{Hypervisor, Instant};
use core::time::Duration;

/// The time for which a store is tried again. Meanwhile, disks on the same kind of store that were not served before
/// wait.
const RETURNS: Duration = Duration::from_secs(60);
/// The pause between two attempts.
const AGAIN: Duration = Duration::from_millis(250);

/// Waits until the disks that the boot before has served on the same kind of store have their devices.
pub(super) async fn wait_for_others<H: Hypervisor>(
    services: &Services<H>,
    id: VbdId,
    target: &str,
) {
    let family = services.stores.family(target);
    services.kept_queues.turn_on(id, family).await;
}

/// The wait for the device of a disk that the boot before has served.
pub(super) struct OpenRetry {
    id: VbdId,
    /// The kind of store that the disk is on.
    family: &'static str,
    /// The end of that wait, once the store was tried in vain.
    until: Option<Instant>,
}

impl OpenRetry {
    /// Begins to wait for the device of a disk on that target.
    pub fn new<H: Hypervisor>(services: &Services<H>, id: VbdId, target: &str) -> Self {
        OpenRetry {
            id,
            family: services.stores.family(target),
            until: None,
        }
    }

    /// Returns the pause before the device is opened again, after it could not be opened for that reason; `None` if it
    /// is not to be tried again.
    pub fn pause<H: Hypervisor>(
        &mut self,
        services: &Services<H>,
        reason: &str,
    ) -> Option<Sleep<H>> {
        let (id, family, now) = (self.id, self.family, services.handle.now());
        if !services.kept_queues.has_left(id) || self.until.is_some_and(|until| now >= until) {
            return None;
        }
        if self.until.is_none() {
            log::warn!(
                "vbd {id}: {reason}; it was served before the crash, and is waited for, and disks on {family}: that were not served wait, too"
            );
            services.kept_queues.is_away(id, family);
            self.until = Some(now + RETURNS);
        }
        Some(services.handle.sleep(AGAIN))
    }
}
