//! Devices that are to be stopped before the domain ends, as a log line in the last code of the domain shows.

use alloc::sync::Arc;
use bulkhead_kernel::{Machine, logger};
use bulkhead_xen::{DeviceStops, StopDevice, StopRegistration};
use core::sync::atomic::{AtomicU32, Ordering};

/// A stand-in for a device.
struct Device {
    /// The number of looks after which it stops.
    looks_left: AtomicU32,
    /// True if its driver fails when it is to be stopped.
    fails: bool,
}

impl StopDevice for Device {
    fn begin_stop(&self) {
        logger::emergency(format_args!("a device is told to stop\n"));
        if self.fails {
            // SAFETY: meant to crash: a driver whose registers are not mapped any more.
            unsafe { (0x7000_0000_1000 as *mut u32).write_volatile(0) };
        }
    }

    fn has_stopped(&self) -> bool {
        let one_less = |left: u32| match left {
            u32::MAX => None,
            left => left.checked_sub(1),
        };
        let order = Ordering::Relaxed;
        let looked = self.looks_left.fetch_update(order, order, one_less);
        let stopped = looked == Err(0);
        if stopped {
            logger::emergency(format_args!("a device has stopped\n"));
        }
        stopped
    }
}

fn device(stops: &'static DeviceStops, looks: u32, fails: bool) -> StopRegistration<'static> {
    let device = Device {
        looks_left: AtomicU32::new(looks),
        fails,
    };
    stops.register(Arc::new(device)).expect("room")
}

/// Registers three devices; the driver of the second one fails.
pub fn register(machine: &Machine) -> [StopRegistration<'static>; 3] {
    [(10, false), (0, true), (1000, false)]
        .map(|(looks, fails)| device(machine.devices, looks, fails))
}

/// Registers a device that does not stop.
pub fn register_stuck(machine: &Machine) -> StopRegistration<'static> {
    device(machine.devices, u32::MAX, false)
}
