//! PCI functions that were given to the driver domain, as the unikernel finds them.

use super::executors::Executors;
use bulkhead_grant::TableOnDemand;
use bulkhead_pci::{Driver, Frontend, FrontendOptions};
use bulkhead_xen::{DeviceStops, Instant, Port, Stopped};
use bulkhead_xen_sim::{SimDomain, SimVcpu};
use bulkhead_xenstore_client::Client;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

thread_local! {
    /// The port of the channel to pciback of this thread's last world.
    static KEPT: Cell<Option<Port>> = const { Cell::new(None) };
}

/// Returns the port that a restart leaves open.
#[cfg(feature = "recover")]
pub fn kept_port() -> Option<Port> {
    KEPT.get()
}

/// Returns the devices that are stopped at the end of a boot, as yet none.
pub fn no_stops() -> &'static DeviceStops {
    Box::leak(Box::default())
}

/// Stops devices as the end of the domain does, whatever their drivers are at. `step` has a device do something, `now` is
/// the machine's time.
pub fn stop(stops: &DeviceStops, step: impl Fn(), now: Instant) -> Stopped {
    let looks = Cell::new(0);
    let now = || {
        looks.set(looks.get() + 1);
        step();
        now + Duration::from_millis(looks.get())
    };
    stops.stop_all(now, Duration::from_secs(2))
}

/// Follows the domain's functions.
pub fn follow(
    domain: &SimDomain,
    executors: &Executors,
    store: &Client,
    grants: TableOnDemand<SimVcpu>,
    driver: Rc<dyn Driver<SimVcpu>>,
) {
    let (handle, memory) = (executors.handle(), Arc::new(domain.hypervisor()));
    let options = FrontendOptions {
        keep_port: |port| KEPT.set(port),
        ..FrontendOptions::default()
    };
    let mut functions = Frontend::new(handle.clone(), store.clone(), memory, grants, options);
    functions.add_driver(driver);
    handle.spawn(async move {
        let Err(error) = functions.follow().await;
        log::error!("functions cannot be followed any more: {error}");
    });
}
