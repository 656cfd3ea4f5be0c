//! The backend that does as the script says.

use bulkhead_blkback_testkit::{Script, World};
use bulkhead_grant::{MappedPages, Region};
use bulkhead_ring::blkif::{
    Abi, Blkif, INDIRECT_SEGMENT_SIZE, Opcode, Operation, Request, RequestId, Response, Segment,
    Status, TransferKind,
};
use bulkhead_ring::{BackRing, Index, RingMemory, SharedPages};
use bulkhead_xen::{GrantRef, Hypervisor, PAGE_SIZE, Port};
use bulkhead_xen_sim::xenstore::toolstack::{self, Disk, Vbd};
use bulkhead_xen_sim::{SimDomain, SimVcpu};
use std::time::Duration;

/// The nodes that a well-behaved backend writes before the frontend publishes its rings (`OFFER`), and before it is
/// connected (`DISK`).
const OFFER: [(&str, &str); 2] = [
    ("max-ring-page-order", "2"),
    ("multi-queue-max-queues", "2"),
];
const DISK: [(&str, &str); 6] = [
    ("sectors", "256"),
    ("sector-size", "512"),
    ("feature-flush-cache", "1"),
    ("feature-max-indirect-segments", "64"),
    ("feature-discard", "1"),
    ("info", "0"),
];

/// The most time in which the driver domain publishes its rings to a backend in `InitWait`.
const PUBLISHES: Duration = Duration::from_secs(5);

/// Nodes of the backend's directory that the script may write or remove, and values for them.
const NODES: [&str; 16] = [
    "max-ring-page-order",
    "max-ring-pages",
    "multi-queue-max-queues",
    "sectors",
    "sector-size",
    "physical-sector-size",
    "info",
    "feature-max-indirect-segments",
    "feature-flush-cache",
    "feature-barrier",
    "feature-discard",
    "discard-granularity",
    "discard-alignment",
    "discard-secure",
    "mode",
    "online",
];
const VALUES: [&str; 12] = [
    "0", "1", "2", "4", "16", "255", "256", "512", "4096", "-1", "", "rubbish",
];

const STATUSES: [Status; 4] = [
    Status::Okay,
    Status::Error,
    Status::NotSupported,
    Status::Other(7),
];
const INDICES: [Index; 4] = [
    Index::RequestProducer,
    Index::RequestEvent,
    Index::ResponseProducer,
    Index::ResponseEvent,
];

/// The byte that a well-behaved backend returns for all reads.
pub const DATA: u8 = 0x5a;

/// How a backend has behaved since it connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Behaviour {
    /// As a well-behaved backend.
    Good,
    /// It has given wrong responses, or responses to reads without data.
    WrongAnswers,
    /// It may have done anything: nothing is known of its rings.
    Anything,
}

/// A ring that the backend has mapped, with the event channel.
struct Ring {
    // Dropped before the memory that it is in.
    back: BackRing<SharedPages, Blkif>,
    pages: MappedPages<SimVcpu>,
    port: Port,
    /// The requests without a response.
    taken: Vec<Request>,
    /// True once a request was answered and may be answered again, when another one may have its identifier.
    answered_twice: bool,
}

/// The backend of `xvda` of the driver domain.
pub struct HostileBackend<'w> {
    world: &'w World,
    domain: SimDomain,
    region: Region<SimVcpu>,
    pub vbd: Vbd,
    pub behaviour: Behaviour,
    rings: Vec<Ring>,
}

impl<'w> HostileBackend<'w> {
    /// Makes its domain, and has the toolstack attach the disk.
    pub fn new(world: &'w World) -> HostileBackend<'w> {
        let domain = world.sim.add_domain();
        let vbd = Vbd::new(domain.id(), world.storage.id(), "xvda");
        toolstack::attach(&mut world.sim.store(), &vbd, &Disk::new("anything"));
        world.run();
        HostileBackend {
            region: Region::new(domain.hypervisor()).expect("nobody else has it"),
            world,
            domain,
            vbd,
            rings: Vec::new(),
            behaviour: Behaviour::Anything,
        }
    }

    /// Connects as a well-behaved backend does, unless the driver domain publishes no rings: it does not use a disk
    /// again that it has given up.
    pub fn behave(&mut self) {
        for (name, value) in OFFER {
            self.write(name, value);
        }
        self.write("state", "2");
        let deadline = self.world.sim.now() + PUBLISHES;
        while self.frontend() != "3" {
            if self.world.sim.now() >= deadline {
                return;
            }
            self.world.wait(Duration::from_millis(50));
        }
        self.connect();
        for (name, value) in DISK {
            self.write(name, value);
        }
        self.write("state", "4");
        self.world.run();
        self.behaviour = Behaviour::Good;
    }

    /// Writes a node of its directory, if it has one still.
    fn write(&self, name: &str, value: &str) {
        let path = self.vbd.backend_path();
        let mut store = self.world.sim.store();
        if store.exists(&path) {
            store.write(&format!("{path}/{name}"), value);
        }
    }

    /// Writes or removes a node of the backend's directory, or removes the directory.
    pub fn say(&mut self, script: &mut Script<'_>) {
        self.behaviour = Behaviour::Anything;
        let name = script.pick(&NODES);
        match script.below(16) {
            0..8 => self.write("state", &script.below(9).to_string()),
            8 => self.write("state", "rubbish"),
            9..13 => self.write(name, script.pick(&VALUES)),
            13 => self.write(name, &script.number().to_string()),
            14 => self
                .world
                .sim
                .store()
                .remove(&format!("{}/{name}", self.vbd.backend_path())),
            _ => self.world.sim.store().remove(&self.vbd.backend_path()),
        }
    }

    /// Releases the rings that the backend has, and connects to those that the driver domain has published.
    pub fn connect(&mut self) {
        self.let_go();
        let number = |name: &str| -> Option<u32> {
            let path = format!("{}/{name}", self.vbd.frontend_path());
            self.world.read(&path)?.parse().ok()
        };
        let pages = 1 << number("ring-page-order").unwrap_or(0);
        let queues = number("multi-queue-num-queues").unwrap_or(1);
        for queue in 0..queues {
            let prefix = match queues {
                1 => String::new(),
                _ => format!("queue-{queue}/"),
            };
            let gref = |page: u32| match pages {
                1 => number(&format!("{prefix}ring-ref")),
                _ => number(&format!("{prefix}ring-ref{page}")),
            };
            let grefs: Option<Vec<u32>> = (0..pages).map(gref).collect();
            let port = number(&format!("{prefix}event-channel"));
            if let (Some(grefs), Some(port)) = (grefs, port)
                && let Some(ring) = self.bind(&grefs, port)
            {
                self.rings.push(ring);
            }
        }
    }

    fn bind(&self, grefs: &[u32], port: u32) -> Option<Ring> {
        let grefs: Vec<GrantRef> = grefs.iter().copied().map(GrantRef).collect();
        let frontend = self.world.storage.id();
        let pages = self.region.map_pages(frontend, &grefs).ok()?.ok()?;
        let port = self
            .domain
            .hypervisor()
            .bind_interdomain(frontend, Port(port));
        // SAFETY: the pages are kept as long as the ring.
        let memory = unsafe { SharedPages::new(pages.base(), pages.pages()) }.expect("whole pages");
        Some(Ring {
            back: BackRing::new(memory, Blkif::new(Abi::X86_64)).expect("a page holds a ring"),
            pages,
            port: port.ok()?,
            taken: Vec::new(),
            answered_twice: false,
        })
    }

    /// Unmaps its rings and closes its ports.
    pub fn let_go(&mut self) {
        self.behaviour = Behaviour::Anything;
        for ring in self.rings.drain(..) {
            let closed = self.domain.hypervisor().close_port(ring.port);
            closed.expect("the port is open");
        }
    }

    /// Takes all requests, and answers the first `most` of each ring as a well-behaved backend does. `look` is called
    /// with every page that the requests grant to this domain. Returns whether any request was answered.
    pub fn serve(&mut self, most: usize, look: impl Fn(&[u8])) -> bool {
        let (frontend, region) = (self.world.storage.id(), &self.region);
        let map = |gref| region.map_pages(frontend, &[gref]).ok()?.ok();
        let mut any = false;
        for ring in &mut self.rings {
            while let Ok(Some(Ok(request))) = ring.back.take() {
                exchange(&request, map, &look);
                ring.taken.push(request);
            }
            for request in ring.taken.drain(..most.min(ring.taken.len())) {
                any = true;
                // This fails if `answer` or `damage` has used up the responses.
                let _ = ring.back.respond(&request.response(Status::Okay));
            }
            let _ = ring.back.publish();
            // Asks to be notified of the next request.
            let _ = ring.back.final_check();
        }
        self.notify();
        any
    }

    /// Returns whether a request may be in flight.
    pub fn may_have_requests(&self) -> bool {
        let has = |ring: &Ring| !ring.taken.is_empty() || ring.back.unconsumed() != Ok(0);
        self.behaviour > Behaviour::Good || self.rings.iter().any(has)
    }

    /// Gives any response, to one request or to none. Checks that the driver domain gives the disk up if no request can
    /// have that response.
    pub fn answer(&mut self, script: &mut Script<'_>) {
        let Some(count) = self.rings.len().checked_sub(1) else {
            return;
        };
        self.behaviour = self.behaviour.max(Behaviour::WrongAnswers);
        let is_connected = self.behaviour < Behaviour::Anything && self.frontend() == "4";
        let ring = &mut self.rings[script.below(count + 1)];
        let mut another_operation = false;
        let mut response = Response {
            id: RequestId(script.number()),
            operation: Opcode(script.byte() % 8),
            status: script.pick(&STATUSES),
        };
        if !ring.taken.is_empty() {
            let request = ring.taken[script.below(ring.taken.len())];
            let wrong = script.byte();
            if wrong & 1 == 0 {
                response.id = request.id;
            }
            if wrong & 2 == 0 {
                response.operation = request.opcode();
            }
            if wrong & 4 == 0 {
                // Otherwise the request stays here, and may be answered again.
                ring.taken.retain(|one| one.id != request.id);
                another_operation = response.id == request.id
                    && response.operation != request.opcode()
                    && !ring.answered_twice;
            } else {
                ring.answered_twice = true;
            }
        }
        let violates = response.id.0 > u64::from(u16::MAX)
            || matches!(response.status, Status::Other(_))
            || another_operation;
        let given = ring.back.respond(&response).is_ok();
        let _ = ring.back.publish();
        self.notify();
        if given && violates && is_connected {
            self.world.wait(Duration::from_millis(5));
            assert_eq!(self.frontend(), "6", "{response:?} is believed");
        }
    }

    /// Returns the state that the driver domain, as the frontend, has published; empty if there is none.
    fn frontend(&self) -> String {
        let state = self.vbd.frontend_state(&mut self.world.sim.store());
        state.unwrap_or_default()
    }

    /// Writes any value to an index or to a byte of a ring.
    pub fn damage(&mut self, script: &mut Script<'_>) {
        let Some(count) = self.rings.len().checked_sub(1) else {
            return;
        };
        self.behaviour = Behaviour::Anything;
        let pages = &self.rings[script.below(count + 1)].pages;
        // SAFETY: the pages stay mapped meanwhile.
        let memory = unsafe { SharedPages::new(pages.base(), pages.pages()) }.expect("whole pages");
        if script.below(2) == 0 {
            memory.store(script.pick(&INDICES), script.number() as u32);
        } else {
            let offset = script.number() as usize % (pages.pages() * PAGE_SIZE);
            // SAFETY: within the ring's pages, to which there is no reference.
            unsafe { pages.base().add(offset).write_volatile(script.byte()) };
        }
        self.notify();
    }

    /// Notifies the driver domain of each ring, and runs the machine.
    pub fn notify(&self) {
        for ring in &self.rings {
            // The other end may be closed.
            let _ = self.domain.hypervisor().notify(ring.port);
        }
        self.world.run();
    }

    /// Destroys the backend's domain, and has the toolstack remove its nodes. Call it once.
    pub fn destroy(&mut self) {
        self.let_go();
        let (sim, id) = (&self.world.sim, self.domain.id());
        sim.destroy_domain(id);
        toolstack::remove_domain(&mut sim.store(), id);
        toolstack::finish_detach(&mut sim.store(), &self.vbd);
        self.world.run();
    }
}

/// Calls `look` with each page of a request, and fills the segments of a read with [`DATA`].
fn exchange(
    request: &Request,
    map: impl Fn(GrantRef) -> Option<MappedPages<SimVcpu>>,
    look: &impl Fn(&[u8]),
) {
    let (kind, segments): (_, Vec<Segment>) = match &request.operation {
        Operation::Transfer(transfer) => (transfer.kind, transfer.segments.to_vec()),
        Operation::Indirect(indirect) => {
            let pages = indirect.pages().iter().filter_map(|&gref| map(gref));
            let bytes: Vec<u8> = pages.flat_map(|page| bytes_of(&page)).collect();
            let parts = bytes.chunks_exact(INDIRECT_SEGMENT_SIZE);
            let parts = parts.take(indirect.segments());
            let parsed = parts.map(|part| Segment::parse(part.try_into().expect("8 bytes")));
            // `damage` may have changed the request, so that the page holds anything.
            (indirect.kind, parsed.filter_map(Result::ok).collect())
        }
        _ => return,
    };
    for segment in segments {
        let Some(page) = map(segment.gref()) else {
            continue;
        };
        look(&bytes_of(&page));
        if kind == TransferKind::Read {
            // SAFETY: within the page, which the driver domain has granted and which nothing refers into.
            unsafe {
                page.base()
                    .add(segment.offset())
                    .write_bytes(DATA, segment.len())
            };
        }
    }
}

fn bytes_of(page: &MappedPages<SimVcpu>) -> [u8; PAGE_SIZE] {
    // SAFETY: a whole page, which nothing refers into; no other thread runs.
    unsafe { page.base().cast::<[u8; PAGE_SIZE]>().read() }
}
