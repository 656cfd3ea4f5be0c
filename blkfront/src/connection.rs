//! The rings to a backend, each with a task on the vCPU that serves it.

use crate::backend_nodes::{FlushBy, Offer, Properties};
use crate::device::Disk;
use crate::wire::{BlkifViolation, Rules, Wire};
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_executor::{EventChannel, Handover, Task, VcpuSpawner};
use bulkhead_grant::{GrantTable, NotShared, PagePool, SharedMemory};
use bulkhead_ring::MAX_PAGES;
use bulkhead_ring::blkif::Abi;
use bulkhead_xen::{DomId, Errno, GrantRef, Hypervisor, KeptPorts, Port};
use core::fmt;

/// The largest number of pages that the rings of a disk have together.
const RING_PAGES: usize = 64;

/// The nodes without which there is one ring of one page (`io/blkif.h`).
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

/// The form of requests until the disk's properties are known; none is sent before.
const NO_RULES: Rules = Rules {
    flush: FlushBy::Nothing,
    indirect_segments: 0,
};

/// The rings of a disk, published or connected to.
pub struct BackendConnection<H: Hypervisor> {
    backend: DomId,
    /// Rings that the backend is not connected to yet.
    wires: Vec<Wire<H>>,
    /// Rings of a boot before this one on which requests may be outstanding, in their order.
    left: VecDeque<(SharedMemory<H>, Port)>,
    /// The tasks that wait for the backend's notifications.
    tasks: Vec<Task>,
    ring_pages: usize,
}

impl<H: Hypervisor> BackendConnection<H> {
    /// Makes a ring for each vCPU, or fewer if the backend takes fewer.
    pub async fn new(
        disk: &Arc<Disk<H>>,
        vcpus: &[VcpuSpawner<H>],
        (pool, grants, kept): (&PagePool, &GrantTable<H>, KeptPorts),
        (backend, offer): (DomId, Offer),
        hypervisor: &H,
    ) -> Result<Self, NoRings> {
        let rings = offer.queues.min(vcpus.len());
        let most = (RING_PAGES / rings).clamp(1, MAX_PAGES);
        let ring_pages = (1 << offer.ring_page_order).min(1 << most.ilog2());
        let mut connection = Self::with(backend, ring_pages);
        for (number, vcpu) in vcpus.iter().take(rings).enumerate() {
            let mut memory = SharedMemory::new(pool, grants, ring_pages)?;
            memory.grant(hypervisor, backend)?;
            let listening = listen(disk, number, vcpu, Channel::New(backend), kept).await;
            let (port, task) = listening.map_err(NoRings::EventChannel)?;
            connection.tasks.push(task);
            let wire = Wire::new(memory, hypervisor.clone(), port, NO_RULES)?;
            connection.wires.push(wire);
        }
        Ok(connection)
    }

    fn with(backend: DomId, ring_pages: usize) -> Self {
        BackendConnection {
            backend,
            wires: Vec::new(),
            left: VecDeque::new(),
            tasks: Vec::new(),
            ring_pages,
        }
    }

    /// Takes over rings that a boot before this one has made, each with the event channel that the crash left open.
    /// Rings that cannot be taken over are left out, so that [`is_drained`](Self::is_drained) returns false.
    pub async fn left(
        disk: &Arc<Disk<H>>,
        vcpus: &[VcpuSpawner<H>],
        (pool, grants, kept): (&PagePool, &GrantTable<H>, KeptPorts),
        backend: DomId,
        rings: &[LeftRing],
    ) -> Self {
        let ring_pages = rings.first().map_or(0, |ring| ring.grefs.len());
        let mut connection = Self::with(backend, ring_pages);
        for (number, (ring, vcpu)) in rings.iter().zip(vcpus).enumerate() {
            let channel = Channel::Left(ring.port);
            if let Ok((port, task)) = listen(disk, number, vcpu, channel, kept).await {
                connection.tasks.push(task);
                let memory = SharedMemory::left(pool, grants, backend, &ring.grefs);
                connection.left.extend(memory.map(|memory| (memory, port)));
            }
        }
        connection
    }

    /// Notifies the backend on each ring of the boot before: the crash may have come before a notification.
    pub fn notify_of_left(&self, hypervisor: &H) {
        for (_, port) in &self.left {
            // An error means that the backend's domain is gone: then it answers nothing, and the caller's time runs
            // out.
            let _ = hypervisor.notify(*port);
        }
    }

    /// Takes those rings of the boot before into use on which the backend has answered everything. Returns whether
    /// these are all `rings` rings.
    pub fn is_drained(&mut self, hypervisor: &H, rings: usize) -> bool {
        while let Some((memory, port)) = self.left.pop_front() {
            match Wire::left(memory, hypervisor.clone(), port, NO_RULES) {
                Ok(wire) => self.wires.push(wire),
                Err(memory) => {
                    self.left.push_front((memory, port));
                    return false;
                }
            }
        }
        self.wires.len() == rings
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

    /// Uses the rings, which the backend has connected to: grants it the queues' memory, and sends the requests that
    /// wait.
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
        let rings = used.chain(self.wires.drain(..)).map(Wire::into_memory);
        let left = self.left.drain(..).map(|(memory, _)| memory);
        Leftover {
            rings: rings.chain(left).collect(),
        }
    }
}

impl<H: Hypervisor> Drop for BackendConnection<H> {
    fn drop(&mut self) {
        // A connection that was not completed has tasks, too.
        self.stop();
    }
}

/// Memory that a backend was granted and may still use.
pub struct Leftover<H: Hypervisor> {
    rings: Vec<SharedMemory<H>>,
}

impl<H: Hypervisor> Leftover<H> {
    /// Takes back the memory that the backend no longer uses. Returns true if that is all of it. As long as it has a ring, it
    /// may execute a request that it finds there: the numbers of the queues' grants must not stand for other pages by then.
    pub fn take_back(&mut self, disk: &Disk<H>) -> bool {
        self.rings.retain_mut(|ring| !ring.revoke());
        if !self.rings.is_empty() {
            return false;
        }
        let mut queues = true;
        for link in disk.links() {
            queues &= link.lock().revoke();
        }
        if queues {
            disk.let_go();
        }
        queues
    }

    /// Leaves what the backend still uses with a disk that nobody follows any more.
    pub fn leave_with(mut self, disk: &Disk<H>) {
        if !self.take_back(disk) {
            disk.keep_rings(self.rings);
        }
    }
}

/// A ring that a boot before this one has made.
pub struct LeftRing {
    /// The event channel.
    pub port: Port,
    /// The grants of its pages.
    pub grefs: Vec<GrantRef>,
}

/// The event channel of a ring.
enum Channel {
    /// One that the backend in that domain may bind.
    New(DomId),
    /// One that a boot before this one has left open.
    Left(Port),
}

/// An event channel that a crash leaves open.
struct Listening<H: Hypervisor> {
    // Dropped before the channel, which closes the port.
    _note: PortNote,
    channel: EventChannel<H>,
}

/// The note that a crash is to leave a port open.
struct PortNote(KeptPorts, Port);

impl Drop for PortNote {
    fn drop(&mut self) {
        self.0.remove(self.1);
    }
}

/// Allocates an event channel, or takes over one that a crash left open, and starts the task that waits for the
/// backend's notifications, both on the vCPU that serves the ring.
async fn listen<H: Hypervisor>(
    disk: &Arc<Disk<H>>,
    number: usize,
    vcpu: &VcpuSpawner<H>,
    channel: Channel,
    kept: KeptPorts,
) -> Result<(Port, Task), Errno> {
    let taken = Handover::default();
    let (given, disk) = (taken.clone(), disk.clone());
    vcpu.send(move |handle| {
        let hypervisor = handle.hypervisor();
        let port = match channel {
            Channel::New(backend) => hypervisor.alloc_unbound(backend),
            Channel::Left(port) => hypervisor.take_up_or_close_port(port).map(|()| port),
        };
        let port = match port {
            Ok(port) => port,
            Err(error) => return given.give(Err(error)),
        };
        kept.add(port);
        let listening = Listening {
            _note: PortNote(kept, port),
            channel: handle.event_channel(port),
        };
        let task = handle.spawn(async move {
            // Moves all of it into the task, so that the note lasts as long as the task.
            let listening = listening;
            loop {
                listening.channel.notified().await;
                answered(&disk, number);
            }
        });
        given.give(Ok((port, task)));
    });
    taken.taken().await
}

/// Takes the responses on a ring whose backend has notified us, and asks it to notify of the next one (`io/ring.h`,
/// `RING_FINAL_CHECK_FOR_RESPONSES`). This cannot be left to the queues that have completions: a queue that has no more
/// requests in flight, or is closed, does not look at the ring again, while others wait for responses on it.
pub fn answered<H: Hypervisor>(disk: &Disk<H>, number: usize) {
    let mut link = disk.link(number).lock();
    let mut collect = || -> Result<(), BlkifViolation> {
        loop {
            link.collect()?;
            if !link.final_check()? {
                return Ok(());
            }
        }
    };
    if let Err(violation) = collect() {
        link.fail();
        disk.note_violation(violation);
    }
}
