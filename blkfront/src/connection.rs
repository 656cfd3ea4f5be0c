//! The rings to a backend, each with a task on the vCPU that serves it.

use crate::backend_nodes::{FlushBy, Offer, Properties};
use crate::device::Disk;
use crate::wire::{Lie, Rules, Wire};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_executor::{Handover, Task, VcpuSpawner};
use bulkhead_grant::{GrantTable, NotShared, PagePool, SharedMemory};
use bulkhead_ring::MAX_PAGES;
use bulkhead_ring::blkif::Abi;
use bulkhead_xen::{DomId, Errno, Hypervisor, Port};
use core::fmt;

/// The most pages of all rings of a disk together, if each has at least one.
const RING_PAGES: usize = 64;

/// The nodes that tell of rings by being there: without them, there is one ring of one page (`io/blkif.h`).
pub const RING_NODES: [&str; 2] = ["ring-page-order", "multi-queue-num-queues"];

/// The reason why rings cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRings {
    /// Their memory cannot be shared.
    Memory(NotShared),
    /// Xen gives no event channel.
    EventChannel(Errno),
}

impl fmt::Display for NoRings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(error) => error.fmt(f),
            Self::EventChannel(error) => write!(f, "no event channel: {error}"),
        }
    }
}

impl core::error::Error for NoRings {}

impl From<NotShared> for NoRings {
    fn from(error: NotShared) -> Self {
        NoRings::Memory(error)
    }
}

/// The rings of a disk, published or connected to.
pub struct Connection<H: Hypervisor> {
    backend: DomId,
    /// Rings that the backend is not connected to yet.
    wires: Vec<Wire<H>>,
    /// The tasks that wait for the backend's notifications.
    tasks: Vec<Task>,
    ring_pages: usize,
}

impl<H: Hypervisor> Connection<H> {
    /// Makes a ring for each vCPU, or fewer if the backend takes fewer.
    pub async fn new(
        disk: &Arc<Disk<H>>,
        vcpus: &[VcpuSpawner<H>],
        (pool, grants): (&PagePool, &GrantTable<H>),
        (backend, offer): (DomId, Offer),
        hypervisor: &H,
    ) -> Result<Self, NoRings> {
        let rings = offer.queues.min(vcpus.len());
        let most = (RING_PAGES / rings).clamp(1, MAX_PAGES);
        let ring_pages = (1 << offer.ring_page_order).min(1 << most.ilog2());
        let mut connection = Connection {
            backend,
            wires: Vec::new(),
            tasks: Vec::new(),
            ring_pages,
        };
        let rules = Rules {
            flush: FlushBy::Nothing,
            indirect_segments: 0,
        };
        for (number, vcpu) in vcpus.iter().take(rings).enumerate() {
            let mut memory = SharedMemory::new(pool, grants, ring_pages)?;
            memory.grant(hypervisor, backend)?;
            let listening = listen(disk, number, vcpu, backend).await;
            let (port, task) = listening.map_err(NoRings::EventChannel)?;
            connection.tasks.push(task);
            let wire = Wire::new(memory, hypervisor.clone(), port, rules)?;
            connection.wires.push(wire);
        }
        Ok(connection)
    }

    /// Returns the nodes that tell the backend of the rings.
    pub fn nodes(&self) -> Vec<(String, String)> {
        let mut nodes: Vec<(String, String)> = [
            ("protocol", Abi::NATIVE.name().to_string()),
            ("feature-persistent", "1".to_string()),
        ]
        .map(|(name, value)| (name.to_string(), value))
        .into();
        if self.ring_pages > 1 {
            let order = self.ring_pages.ilog2().to_string();
            nodes.push(("ring-page-order".to_string(), order));
        }
        if self.wires.len() > 1 {
            let count = self.wires.len().to_string();
            nodes.push(("multi-queue-num-queues".to_string(), count));
        }
        for (number, wire) in self.wires.iter().enumerate() {
            let prefix = match self.wires.len() {
                1 => String::new(),
                _ => format!("queue-{number}/"),
            };
            nodes.push((format!("{prefix}event-channel"), wire.port().to_string()));
            for (page, gref) in wire.grefs().iter().enumerate() {
                let name = match self.ring_pages {
                    1 => format!("{prefix}ring-ref"),
                    _ => format!("{prefix}ring-ref{page}"),
                };
                nodes.push((name, gref.to_string()));
            }
        }
        nodes
    }

    /// Returns the number of rings.
    pub fn rings(&self) -> usize {
        self.tasks.len()
    }

    /// Returns the number of pages of each ring.
    pub fn ring_pages(&self) -> usize {
        self.ring_pages
    }

    /// Uses the rings, which the backend has connected to: sends the requests that wait.
    pub fn connect(
        &mut self,
        disk: &Disk<H>,
        hypervisor: &H,
        properties: &Properties,
    ) -> Result<(), NotShared> {
        disk.use_rings(self.rings())?;
        for link in disk.links().iter().take(self.rings()) {
            link.lock().grant(hypervisor, self.backend)?;
        }
        disk.connected(self.backend, properties.clone());
        for (link, mut wire) in disk.links().iter().zip(self.wires.drain(..)) {
            wire.set_rules(Rules {
                flush: properties.flush,
                indirect_segments: properties.indirect_segments,
            });
            link.lock().connect(wire);
        }
        Ok(())
    }

    fn stop(&mut self) {
        self.tasks.drain(..).for_each(|task| task.stop());
    }

    /// Stops using the rings. Returns the memory that the backend may still use.
    pub fn disconnect(mut self, disk: &Disk<H>) -> Leftover<H> {
        disk.disconnected();
        self.stop();
        let used = disk
            .links()
            .iter()
            .filter_map(|link| link.lock().disconnect());
        let wires: Vec<_> = used.chain(self.wires.drain(..)).collect();
        Leftover {
            rings: wires.into_iter().map(Wire::into_memory).collect(),
        }
    }
}

impl<H: Hypervisor> Drop for Connection<H> {
    fn drop(&mut self) {
        // A connection that was not finished has tasks too.
        self.stop();
    }
}

/// Memory that a backend was granted and may still use.
pub struct Leftover<H: Hypervisor> {
    rings: Vec<SharedMemory<H>>,
}

impl<H: Hypervisor> Leftover<H> {
    /// Takes back the memory that the backend no longer uses. Returns true if that is all of it.
    pub fn take_back(&mut self, disk: &Disk<H>) -> bool {
        self.rings.retain_mut(|ring| !ring.revoke());
        let mut queues = true;
        for link in disk.links() {
            queues &= link.lock().revoke();
        }
        if queues {
            disk.let_go();
        }
        queues && self.rings.is_empty()
    }
}

/// Takes an event channel that the backend may bind, and starts the task that waits for its notifications: both on
/// the vCPU that serves the ring.
async fn listen<H: Hypervisor>(
    disk: &Arc<Disk<H>>,
    number: usize,
    vcpu: &VcpuSpawner<H>,
    backend: DomId,
) -> Result<(Port, Task), Errno> {
    let taken = Handover::default();
    let (given, disk) = (taken.clone(), disk.clone());
    vcpu.send(move |handle| {
        let port = match handle.hypervisor().alloc_unbound(backend) {
            Ok(port) => port,
            Err(error) => return given.give(Err(error)),
        };
        let channel = handle.event_channel(port);
        let task = handle.spawn(async move {
            loop {
                channel.notified().await;
                answered(&disk, number);
            }
        });
        given.give(Ok((port, task)));
    });
    taken.taken().await
}

/// Takes the responses on a ring whose backend has notified us, and asks it to notify of the next one (`io/ring.h`,
/// `RING_FINAL_CHECK_FOR_RESPONSES`). That is not left to the queues that have completions: one that has nothing more
/// pending, or is closed, does not look at the ring again, and others wait for responses on it.
pub fn answered<H: Hypervisor>(disk: &Disk<H>, number: usize) {
    let mut link = disk.link(number).lock();
    let mut collect = || -> Result<(), Lie> {
        loop {
            link.collect()?;
            if !link.final_check()? {
                return Ok(());
            }
        }
    };
    if let Err(lie) = collect() {
        link.fail();
        disk.lied(lie);
    }
}
