//! Devices of disks that the boot before has served, whose stores may take a while to come back.

use crate::id::VbdId;
use crate::services::Services;
use bulkhead_executor::Sleep;
use bulkhead_images::target::Target;
use bulkhead_xen::{Hypervisor, Instant};
use core::time::Duration;

/// The time for which a store is tried again. Meanwhile, disks on the same kind of store that were not served before
/// wait.
const RETURNS: Duration = Duration::from_secs(60);
/// The pause between two attempts.
const AGAIN: Duration = Duration::from_millis(250);

/// Waits until the disks that the boot before has served on the same kind of store have their devices.
pub(super) async fn give_way<H: Hypervisor>(services: &Services<H>, id: VbdId, target: &str) {
    services.keeper.turn_on(id, scheme(target)).await;
}

/// Returns the kind of store that a target names.
fn scheme(target: &str) -> &str {
    Target::parse(target).map_or("", |target| target.scheme)
}

/// The wait for the device of a disk that the boot before has served.
pub(super) struct Patience<'t> {
    id: VbdId,
    /// The kind of store that the disk is on.
    scheme: &'t str,
    /// The end of that wait, once the store was tried in vain.
    until: Option<Instant>,
}

impl<'t> Patience<'t> {
    /// Begins to wait for the device of a disk on that target.
    pub fn new(id: VbdId, target: &'t str) -> Self {
        Patience {
            id,
            scheme: scheme(target),
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
        let (id, scheme, now) = (self.id, self.scheme, services.handle.now());
        if !services.keeper.has_left(id) || self.until.is_some_and(|until| now >= until) {
            return None;
        }
        if self.until.is_none() {
            log::warn!(
                "vbd {id}: {reason}; it was served before the crash, and is waited for, and disks on {scheme}: that were not served wait, too"
            );
            services.keeper.is_away(id, scheme);
            self.until = Some(now + RETURNS);
        }
        Some(services.handle.sleep(AGAIN))
    }
}
