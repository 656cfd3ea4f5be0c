//! A backend of a disk of the driver domain's own, whose every act is the test's.

use bulkhead_blkback_testkit::World;
use bulkhead_grant::{MappedPages, Region};
use bulkhead_ring::blkif::{Abi, Blkif, Operation, Request, Response};
use bulkhead_ring::{BackRing, SharedPages};
use bulkhead_xen::{GrantRef, Hypervisor, Port};
use bulkhead_xen_sim::xenstore::toolstack::{self, Disk, Vbd};
use bulkhead_xen_sim::{SimDomain, SimVcpu};
use bulkhead_xenbus::XenbusState;
use std::time::Duration;

/// The time for a request to the backend and its response.
pub const THERE_AND_BACK: Duration = Duration::from_millis(5);

/// The nodes that a backend publishes before and after it is connected.
pub const OFFER: [(&str, &str); 2] = [
    ("max-ring-page-order", "2"),
    ("multi-queue-max-queues", "1"),
];
pub const DISK: [(&str, &str); 4] = [
    ("sectors", "256"),
    ("sector-size", "512"),
    ("feature-flush-cache", "1"),
    ("info", "0"),
];

/// Returns the first page of a request to read or write.
pub fn page_of(request: &Request) -> GrantRef {
    match request.operation {
        Operation::Transfer(transfer) => transfer.segments[0].gref(),
        _ => panic!("{request:?}"),
    }
}

/// A backend whose every act is the test's.
pub struct ScriptedBackend<'w> {
    world: &'w World,
    pub domain: SimDomain,
    pub vbd: Vbd,
    pub region: Region<SimVcpu>,
    pub ring: Option<(BackRing<SharedPages, Blkif>, MappedPages<SimVcpu>, Port)>,
}

impl<'w> ScriptedBackend<'w> {
    /// Offers a disk, connects to the rings that are published, and publishes these nodes of the disk.
    pub fn new(world: &'w World, disk: &[(&str, &str)]) -> ScriptedBackend<'w> {
        ScriptedBackend::offering(world, &OFFER).serving(disk)
    }

    /// Does the same with another disk, in the same domain.
    pub fn beside(&self, name: &str, disk: &[(&str, &str)]) -> ScriptedBackend<'w> {
        let place = (self.domain.clone(), self.region.clone());
        ScriptedBackend::offering_in(self.world, place, name, &OFFER).serving(disk)
    }

    fn serving(mut self, disk: &[(&str, &str)]) -> ScriptedBackend<'w> {
        assert_eq!(self.frontend(), Some(XenbusState::Initialised));
        assert_eq!(self.published("ring-page-order").as_deref(), Some("2"));
        self.connect();
        self.say(disk, XenbusState::Connected);
        self
    }

    /// Offers a disk.
    pub fn offering(world: &'w World, offer: &[(&str, &str)]) -> ScriptedBackend<'w> {
        let domain = world.sim.add_domain();
        let region = Region::new(domain.hypervisor()).expect("nobody else has it");
        ScriptedBackend::offering_in(world, (domain, region), "xvda", offer)
    }

    fn offering_in(
        world: &'w World,
        (domain, region): (SimDomain, Region<SimVcpu>),
        name: &str,
        offer: &[(&str, &str)],
    ) -> ScriptedBackend<'w> {
        let vbd = Vbd::new(domain.id(), world.storage.id(), name);
        toolstack::attach(&mut world.sim.store(), &vbd, &Disk::new("anything"));
        let backend = ScriptedBackend {
            world,
            domain,
            region,
            vbd,
            ring: None,
        };
        backend.say(offer, XenbusState::InitWait);
        backend
    }

    /// Returns a node that the frontend has written.
    pub fn published(&self, name: &str) -> Option<String> {
        let path = self.vbd.frontend_path();
        self.world.read(&format!("{path}/{name}"))
    }

    /// Connects to the first ring that is published.
    pub fn connect(&mut self) {
        let number = |name: &str| -> u32 {
            let value = self.published(name);
            value.expect(name).parse().expect("a number")
        };
        let first = match self.published("multi-queue-num-queues") {
            Some(_) => "queue-0/",
            None => "",
        };
        let refs: Vec<_> = match self.published("ring-page-order") {
            Some(_) => (0..1 << number("ring-page-order"))
                .map(|page| format!("{first}ring-ref{page}"))
                .collect(),
            None => vec![format!("{first}ring-ref")],
        };
        let grefs: Vec<_> = refs.iter().map(|name| GrantRef(number(name))).collect();
        let hypervisor = self.domain.hypervisor();
        let port = Port(number(&format!("{first}event-channel")));
        let port = hypervisor.bind_interdomain(self.world.storage.id(), port);
        let pages = self.region.map_pages(self.world.storage.id(), &grefs);
        let pages = pages.expect("room").expect("granted");
        // SAFETY: the pages are kept as long as the ring.
        let shared = unsafe { SharedPages::new(pages.base(), grefs.len()) }.expect("a ring");
        let ring = BackRing::new(shared, Blkif::new(Abi::X86_64)).expect("large enough");
        self.ring = Some((ring, pages, port.expect("it is unbound")));
    }

    /// Closes, and offers a disk again.
    pub fn offer_again(&mut self, offer: &[(&str, &str)]) {
        self.ring = None;
        self.say(&[], XenbusState::Closed);
        self.world.wait(Duration::from_millis(200));
        self.say(offer, XenbusState::InitWait);
    }

    pub fn say(&self, nodes: &[(&str, &str)], state: XenbusState) {
        let path = self.vbd.backend_path();
        for (name, value) in nodes {
            self.world
                .sim
                .store()
                .write(&format!("{path}/{name}"), value);
        }
        self.world
            .write(&format!("{path}/state"), &state.to_string());
    }

    pub fn frontend(&self) -> Option<XenbusState> {
        let state = self.vbd.frontend_state(&mut self.world.sim.store());
        state.map(|state| XenbusState::parse(Some(&state)))
    }

    /// Takes the next request.
    pub fn take(&mut self) -> Request {
        self.take_next().expect("a request")
    }

    /// Takes the next request, if there is one.
    pub fn take_next(&mut self) -> Option<Request> {
        let (ring, ..) = self.ring.as_mut().expect("connected");
        let request = ring.take().expect("a ring")?;
        Some(request.expect("well-formed"))
    }

    pub fn answer(&mut self, response: &Response) {
        let (ring, _, port) = self.ring.as_mut().expect("connected");
        ring.respond(response).expect("it was asked");
        let _ = ring.publish();
        self.domain.hypervisor().notify(*port).expect("bound");
        self.world.wait(THERE_AND_BACK);
    }

    /// Answers, and notifies only if the frontend has asked for that, as `io/ring.h` has it.
    pub fn answer_as_asked(&mut self, response: &Response) {
        let (ring, _, port) = self.ring.as_mut().expect("connected");
        ring.respond(response).expect("it was asked");
        if ring.publish() {
            self.domain.hypervisor().notify(*port).expect("bound");
        }
        self.world.wait(THERE_AND_BACK);
    }

    /// Writes the response producer index.
    pub fn produce(&mut self, index: u32) {
        let (_, pages, port) = self.ring.as_mut().expect("connected");
        // SAFETY: within the ring's first page (`io/ring.h`), which is mapped.
        unsafe { pages.base().add(8).cast::<u32>().write_volatile(index) };
        self.domain.hypervisor().notify(*port).expect("bound");
        self.world.wait(THERE_AND_BACK);
    }
}
