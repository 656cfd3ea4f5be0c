//! The nodes that a disk's task publishes for the frontend: features, the disk's properties, a new size.

use super::super::backend_nodes::publish;
use super::super::features::{self, NodeValues};
use super::super::retry::Failure;
use super::super::state_machine::Phase;
use super::super::teardown::End;
use super::{MESSAGES_OF_A_CHANGE, Vbd};
use crate::changes::Changes;
use bulkhead_images::Access;
use bulkhead_xen::Hypervisor;
use bulkhead_xenbus::XenbusState;
use bulkhead_xenstore_client::Error;
use log::Level;

impl<H: Hypervisor> Vbd<'_, H> {
    /// Offers the disk, the first time or to a frontend that starts over.
    pub(super) async fn offer_anew(
        &mut self,
        changed: &Changes,
        own: XenbusState,
    ) -> Result<Option<End>, Failure> {
        self.disconnect().await;
        let first = self.phase == Phase::New;
        if !first {
            self.phase = Phase::Closed;
            self.came_back = true;
        }
        if self.offer(own).await? {
            self.phase = Phase::Offered;
            match (first, self.config.access) {
                (true, Access::ReadOnly) => self.log_attached("read-only"),
                (true, Access::ReadWrite) => self.log_attached("read-write"),
                (false, _) => self.tell(Level::Info, format_args!("offered again")),
            }
        } else if first {
            return Ok(Some(End::StartOver));
        } else {
            self.wait_and_follow(changed, own).await?;
        }
        Ok(None)
    }

    fn log_attached(&self, mode: &str) {
        log::info!("vbd {}: attached, {} {mode}", self.id, self.config.target);
    }

    /// Publishes the features that the frontend may use. Returns false if the directory is another disk's.
    async fn offer(&mut self, from: XenbusState) -> Result<bool, Error> {
        let services = self.services;
        let geometry = self.device.geometry();
        self.limits = services.offer(self.id);
        let nodes = features::offered(&self.config, &geometry, self.limits);
        self.publish(nodes, from, XenbusState::InitWait).await
    }

    /// Writes nodes and the state that they belong to, if the directory is still this disk's.
    async fn publish(
        &mut self,
        mut nodes: NodeValues,
        from: XenbusState,
        state: XenbusState,
    ) -> Result<bool, Error> {
        nodes.retain(|(name, value)| self.told.get(*name) != Some(value));
        self.charge(MESSAGES_OF_A_CHANGE + nodes.len());
        let (store, states) = (&self.services.store, (from, state));
        let published = publish(store, &self.path, &self.nodes, &nodes, states).await?;
        self.observer.wrote(state, published);
        if published {
            for (name, value) in nodes {
                self.told.insert(name.into(), value);
            }
        }
        Ok(published)
    }

    /// Publishes the disk's properties, and that the frontend is connected. Returns false if the directory has changed
    /// meanwhile.
    pub(super) async fn publish_disk(&mut self, from: XenbusState) -> Result<bool, Error> {
        let geometry = self.device.geometry();
        let nodes = features::disk(&self.config, &geometry);
        let told = self.publish(nodes, from, XenbusState::Connected).await?;
        self.sectors = geometry.sectors;
        Ok(told)
    }

    /// Announces that the image has grown under a connected frontend. Writing the state again, with the size,
    /// makes the frontend read it (as Linux's xen-blkback does, and blkfront expects).
    pub(super) async fn announce_size(&mut self, own: XenbusState) -> Result<(), Error> {
        if own == XenbusState::Connected {
            self.publish_disk(own).await?;
            log::info!("vbd {}: now {} sectors", self.id, self.sectors);
        } else {
            // The frontend is closing and need not know.
            self.sectors = self.device.geometry().sectors;
        }
        Ok(())
    }
}
