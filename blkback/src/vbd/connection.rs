//! The connection to a frontend: what it published is read and checked, and its rings are served.

use super::config::VbdConfig;
use super::frontend_nodes::{self, COMMON_NODES, Published};
use super::problem::Problem;
use super::sector_units::SectorUnits;
use crate::engine::{
    Journal, QueueControl, QueueError, QueueSetup, QueueSetupError, Unreleased, queue_control,
    serve,
};
use crate::id::VbdId;
use crate::limits::Limits;
use crate::services::Services;
use crate::statistics::ServedQueue;
use crate::vcpus::Placement;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_grant::Region;
use bulkhead_images::{BlockDevice, SectorSize};
use bulkhead_xen::Hypervisor;
use bulkhead_xenbus::{NodeMap, peer_node, peer_nodes};
use bulkhead_xenstore_client as xenstore;
use core::future::{Future, poll_fn};
use core::task::Poll;

/// The rings of one frontend, each served by a task of its own, on the vCPU where it was placed.
pub struct FrontendConnection<H: Hypervisor> {
    queues: Vec<Served<H>>,
}

struct Served<H: Hypervisor> {
    control: QueueControl,
    place: Placement<H>,
}

impl<H: Hypervisor> FrontendConnection<H> {
    /// Maps all rings and binds all event channels; if one of them cannot be had, none is served.
    /// Each queue has one of the journals, or one that keeps nothing. Returns the queues' counters, too.
    pub async fn open(
        services: &Services<H>,
        id: VbdId,
        published: &Published,
        config: &VbdConfig,
        device: &Arc<dyn BlockDevice>,
        (unreleased, journals): (&Unreleased, Vec<Journal>),
    ) -> Result<(Self, Vec<ServedQueue>), Problem> {
        let geometry = device.geometry();
        let options = services.options;
        let log = services.guest_logs.of(id.frontend, services.handle.now());
        let mut journals = journals.into_iter();
        let mut queues = Vec::new();
        for (number, details) in published.queues.iter().enumerate() {
            let place = services.vcpus.place(id.frontend);
            let setup = QueueSetup {
                name: format!("vbd {id} queue {number}"),
                log: log.clone(),
                frontend: id.frontend,
                abi: published.abi,
                ring: details.ring.clone(),
                event_channel: details.event_channel,
                persistent: published.persistent,
                indirect_segments: services.limits.indirect_segments as usize,
                discard: config.discard && geometry.discard.is_some(),
                sector_size: geometry.sector_size.bytes(),
                device: device.clone(),
                queues: published.queues.len(),
                unreleased: unreleased.clone(),
                journal: journals.next().unwrap_or_default(),
                options,
                turn: place.turn(),
            };
            queues.push(Served::on(place, &services.region, setup));
        }
        let connection = FrontendConnection { queues };
        match connection.start().await {
            Ok(served) => Ok((connection, served)),
            Err(error) => {
                connection.close().await;
                Err(error.into())
            }
        }
    }

    /// Has all queues served, once all have connected.
    async fn start(&self) -> Result<Vec<ServedQueue>, QueueSetupError> {
        let mut served = Vec::new();
        for queue in &self.queues {
            served.push(ServedQueue {
                vcpu: queue.place.vcpu(),
                stats: queue.control.connected().await?,
            });
        }
        self.queues.iter().for_each(|queue| queue.control.start());
        Ok(served)
    }

    /// Waits until one of the queues ends by itself, which it only does if something is wrong.
    pub async fn failed(&self) -> QueueError {
        let mut ends: Vec<_> = self
            .queues
            .iter()
            .map(|queue| alloc::boxed::Box::pin(queue.control.ended()))
            .collect();
        poll_fn(|context| {
            for end in &mut ends {
                if let Poll::Ready(Err(error)) = end.as_mut().poll(context) {
                    return Poll::Ready(error);
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Notes that the frontend does not wait for the requests in flight: when serving stops, those that the store
    /// can cancel are left undone.
    pub fn give_up(&self) {
        self.queues.iter().for_each(|queue| queue.control.give_up());
    }

    /// Notes that the frontend may live on and cannot be told that its disk goes away: when serving stops, it is
    /// served on for a while.
    pub fn set_unreachable(&self) {
        let queues = self.queues.iter();
        queues.for_each(|queue| queue.control.set_unreachable());
    }

    /// Returns whether that was noted.
    pub fn is_unreachable(&self) -> bool {
        let mut queues = self.queues.iter();
        queues.any(|queue| queue.control.is_unreachable())
    }

    /// Stops serving, and waits until nothing of the frontend's is mapped or bound any more.
    pub async fn close(&self) {
        // All at once: each finishes its requests in flight.
        self.queues
            .iter()
            .for_each(|queue| queue.control.ask_to_stop());
        for queue in &self.queues {
            queue.control.stop().await;
        }
    }
}

impl<H: Hypervisor> Served<H> {
    /// Starts a queue's task on a vCPU.
    fn on(place: Placement<H>, region: &Region<H>, setup: QueueSetup) -> Self {
        let (control, guard) = queue_control();
        let region = region.clone();
        place.executor().send(move |handle| {
            let region = region.on_vcpu(handle.hypervisor().clone());
            handle.spawn(serve(handle.clone(), region, setup, guard));
        });
        Served { control, place }
    }
}

/// Reads what the frontend has published, and adds to `messages` the number of messages to xenstored that this takes.
pub async fn read_published(
    store: &xenstore::Client,
    frontend_path: &str,
    limits: Limits,
    messages: &mut usize,
) -> Result<Published, Problem> {
    let mut nodes = NodeMap::new();
    *messages += COMMON_NODES.len();
    peer_nodes(&mut nodes, store, frontend_path, &COMMON_NODES).await?;
    let names = frontend_nodes::queue_nodes(&nodes, limits)?;
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    *messages += names.len();
    peer_nodes(&mut nodes, store, frontend_path, &names).await?;
    Ok(frontend_nodes::parse(&nodes, limits)?)
}

/// Checks that the frontend counts sectors in the units that the backend understands, and adds to `messages` the number
/// of messages to xenstored that this takes.
pub async fn check_sector_units(
    store: &xenstore::Client,
    frontend_path: &str,
    sectors: SectorSize,
    messages: &mut usize,
) -> Result<(), Problem> {
    if sectors == SectorSize::B512 {
        return Ok(());
    }
    *messages += 2;
    let large = peer_node(store, format!("{frontend_path}/feature-large-sector-size")).await?;
    if large.is_some_and(|value| value.trim() != "0") {
        return Err(SectorUnits::OfTheSector.into());
    }
    match peer_node(store, format!("{frontend_path}/feature-persistent")).await? {
        Some(_) => Ok(()),
        None => Err(SectorUnits::Unknown.into()),
    }
}
