//! Devices of disks that the boot before has served, whose stores may need a while until they are there again.

use crate::id::VbdId;
use crate::services::Services;
use alloc::sync::Arc;
use bulkhead_images::target::Target;
use bulkhead_images::{BlockDevice, OpenError};
use bulkhead_xen::Hypervisor;
use core::time::Duration;

/// The time for which a store is asked again. Disks on the same kind of store that were not served wait meanwhile.
const RETURNS: Duration = Duration::from_secs(60);
/// The pause between two attempts.
const AGAIN: Duration = Duration::from_millis(250);

/// Waits until those disks that the boot before has served have their devices, as far as these are of the same kind of
/// store.
pub(super) async fn give_way<H: Hypervisor>(services: &Services<H>, id: VbdId, target: &str) {
    services.keeper.turn_on(id, scheme(target)).await;
}

/// Returns the kind of store that a target names.
fn scheme(target: &str) -> &str {
    Target::parse(target).map_or("", |target| target.scheme)
}

/// Opens a device again and again that could not be opened, if the boot before has served the disk.
pub(super) async fn outwait<H: Hypervisor>(
    services: &Services<H>,
    id: VbdId,
    target: &str,
    mut opened: Result<Arc<dyn BlockDevice>, OpenError>,
    open: impl AsyncFn() -> Result<Arc<dyn BlockDevice>, OpenError>,
) -> Result<Arc<dyn BlockDevice>, OpenError> {
    let until = services.handle.now() + RETURNS;
    let mut told = false;
    while let Err(OpenError::Store(reason)) = &opened
        && services.keeper.has_left(id)
        && services.handle.now() < until
    {
        if !core::mem::replace(&mut told, true) {
            let scheme = scheme(target);
            log::warn!(
                "vbd {id}: {reason}; it was served before the crash, and is waited for, and disks on {scheme}: that were not served wait, too"
            );
            services.keeper.is_away(id, scheme);
        }
        services.handle.sleep(AGAIN).await;
        opened = open().await;
    }
    opened
}
