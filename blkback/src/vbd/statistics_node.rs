//! The `statistics` node of a disk, which is written anew when an operator asks for that.

use super::backend_nodes::write_if_there;
use crate::id::VbdId;
use crate::services::Services;
use crate::statistics::as_lines;
use alloc::format;
use bulkhead_xen::Hypervisor;
use bulkhead_xenbus::retry::is_passing;
use bulkhead_xenstore_client::Error;

/// Writes a disk's counters into its `statistics` node, if the node asks for them. A failure is logged and
/// does not affect the disk.
pub async fn show_statistics<H: Hypervisor>(services: &Services<H>, id: VbdId) {
    match try_to_show_statistics(services, id).await {
        Ok(()) => {}
        // The next event has the node read again.
        Err(error) if is_passing(&error) => log::debug!("vbd {id}: statistics: {error}"),
        Err(error) => log::warn!("vbd {id}: the statistics are not shown: {error}"),
    }
}

async fn try_to_show_statistics<H: Hypervisor>(
    services: &Services<H>,
    id: VbdId,
) -> Result<(), Error> {
    let path = id.backend_path();
    let asked = services
        .store
        .read_optional(format!("{path}/statistics"))
        .await?;
    if asked.as_deref() == Some("refresh") {
        let counts = services.statistics.of(id).unwrap_or_default();
        let lines = as_lines(&counts, &services.statistics.queues_of(id));
        write_if_there(&services.store, &path, "statistics", &lines).await?;
    }
    Ok(())
}
