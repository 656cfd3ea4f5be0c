//! Connecting a disk to its backend: the backend's offer, the rings, and the disk's properties.

use super::DiskTask;
use crate::backend_nodes::{DISK_NODES, OFFER_NODES, Offer, Properties};
use crate::connection::BackendConnection;
use crate::device::Disk;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use bulkhead_executor::Signal;
use bulkhead_xen::Hypervisor;
use bulkhead_xenbus::frontend::Phase;
use bulkhead_xenbus::{NodeMap, XenbusState, excerpt, read_nodes};
use bulkhead_xenstore_client::Error;

impl<H: Hypervisor> DiskTask<'_, H> {
    /// Makes rings, and tells the backend of them.
    pub(super) async fn publish(&mut self, changed: &Signal) -> Result<(), Error> {
        let Some(backend) = self.nodes.peer().map(|peer| peer.id) else {
            return Ok(());
        };
        if self.outwait_earlier_boot(backend).await? {
            return self.close_again(changed).await;
        }
        let Some(peer) = self.nodes.peer() else {
            return Ok(());
        };
        let frontends = self.frontends;
        let mut nodes = NodeMap::new();
        read_nodes(&mut nodes, frontends.store(), &peer.path, &OFFER_NODES).await?;
        let backend = (peer.id, Offer::parse(&nodes));
        let hypervisor = frontends.handle().hypervisor();
        let memory = (frontends.pool(), self.disk.grants(), frontends.kept());
        let made =
            BackendConnection::new(&self.disk, frontends.vcpus(), memory, backend, hypervisor);
        let connection = match made.await {
            Ok(connection) => connection,
            Err(error) => return self.back_off(format!("cannot be connected: {error}")).await,
        };
        let nodes = connection.nodes();
        self.connection = Some(connection);
        self.phase = Phase::Published;
        self.write(nodes, XenbusState::Initialised).await
    }

    /// Reads the properties of the disk from the backend's nodes, and uses the rings. Reports `state`, if there is one.
    pub(super) async fn connect(&mut self, state: Option<XenbusState>) -> Result<(), Error> {
        let properties = match self.properties().await? {
            Ok(properties) => properties,
            Err(problem) => {
                self.disk.fail(problem);
                return Ok(());
            }
        };
        let Some(connection) = &mut self.connection else {
            return Ok(());
        };
        if let Some(problem) = differs(&self.disk, &properties) {
            self.disk.fail(problem);
            return Ok(());
        }
        let backend = self.nodes.peer().map(|peer| peer.id);
        let another = self.served_by.is_some() && self.served_by != backend;
        if another && self.disk.lose_unflushed() {
            log::warn!(
                "disk {}: another domain serves it now, and what its guests wrote and did not flush may be lost",
                self.disk.name
            );
        }
        self.served_by = backend;
        let hypervisor = self.frontends.handle().hypervisor();
        if let Err(error) = connection.connect(&self.disk, hypervisor, &properties) {
            return self.back_off(format!("cannot be connected: {error}")).await;
        }
        let (rings, pages) = (connection.rings(), connection.ring_pages());
        self.phase = Phase::Connected;
        // Waiting guests need not wait for the state to be written: the rings are in use already.
        self.frontends.something_changed();
        if let Some(state) = state {
            self.write(Vec::new(), state).await?;
        }
        self.retries.connected();
        self.told = None;
        let geometry = properties.geometry;
        log::info!(
            "disk {}: connected to domain {}, {} sectors of {}, {}{rings} queue(s) of {pages} ring page(s)",
            self.disk.name,
            backend.unwrap_or_default(),
            geometry.sectors,
            geometry.sector_size,
            if geometry.read_only {
                "read-only, "
            } else {
                ""
            },
        );
        if !geometry.flush {
            log::warn!(
                "disk {}: the backend offers no flush, so guests are offered none",
                self.disk.name
            );
        }
        Ok(())
    }

    /// Reads the nodes that describe the disk. The inner error says what is wrong with them.
    pub(super) async fn properties(&self) -> Result<Result<Properties, String>, Error> {
        let Some(peer) = self.nodes.peer() else {
            return Ok(Err("it has no backend".to_string()));
        };
        let mut nodes = NodeMap::new();
        read_nodes(&mut nodes, self.frontends.store(), &peer.path, &DISK_NODES).await?;
        Ok(Properties::parse(&nodes).map_err(|error| error.to_string()))
    }

    /// Reads the disk's size again: the backend announces a change by writing its state once more.
    pub(super) async fn reread(&mut self) -> Result<(), Error> {
        let properties = self.properties().await?;
        let now = self.frontends.handle().now();
        let properties = match properties {
            Ok(properties) => properties,
            Err(problem) => {
                // The disk stays as it was.
                let line = format!("its new size cannot be read: {problem}");
                let new = self.told.as_ref() != Some(&line);
                if new && self.retries.changes.take(now) {
                    self.tell(line);
                }
                return Ok(());
            }
        };
        let sectors = properties.geometry.sectors;
        if sectors == self.disk.sectors() {
            return Ok(());
        }
        // A change beyond the limit is put off, and the size that the nodes have by then is applied.
        let changes = &mut self.retries.changes;
        if *self.next_size.get_or_insert_with(|| changes.reserve(now)) <= now {
            self.next_size = None;
            log::info!("disk {}: now {sectors} sectors", self.disk.name);
            self.disk.resize(sectors);
        }
        Ok(())
    }
}

/// Returns the reason why guests that use a disk cannot go on with the one that the backend serves now, if there is
/// one: a smaller disk, another sector size, fewer rights, no flush any more, or other `params`.
fn differs<H: Hypervisor>(disk: &Disk<H>, now: &Properties) -> Option<String> {
    let before = disk.properties().filter(|_| disk.is_in_use())?;
    let (old, new) = (before.geometry, now.geometry);
    let same_shape = old.sector_size == new.sector_size
        && (old.read_only || !new.read_only)
        && (!old.flush || new.flush)
        && new.sectors >= old.sectors
        && before.params == now.params;
    if same_shape {
        return None;
    }
    // The backend writes this text: it may be long and hold anything.
    let name = |properties: &Properties| excerpt(properties.params.as_deref().unwrap_or(""));
    Some(format!(
        "another disk was attached in its place while guests use it: {:?}, {} sectors of {}; it was \
         {:?}, {} sectors of {}",
        name(now),
        new.sectors,
        new.sector_size,
        name(&before),
        old.sectors,
        old.sector_size,
    ))
}
