//! The devices that are stopped before the domain ends.

use crate::vcpu;
use bulkhead_xen::{DeviceStops, Stopped};
use core::time::Duration;

/// Where drivers register them.
pub(crate) static DEVICES: DeviceStops = DeviceStops::new();

/// The longest that the domain's end waits for all of them: an NVMe controller that writes out what it has
/// cached takes a good part of a second.
const LIMIT: Duration = Duration::from_secs(2);

/// Stops all devices. Called again after a failure in a driver, it goes on with the next device.
pub(crate) fn stop() -> Stopped {
    DEVICES.stop_all(vcpu::now, LIMIT)
}
