//! The devices that are stopped before the domain ends.

use crate::{logger, vcpu};
use bulkhead_xen::DeviceStops;
use core::time::Duration;

/// The registry, in which drivers register their devices.
pub(crate) static DEVICES: DeviceStops = DeviceStops::new();

/// The longest that the domain's end waits for all of them: an NVMe controller that writes out what it has
/// cached takes a good part of a second.
const LIMIT: Duration = Duration::from_secs(2);

/// Stops all devices, and returns the number of those that do not stop, which is logged. If a driver panics in here and
/// the panic handler calls this again, it goes on with the next device.
pub(crate) fn stop() -> usize {
    let running = DEVICES.stop_all(vcpu::now, LIMIT).running;
    if running > 0 {
        logger::emergency(format_args!(
            "\n{running} device(s) do not stop, and may write to guests' pages until Xen takes the devices away\n"
        ));
        logger::drain();
    }
    running
}
