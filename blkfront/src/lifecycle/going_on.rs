//! Going on with the rings of a boot before this one that has crashed: the backend stays connected, and its end of the
//! disk notices nothing.

use super::DiskTask;
use crate::connection::{BackendConnection, LeftRing, RING_NODES};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use bulkhead_ring::MAX_PAGES;
use bulkhead_xen::{GrantRef, Hypervisor, Port};
use bulkhead_xenbus::frontend::Phase;
use bulkhead_xenstore_client::Error;
use core::time::Duration;

/// The time in which the backend has to answer the requests that were in flight at the crash.
const DRAINS: Duration = Duration::from_millis(200);
/// The pause between two checks whether it has.
const DRAINS_PAUSE: Duration = Duration::from_millis(1);

/// The number of free pages, and of free entries of the grant table, that are demanded for each grant that the boot
/// before left: pages that the backend keeps mapped stay out of use, and as many are needed anew.
const ROOM: usize = 2;

impl<H: Hypervisor> DiskTask<'_, H> {
    /// Goes on with the rings that the disk's nodes name. They are used only once the backend has answered all requests
    /// of the boot before, so that it executes none of those after one of this boot. If anything is not as it should
    /// be, the disk is closed next, and connected anew.
    pub(super) async fn go_on(&mut self) -> Result<(), Error> {
        self.before.may_go_on = false;
        let Some(backend) = self.nodes.peer().map(|peer| peer.id) else {
            return Ok(());
        };
        let rings = self.rings_left().await?;
        let (frontends, grants) = (self.frontends, self.disk.grants());
        if rings.is_empty() {
            return Ok(());
        }
        let ports: Vec<Port> = rings.iter().map(|ring| ring.port).collect();
        if !frontends.take_left(&ports) {
            let why = "is connected anew, as its event channels of before the crash are closed";
            self.tell(why.to_string());
            return Ok(());
        }
        let hypervisor = frontends.handle().hypervisor();
        if !self.has_room() {
            let why =
                "is connected anew, as too little memory is free beside what its backend keeps";
            self.tell(why.to_string());
            for port in ports {
                // Cannot fail: the port is open.
                let _ = hypervisor.close_port(port);
            }
            return Ok(());
        }
        let memory = (frontends.pool(), grants, frontends.kept());
        let left = BackendConnection::left(&self.disk, frontends.vcpus(), memory, backend, &rings);
        let mut connection = left.await;
        connection.notify_of_left(hypervisor);
        let over = frontends.handle().now() + DRAINS;
        let mut drained = connection.is_drained(hypervisor, rings.len());
        while !drained && frontends.handle().now() < over {
            frontends.handle().sleep(DRAINS_PAUSE).await;
            drained = connection.is_drained(hypervisor, rings.len());
        }
        if !drained {
            self.before.leftover = Some(connection.disconnect(&self.disk));
            self.tell(
                "is connected anew, as its rings of before the crash cannot be used".to_string(),
            );
            return Ok(());
        }
        self.connection = Some(connection);
        frontends.note_gone_on(backend);
        log::info!(
            "disk {}: goes on with the rings of before the crash",
            self.disk.name
        );
        self.phase = Phase::Published;
        self.connect(None).await
    }

    /// Returns whether the domain has memory and grants enough to do without the pages that the backend keeps mapped.
    fn has_room(&self) -> bool {
        let grants = self.disk.grants();
        grants.end_left(None);
        let needed = grants.found_left() * ROOM;
        self.frontends.pool().free_pages() >= needed && grants.free_entries() >= needed
    }

    /// Returns the rings that the disk's nodes name; none if the nodes are not as this frontend writes them.
    async fn rings_left(&self) -> Result<Vec<LeftRing>, Error> {
        let (store, path) = (self.frontends.store(), self.nodes.path());
        let counts = RING_NODES.map(|name| format!("{path}/{name}"));
        let counts = store.read_each(&counts).await?;
        let number = |value: &Option<String>| value.as_ref()?.parse::<u32>().ok();
        let count = |at: usize, default| match counts.get(at) {
            Some(Some(value)) => value.parse::<usize>().unwrap_or(usize::MAX),
            _ => default,
        };
        let (order, rings) = (count(0, 0), count(1, 1));
        if order > MAX_PAGES.ilog2() as usize || rings > self.frontends.vcpus().len() {
            return Ok(Vec::new());
        }
        let pages = 1 << order;
        let mut paths = Vec::new();
        for ring in 0..rings {
            let prefix = match rings {
                1 => String::from(path),
                _ => format!("{path}/queue-{ring}"),
            };
            paths.push(format!("{prefix}/event-channel"));
            paths.extend((0..pages).map(|page| match pages {
                1 => format!("{prefix}/ring-ref"),
                _ => format!("{prefix}/ring-ref{page}"),
            }));
        }
        let values = store.read_each(&paths).await?;
        let numbers: Option<Vec<u32>> = values.iter().map(number).collect();
        let numbers = numbers.unwrap_or_default();
        let rings = numbers.chunks_exact(1 + pages).map(|ring| LeftRing {
            port: Port(ring[0]),
            grefs: ring[1..].iter().copied().map(GrantRef).collect(),
        });
        Ok(rings.collect())
    }
}
