//! Devices that are stopped when their domain shuts down or crashes. (If the toolstack or Xen destroys the domain, it
//! has no chance to.)

use crate::Instant;
use alloc::sync::Arc;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use core::time::Duration;
use spin::Mutex;

/// A device that writes to memory by itself, for the code that ends the domain.
///
/// A domain that ends while its device writes to other domains' pages damages them: Xen (4.17 to 4.20) unmaps
/// what a domain has mapped when it is torn down (`domain_teardown`, `gnttab_release_mappings`), which leaves the
/// IOMMU's entries, and takes its devices away only later (`domain_relinquish_resources`,
/// `pci_release_devices`). In between, a page that its guest has back is still written to. So the domain stops
/// its devices before it ends ([`DeviceStops::stop_all`]).
///
/// Both functions may be called after a panic, on any vCPU, while the driver is interrupted at any point and holds its
/// locks: they take no lock, allocate nothing, log nothing and wait for nothing. They access only registers and
/// atomics.
pub trait StopDevice: Send + Sync {
    /// Tells the device to stop: it ends its accesses to memory, and begins no more.
    fn begin_stop(&self);

    /// Returns whether the device accesses no memory any more; true as well if it is gone.
    fn has_stopped(&self) -> bool;
}

/// The largest number of devices.
const MOST_DEVICES: usize = 64;

/// The largest number of looks at one device, which ends the wait if the clock stands still. A look at a register takes
/// about a microsecond, so this is some seconds.
const MOST_LOOKS: usize = 1 << 22;

/// The devices of a domain that are to be stopped before it ends.
///
/// The code that ends a domain waits for no lock, since a stopped vCPU may hold it: a device that is just being
/// registered or unregistered is not told to stop, and counts as one that runs. So a driver registers a device before
/// it lets the device access memory, and unregisters it after it has stopped it.
pub struct DeviceStops {
    devices: [Mutex<Option<Arc<dyn StopDevice>>>; MOST_DEVICES],
    /// The places that have a device, or are to have one. With these, a driver that looks for a free place locks no
    /// other device's place, which would then not be told to stop.
    taken: [AtomicBool; MOST_DEVICES],
    ending: AtomicBool,
    /// The first place whose device was not told to stop yet, and the first whose device was not waited for. If a
    /// driver's code panics there, the next call of `stop_all` goes on with the place after it.
    told: AtomicUsize,
    awaited: AtomicUsize,
}

/// The registration of a device. Dropping it ends the registration; the driver has stopped the device by then.
#[must_use = "dropping it unregisters the device"]
pub struct StopRegistration<'s> {
    stops: &'s DeviceStops,
    place: usize,
}

/// The error that no more devices can be registered. A driver must not use a device that is not registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyDevices;

impl fmt::Display for TooManyDevices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "there are {MOST_DEVICES} devices already")
    }
}

impl core::error::Error for TooManyDevices {}

/// The outcome of [`DeviceStops::stop_all`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stopped {
    /// The number of devices that have stopped.
    pub stopped: usize,
    /// The number of devices that had not stopped in time: they may still write to memory.
    pub running: usize,
}

impl DeviceStops {
    /// Creates an empty registry.
    pub const fn new() -> DeviceStops {
        DeviceStops {
            devices: [const { Mutex::new(None) }; MOST_DEVICES],
            taken: [const { AtomicBool::new(false) }; MOST_DEVICES],
            ending: AtomicBool::new(false),
            told: AtomicUsize::new(0),
            awaited: AtomicUsize::new(0),
        }
    }

    /// Registers a device, which does not access memory yet.
    pub fn register(
        &self,
        device: Arc<dyn StopDevice>,
    ) -> Result<StopRegistration<'_>, TooManyDevices> {
        let free = |taken: &AtomicBool| !taken.swap(true, Ordering::Acquire);
        let place = self.taken.iter().position(free).ok_or(TooManyDevices)?;
        *self.devices[place].lock() = Some(device);
        Ok(StopRegistration { stops: self, place })
    }

    /// Returns whether the domain is ending. Drivers must not start a device then.
    pub fn is_ending(&self) -> bool {
        self.ending.load(Ordering::SeqCst)
    }

    /// Tells all devices to stop, and waits for them up to `limit` in all. No other vCPU may be able to start a device.
    ///
    /// If a driver's code panics in here and the panic handler calls this again, it goes on with the next device.
    pub fn stop_all(&self, now: impl Fn() -> Instant, limit: Duration) -> Stopped {
        self.ending.store(true, Ordering::SeqCst);
        let next = |counter: &AtomicUsize| {
            let place = counter.fetch_add(1, Ordering::SeqCst);
            self.devices.get(place)
        };
        while let Some(device) = next(&self.told) {
            if let Some(device) = device.try_lock().as_deref().and_then(Option::as_ref) {
                device.begin_stop();
            }
        }
        // The clock is not read before there is something to wait for: it may not be set up yet.
        let (mut began, mut outcome) = (None, Stopped::default());
        while let Some(device) = next(&self.awaited) {
            let Some(device) = device.try_lock() else {
                // Its driver has panicked when it was told to stop, or another vCPU was stopped while it registered or
                // unregistered the device.
                outcome.running += 1;
                continue;
            };
            let Some(device) = &*device else {
                continue;
            };
            let mut looks = 0..MOST_LOOKS;
            let has_stopped = loop {
                if device.has_stopped() {
                    break true;
                }
                let now = now();
                let is_over = now.since(*began.get_or_insert(now)) >= limit;
                if is_over || looks.next().is_none() {
                    break false;
                }
                core::hint::spin_loop();
            };
            match has_stopped {
                true => outcome.stopped += 1,
                false => outcome.running += 1,
            }
        }
        outcome
    }
}

impl Default for DeviceStops {
    fn default() -> Self {
        DeviceStops::new()
    }
}

impl fmt::Debug for DeviceStops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceStops")
            .field("ending", &self.is_ending())
            .finish_non_exhaustive()
    }
}

impl Drop for StopRegistration<'_> {
    fn drop(&mut self) {
        let device = self.stops.devices[self.place].lock().take();
        self.stops.taken[self.place].store(false, Ordering::Release);
        // Outside of the lock: this may be the last reference, and drop the device.
        drop(device);
    }
}

impl fmt::Debug for StopRegistration<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StopRegistration({})", self.place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::AtomicU64;
    use std::sync::mpsc::channel;
    use std::thread::spawn;

    /// A device that stops after a number of looks, or breaks its driver.
    #[derive(Default)]
    struct Device {
        looks_left: AtomicUsize,
        told: AtomicUsize,
        fails: bool,
    }

    impl StopDevice for Device {
        fn begin_stop(&self) {
            self.told.fetch_add(1, Ordering::SeqCst);
            assert!(!self.fails, "the driver fails");
        }

        fn has_stopped(&self) -> bool {
            assert!(self.told.load(Ordering::SeqCst) > 0, "it was told");
            let one_less = |left: usize| left.checked_sub(1);
            let order = Ordering::SeqCst;
            let changed = self.looks_left.fetch_update(order, order, one_less);
            changed.is_err()
        }
    }

    fn device(looks: usize) -> Arc<Device> {
        Arc::new(Device {
            looks_left: AtomicUsize::new(looks),
            ..Device::default()
        })
    }

    /// A clock that goes on by a microsecond with each look.
    fn clock() -> impl Fn() -> Instant {
        let now = AtomicU64::new(5);
        move || Instant(now.fetch_add(1000, Ordering::SeqCst))
    }

    const LIMIT: Duration = Duration::from_millis(1);

    #[test]
    fn every_device_is_told_before_any_is_waited_for() {
        let stops = DeviceStops::new();
        let devices = [device(700), device(0), device(200)];
        let registered = devices
            .each_ref()
            .map(|device| stops.register(device.clone()).expect("room"));
        assert!(!stops.is_ending());
        let outcome = stops.stop_all(clock(), LIMIT);
        assert!(stops.is_ending());
        // The first is slow, and the others have their time meanwhile.
        assert_eq!((outcome.stopped, outcome.running), (3, 0));
        drop(registered);
    }

    #[test]
    fn a_device_that_does_not_stop_holds_the_domain_up_for_a_bounded_time() {
        let stops = DeviceStops::new();
        let devices = [device(usize::MAX), device(usize::MAX), device(3)];
        let _registered = devices
            .each_ref()
            .map(|device| stops.register(device.clone()).expect("room"));
        let now = clock();
        let began = now();
        let outcome = stops.stop_all(&now, LIMIT);
        assert!(now().since(began) < LIMIT * 2, "one limit for all of them");
        // What could have stopped was looked at once more.
        assert_eq!((outcome.stopped, outcome.running), (0, 3));
        assert_eq!(devices[2].told.load(Ordering::SeqCst), 1);
        // Nor does a clock that stands still.
        let still = DeviceStops::new();
        let _registered = still.register(device(usize::MAX)).expect("room");
        assert_eq!(still.stop_all(|| Instant(1), LIMIT).running, 1);
    }

    #[test]
    fn a_driver_that_fails_does_not_keep_the_others_from_being_stopped() {
        let stops = DeviceStops::new();
        let good = [device(2), device(2)];
        let bad = Arc::new(Device {
            fails: true,
            ..Device::default()
        });
        let _registered = [
            stops.register(good[0].clone()),
            stops.register(bad.clone()),
            stops.register(good[1].clone()),
        ];
        let first = catch_unwind(AssertUnwindSafe(|| stops.stop_all(clock(), LIMIT)));
        assert!(first.is_err());
        // As the exception that it was is handled.
        stops.stop_all(clock(), LIMIT);
        let told = |device: &Device| device.told.load(Ordering::SeqCst);
        assert_eq!((told(&good[0]), told(&bad), told(&good[1])), (1, 1, 1));
        // A third time, there is nothing left to do.
        assert_eq!(stops.stop_all(clock(), LIMIT), Stopped::default());
    }

    #[test]
    fn only_what_is_registered_is_stopped() {
        let stops = DeviceStops::new();
        let (gone, stays) = (device(0), device(0));
        let going = stops.register(gone.clone()).expect("room");
        let _staying = stops.register(stays.clone()).expect("room");
        drop(going);
        assert_eq!(Arc::strong_count(&gone), 1);
        // Its place is another's.
        let many: Vec<_> = (1..MOST_DEVICES)
            .map(|_| stops.register(device(0)).expect("room"))
            .collect();
        let refused = stops.register(device(0)).map(drop);
        assert_eq!(refused, Err(TooManyDevices));
        assert_eq!(stops.stop_all(clock(), LIMIT).stopped, MOST_DEVICES);
        assert_eq!(gone.told.load(Ordering::SeqCst), 0);
        assert_eq!(stays.told.load(Ordering::SeqCst), 1);
        drop(many);
    }

    #[test]
    fn a_vcpu_that_is_stopped_in_a_registration_hides_no_other_device() {
        let stops = Arc::new(DeviceStops::new());
        let _registered = core::mem::ManuallyDrop::new(stops.register(device(0)).expect("room"));
        // A vCPU that registers another device does not go where this one is.
        let first = stops.devices[0].lock();
        let (done, waiting) = channel();
        let other = stops.clone();
        spawn(move || {
            let registered = other.register(device(0)).map(core::mem::forget);
            let _ = done.send(registered.is_ok());
        });
        let looked_elsewhere = waiting.recv_timeout(Duration::from_secs(10));
        drop(first);
        assert_eq!(looked_elsewhere, Ok(true), "it waits for another's place");
        // It is stopped in its own, or its driver has failed there: nobody knows what that device does.
        let half_done = stops.devices[1].lock();
        let outcome = stops.stop_all(clock(), LIMIT);
        assert_eq!((outcome.stopped, outcome.running), (1, 1));
        drop(half_done);
    }
}
