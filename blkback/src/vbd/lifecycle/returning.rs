//! Devices of disks that the boot before has served, whose stores may need a while until they are there again.

use crate::id::VbdId;
use crate::services::Services;
use alloc::sync::Arc;
use bulkhead_images::{BlockDevice, OpenError};
use bulkhead_xen::Hypervisor;
use core::time::Duration;

/// The time for which a store is asked again. All other disks wait meanwhile.
const RETURNS: Duration = Duration::from_secs(60);
/// The pause between two attempts.
const AGAIN: Duration = Duration::from_millis(250);

/// Opens a device again and again that could not be opened, if the boot before has served the disk.
pub(super) async fn outwait<H: Hypervisor>(
    services: &Services<H>,
    id: VbdId,
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
            log::warn!(
                "vbd {id}: {reason}; it was served before the crash, and is waited for, and so are all disks that were not"
            );
        }
        services.handle.sleep(AGAIN).await;
        opened = open().await;
    }
    opened
}
