//! Devices of kinds that this domain does not serve. A toolstack announces them all the same: libxl has QEMU
//! serve a disk with `format=qcow2` or `backendtype=qdisk`, and the CD-ROM drive of an HVM guest, and
//! expects QEMU to run in the domain that `backend=` names. The log tells the operator what to write instead,
//! the guest learns that no device will come, and nothing is left when the guest is gone.

use crate::changes::Changes;
use crate::device::DeviceId;
use crate::frontends::Following;
use crate::services::Services;
use crate::vbd::{Act, DirectoryChange, LINGER, is_over};
use alloc::format;
use alloc::string::{String, ToString};
use bulkhead_executor::Sleep;
use bulkhead_xen::Hypervisor;
use bulkhead_xenbus::NodeMap;
use bulkhead_xenbus::XenbusState;
use bulkhead_xenbus::read_nodes;
use bulkhead_xenbus::retry::persist;
use bulkhead_xenstore_client::{Error, Fault, Refusal};
use core::cell::Cell;
use core::fmt;
use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::Poll;

/// The kinds for whose backend libxl does not wait, because QEMU is to serve them (`QEMU_BACKEND` in
/// its `libxl_internal.h`): it lets the guest run whatever becomes of them.
const OF_QEMU: [&str; 6] = ["qdisk", "vfb", "vkbd", "qusb", "9pfs", "xen_9pfs"];

/// The messages to xenstored that [`look`](Refused::look) takes.
const MESSAGES_OF_A_LOOK: usize = 3;

/// The nodes that describe a device to the operator.
const NODES: [&str; 5] = ["state", "frontend", "params", "device-type", "dev"];

/// Refuses a device, and follows it until its directory is gone. `changed` is raised whenever
/// something in that changes.
pub async fn refuse<H: Hypervisor>(services: &Services<H>, device: &DeviceId, changed: &Changes) {
    let refused = Refused {
        services,
        device,
        path: device.backend_path(),
        changed,
        told: Cell::new(false),
    };
    // If xenstored refuses a request, all of it begins anew.
    let follow = persist(&services.handle, &refused.path, async || {
        refused.run().await
    });
    if let Err(error) = follow.await {
        log::error!("{device}: {error}");
    }
}

struct Refused<'a, H: Hypervisor> {
    services: &'a Services<H>,
    device: &'a DeviceId,
    path: String,
    changed: &'a Changes,
    /// True once the operator was told.
    told: Cell<bool>,
}

impl<H: Hypervisor> Refused<'_, H> {
    async fn run(&self) -> Result<(), Error> {
        let store = &self.services.store;
        let mut nodes = NodeMap::new();
        read_nodes(&mut nodes, store, &self.path, &NODES).await?;
        let Some(state) = nodes.get("state") else {
            // An event of a removal, or a directory that is still being made.
            return Ok(());
        };
        let state = XenbusState::parse(Some(state));
        let frontend = nodes.get("frontend").map_or("", String::as_str);
        if state != XenbusState::Closed && !self.told.replace(true) {
            let text = Advice::new(self.device, &nodes).to_string();
            log::error!("{}: {text}", self.device);
            let services = self.services;
            services.write_error(self.device, frontend, &text).await;
        }
        // libxl waits for backends that are not QEMU, and gives up at once if their directory is removed.
        let mut over = state;
        if OF_QEMU.contains(&self.device.kind.as_str()) {
            // The frontend waits, for minutes, unless its backend is closed.
            let closed = [("state", XenbusState::Closed.to_string())];
            let open = |own| own != XenbusState::Closed;
            self.change(&open, Act::Write(&closed)).await?;
            over = XenbusState::Closed;
            if !self.is_over(frontend).await? {
                return Ok(());
            }
        }
        // Unless the toolstack has made it anew.
        let ours = |own| own == over || is_over(own);
        if !self.change(&ours, Act::Remove).await? {
            self.changed.raise();
        }
        Ok(())
    }

    /// Waits until the toolstack does not want the device any more, or its frontend is gone; and then
    /// as long as a closed disk stays: libxl looks at the state before it waits for the removal. Returns
    /// false if there is nothing to remove.
    async fn is_over(&self, frontend: &str) -> Result<bool, Error> {
        let following = self.follow(frontend);
        let mut ends: Option<Sleep<H>> = None;
        loop {
            let stale = self.changed.take_stale();
            let by_guest = stale.frontend && !stale.own && !stale.online;
            if let Some(following) = following.as_ref().filter(|_| by_guest) {
                following.charge(self.services.handle.now(), MESSAGES_OF_A_LOOK);
            }
            let (closed, wanted) = self.look(frontend).await?;
            if !closed {
                // It is gone, or the next device's already.
                self.changed.raise();
                return Ok(false);
            }
            if !wanted && ends.is_none() {
                ends = Some(self.services.handle.sleep(LINGER));
            }
            let mut raised = pin!(self.changed.raised());
            let mut closing = pin!(self.services.closing.wait());
            let over = poll_fn(|context| {
                if closing.as_mut().poll(context).is_ready() {
                    return Poll::Ready(Some(false));
                }
                if let Some(ends) = &mut ends
                    && pin!(ends).poll(context).is_ready()
                {
                    return Poll::Ready(Some(true));
                }
                raised.as_mut().poll(context).map(|()| None)
            });
            if let Some(over) = over.await {
                return Ok(over);
            }
        }
    }

    /// Returns whether the directory says that the device is closed, and whether the toolstack and the frontend still
    /// want it.
    async fn look(&self, frontend: &str) -> Result<(bool, bool), Error> {
        let store = &self.services.store;
        let mut nodes = NodeMap::new();
        read_nodes(&mut nodes, store, &self.path, &["state", "online"]).await?;
        let there = match store.exists(frontend).await {
            Err(error) if matches!(error.fault(), Fault::Path { .. }) => false,
            Err(error) if error.refusal() == Some(Refusal::AccessDenied) => false,
            there => there?,
        };
        let state = XenbusState::parse(nodes.get("state").map(String::as_str));
        let online = nodes.get("online").is_none_or(|online| online != "0");
        Ok((is_over(state), online && there))
    }

    async fn change(
        &self,
        from: &dyn Fn(XenbusState) -> bool,
        act: Act<'_>,
    ) -> Result<bool, Error> {
        let change = DirectoryChange {
            from,
            described: None,
            act,
        };
        change.make(&self.services.store, &self.path).await
    }

    /// Follows changes of the frontend's directory, if it is one of this guest.
    fn follow(&self, frontend: &str) -> Option<Following> {
        let of_guest = format!("/local/domain/{}/device/", self.device.frontend);
        let Services {
            frontends,
            handle,
            store,
            ..
        } = self.services;
        let is_its = frontend.starts_with(&of_guest);
        is_its.then(|| frontends.follow(handle, store, frontend, self.changed))
    }
}

/// Advice to the operator: what is wrong, and what to write instead.
struct Advice<'a> {
    device: &'a DeviceId,
    nodes: &'a NodeMap,
}

impl<'a> Advice<'a> {
    fn new(device: &'a DeviceId, nodes: &'a NodeMap) -> Self {
        Advice { device, nodes }
    }

    fn node(&self, name: &str) -> &str {
        self.nodes.get(name).map_or("", String::as_str)
    }
}

impl fmt::Display for Advice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DeviceId {
            kind,
            frontend,
            device,
        } = self.device;
        if kind != "qdisk" {
            return write!(
                f,
                "guest {frontend}, {kind} {device}: only disks (vbd) are served here: name another \
                 domain as its backend="
            );
        }
        match self.node("dev") {
            "" => write!(f, "guest {frontend}, disk {device}: ")?,
            name => write!(f, "guest {frontend}, disk {name}: ")?,
        }
        // libxl writes the format, `aio` for a raw image, and the target.
        let format = self
            .node("params")
            .split_once(':')
            .map_or("", |pair| pair.0);
        match format {
            "" | "aio" if self.node("device-type") == "cdrom" => f.write_str(
                "libxl has QEMU serve the CD-ROM drive of an HVM guest, which does not run here: \
                 leave out devtype=cdrom for a disk, or backend= for a drive of dom0's",
            ),
            "" | "aio" => {
                f.write_str("backendtype=qdisk is for QEMU, which does not run here: leave it out")
            }
            format => write!(
                f,
                "format={format} is for QEMU, which does not run here: write format=raw"
            ),
        }
    }
}
