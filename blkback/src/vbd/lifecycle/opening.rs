//! Opening the device of a disk, which may wait for its store.

use super::super::config::{CONFIG_NODES, VbdConfig};
use super::super::observation::Observer;
use super::super::problem::Problem;
use super::super::retry::insist;
use super::super::state_machine::{Phase, Step, decide};
use super::super::teardown::End;
use super::Vbd;
#[cfg(feature = "recover")]
use super::returning;
use crate::changes::Changes;
use crate::engine::Unreleased;
use crate::id::VbdId;
use crate::services::Services;
use alloc::boxed::Box;
use alloc::format;
use alloc::sync::Arc;
use bulkhead_images::{BlockDevice, OpenError, Owner, Sector};
use bulkhead_xen::Hypervisor;
use bulkhead_xenbus::{NodeMap, read_nodes};
use bulkhead_xenstore_client::Error;
use core::pin::pin;
use futures_util::future::{Either, select};

/// The result of opening a disk's device.
pub(super) enum Opened<'a, H: Hypervisor> {
    /// The device is open.
    Wanted(Box<Vbd<'a, H>>),
    /// The disk was taken away before the store had answered.
    Unwanted(End),
}

/// Returns the phase of a disk whose device is not open yet.
fn phase_before<H: Hypervisor>(services: &Services<H>, id: VbdId) -> Phase {
    #[cfg(feature = "recover")]
    if services.kept_queues.has_left(id) {
        return Phase::Left;
    }
    let _ = (services, id);
    Phase::New
}

/// Waits until the disk whose device is being opened is not wanted any more: the toolstack or the guest takes
/// it away, or the driver domain ends.
async fn until_unwanted<H: Hypervisor>(
    services: &Services<H>,
    id: VbdId,
    nodes: &NodeMap,
    observer: &Observer<H>,
) -> Result<End, Error> {
    loop {
        if services.closing.is_set() {
            return Ok(End::Leave);
        }
        let seen = insist(services, id, async || observer.observe().await).await?;
        match decide(phase_before(services, id), seen) {
            Step::Remove => return Ok(End::Remove),
            Step::Release => return Ok(End::Release),
            Step::Abandon => return Ok(End::Abandon),
            _ => {}
        }
        let path = id.backend_path();
        let now = insist(services, id, async || {
            let mut now = NodeMap::new();
            read_nodes(&mut now, &services.store, &path, &CONFIG_NODES).await?;
            Ok(now)
        });
        if now.await? != *nodes {
            return Ok(End::StartOver);
        }
        let changed = observer.changes();
        select(pin!(changed.raised()), pin!(services.closing.wait())).await;
    }
}

/// Opens the device that a disk's nodes name.
#[cfg_attr(
    not(feature = "recover"),
    expect(
        clippy::never_loop,
        reason = "the devices of disks that were served before a crash are opened again"
    )
)]
async fn open_device<H: Hypervisor>(
    services: &Services<H>,
    id: VbdId,
    config: &VbdConfig,
    owner: Owner<'_>,
) -> Result<Arc<dyn BlockDevice>, OpenError> {
    #[cfg(feature = "recover")]
    returning::wait_for_others(services, id, &config.target).await;
    #[cfg(feature = "recover")]
    let mut retry = returning::OpenRetry::new(services, id, &config.target);
    #[cfg(not(feature = "recover"))]
    let _ = id;
    loop {
        let stores = &services.stores;
        let opened = stores.open(&config.target, config.access, owner).await;
        #[cfg(feature = "recover")]
        if let Err(OpenError::Store(reason)) = &opened
            && let Some(pause) = retry.pause(services, reason)
        {
            pause.await;
            continue;
        }
        return opened;
    }
}

impl<'a, H: Hypervisor> Vbd<'a, H> {
    /// Opens the device that the toolstack named, which may wait for its store as long as the disk is wanted.
    pub(super) async fn open(
        services: &'a Services<H>,
        id: VbdId,
        nodes: &NodeMap,
        changed: &Changes,
    ) -> Result<Opened<'a, H>, Problem> {
        let config = VbdConfig::parse(id, nodes)?;
        let name = format!("vbd {id}");
        let owner = Owner {
            name: &name,
            domain: id.frontend,
        };
        services.admission.attach()?;
        let path = id.backend_path();
        let observer = Observer::new(services, &path, &config.frontend_path, changed);
        let opening = open_device(services, id, &config, owner);
        let unwanted = until_unwanted(services, id, nodes, &observer);
        let device = match select(pin!(opening), pin!(unwanted)).await {
            Either::Left((device, _)) => device?,
            Either::Right((end, _)) => return Ok(Opened::Unwanted(end?)),
        };
        Ok(Opened::Wanted(Box::new(Vbd {
            services,
            id,
            path,
            nodes: nodes.clone(),
            config,
            log: services.guest_logs.of(id.frontend, services.handle.now()),
            device,
            unreleased: Unreleased::default(),
            observer,
            told: NodeMap::new(),
            phase: phase_before(services, id),
            limits: services.limits,
            connection: None,
            came_back: false,
            sectors: Sector(0),
            refused: false,
        })))
    }
}
