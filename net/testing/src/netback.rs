//! A network backend.

mod checksums;
mod connection;
mod flows;
mod packets;
mod violations;

pub use violations::Violation;

use crate::peer::Frame;
use bulkhead_ring::netif::{NetifRx, NetifTx, RxRequest};
use bulkhead_ring::{BackRing, SharedPages};
use bulkhead_xen::abi::grant_table::{
    CopyEnd, CopyFlags, GrantCopy, MapFlags, MapGrantRef, UnmapGrantRef,
};
use bulkhead_xen::{
    DomId, ForeignRegion, GrantHandle, GrantRef, GrantStatus, Hypervisor, PAGE_SIZE, Port,
};
use bulkhead_xen_sim::xenstore::{Server, domain_path, owned_by};
use bulkhead_xen_sim::{Sim, SimDomain, SimVcpu};
use std::collections::{HashMap, VecDeque};
use std::ptr::NonNull;

/// The backend's offer.
#[derive(Clone, Copy, Debug)]
pub struct Offered {
    /// True if packets may have several parts.
    pub parts: bool,
    /// True if it offers checksums over IPv6, and segmentation.
    pub offload: bool,
    /// What it says of the most queues that it takes, if anything.
    pub queues: Option<&'static str>,
}

/// The most queues for which it has room.
const MOST_QUEUES: usize = 8;

/// The rings of a queue to which it is connected.
struct Rings {
    tx: BackRing<SharedPages, NetifTx>,
    rx: BackRing<SharedPages, NetifRx>,
    port: Port,
    handles: [GrantHandle; 2],
    /// The pages into which it may put packets.
    pages: VecDeque<RxRequest>,
}

/// A backend in a domain of its own.
pub struct NetBack {
    hypervisor: SimVcpu,
    region: ForeignRegion,
    page: NonNull<u8>,
    frontend: DomId,
    path: String,
    front_path: String,
    offered: Offered,
    queues: Vec<Rings>,
    /// The queue by which each connection of the frontend's sends, by its port.
    flows: HashMap<u16, usize>,
    /// True if it puts each packet into another queue than the last one, of whatever connection it is.
    pub scatters: bool,
    /// The queue in which it breaks the protocol: the last one, if there are fewer.
    pub violates_in: usize,
    /// The most queues that it takes, whatever it says.
    pub takes_queues: usize,
    scattered: usize,
    /// True if it has written to these rings what it cannot go on from. The next rings are others.
    spoiled: bool,
    /// Packets for the frontend.
    pub to_frontend: VecDeque<Frame>,
    /// Packets of the frontend's.
    pub from_frontend: VecDeque<Frame>,
    /// The number of packets that the frontend has sent to be cut.
    pub segmented: usize,
    /// The number of notifications to the frontend.
    pub notifications: usize,
    /// True if it looks at nothing.
    pub stalled: bool,
    /// The most bytes that it puts into a page, and the offset of the first one there.
    pub part: (usize, u16),
    /// True if it maps the next page for a packet, and keeps it mapped.
    pub keeps_page: bool,
    kept: Vec<GrantHandle>,
    /// True if it does nothing at all, as one whose domain hangs.
    pub hangs: bool,
    /// True if it takes no packets of the frontend's, as one whose rate is limited does for a while.
    pub takes_nothing: bool,
}

impl NetBack {
    /// Attaches an interface to a domain, as libxl does.
    pub fn new(sim: &Sim, domain: &SimDomain, frontend: DomId, offered: Offered) -> NetBack {
        let hypervisor = domain.hypervisor();
        let region = hypervisor.foreign_region().expect("not taken yet");
        let back = NetBack {
            region,
            page: domain.alloc_page(),
            hypervisor,
            frontend,
            path: format!("{}/backend/vif/{frontend}/0", domain_path(domain.id())),
            front_path: format!("{}/device/vif/0", domain_path(frontend)),
            offered,
            queues: Vec::new(),
            flows: HashMap::new(),
            scatters: false,
            violates_in: 0,
            takes_queues: MOST_QUEUES,
            scattered: 0,
            spoiled: false,
            to_frontend: VecDeque::new(),
            from_frontend: VecDeque::new(),
            segmented: 0,
            notifications: 0,
            stalled: false,
            part: (PAGE_SIZE, 0),
            keeps_page: false,
            kept: Vec::new(),
            hangs: false,
            takes_nothing: false,
        };
        back.attach(&mut sim.store(), domain.id());
        back
    }

    /// Writes the nodes of a new interface.
    pub fn attach(&self, store: &mut Server, backend: DomId) {
        let (path, front) = (&self.path, &self.front_path);
        let frontend = self.frontend;
        store.transaction(|tx| {
            tx.mkdir(front)?;
            tx.set_permissions(front, &owned_by(frontend, &[backend]))?;
            for (name, value) in [
                ("backend", path.as_str()),
                ("backend-id", &backend.to_string()),
                ("handle", "0"),
                ("mac", "00:16:3e:00:00:07"),
                ("mtu", "1500"),
                ("state", "1"),
            ] {
                tx.write(&format!("{front}/{name}"), value)?;
                let permissions = owned_by(frontend, &[backend]);
                tx.set_permissions(&format!("{front}/{name}"), &permissions)?;
            }
            tx.mkdir(path)?;
            tx.set_permissions(path, &owned_by(backend, &[frontend]))?;
            for (name, value) in [
                ("frontend", front.as_str()),
                ("frontend-id", &frontend.to_string()),
                ("online", "1"),
                ("bridge", "storage"),
                ("mac", "00:16:3e:00:00:07"),
                ("state", "1"),
            ] {
                tx.write(&format!("{path}/{name}"), value)?;
            }
            Ok(())
        });
    }

    /// Returns the states of both ends.
    pub fn states(&self, sim: &Sim) -> (String, String) {
        let mut store = sim.store();
        let mut read = |path: &str| store.read(&format!("{path}/state")).unwrap_or_default();
        (read(&self.path), read(&self.front_path))
    }

    /// Sets the backend's state, as its driver does, or the toolstack.
    pub fn set_state(&self, sim: &Sim, state: &str) {
        sim.store().write(&format!("{}/state", self.path), state);
    }

    /// Asks for the end of the interface, as `xl network-detach` does.
    pub fn request_detach(&self, sim: &Sim) {
        sim.store().write(&format!("{}/online", self.path), "0");
        self.set_state(sim, "5");
    }

    /// Removes the directories, as libxl does in the end.
    pub fn finish_detach(&self, sim: &Sim) {
        let mut store = sim.store();
        store.remove(&self.front_path);
        store.remove(&self.path);
    }

    /// Returns a node that the frontend has written.
    pub fn frontend_node(&self, sim: &Sim, name: &str) -> Option<String> {
        sim.store().read(&format!("{}/{name}", self.front_path))
    }

    /// Does the work that is due. Returns whether there was any.
    pub fn step(&mut self, sim: &Sim) -> bool {
        if self.hangs {
            return false;
        }
        let (own, front) = self.states(sim);
        match (own.as_str(), front.as_str()) {
            ("1", _) => {
                let flag = |on: bool| if on { "1" } else { "0" };
                for (name, value) in [
                    ("feature-sg", flag(self.offered.parts)),
                    ("feature-gso-tcpv4", flag(self.offered.offload)),
                    ("feature-gso-tcpv6", flag(self.offered.offload)),
                    ("feature-ipv6-csum-offload", flag(self.offered.offload)),
                    ("feature-rx-copy", "1"),
                ] {
                    sim.store().write(&format!("{}/{name}", self.path), value);
                }
                if let Some(most) = self.offered.queues {
                    self.offer_queues(sim, most);
                }
                self.set_state(sim, "2");
            }
            ("2", "4") if self.queues.is_empty() => {
                let connected = self.connect(sim);
                // As Linux's does after an error.
                self.set_state(sim, if connected { "4" } else { "5" });
            }
            ("4" | "5" | "6", "5" | "6" | "") if !self.queues.is_empty() => {
                self.disconnect();
                self.set_state(sim, "6");
            }
            ("5", "6" | "") => self.set_state(sim, "6"),
            ("6", "1") => self.set_state(sim, "2"),
            _ => {
                if self.stalled || self.spoiled {
                    return false;
                }
                return self.serve();
            }
        }
        true
    }

    /// Returns the address at which the page of that number is kept mapped.
    fn place_of_kept(&self, number: usize) -> u64 {
        self.region.base.as_ptr() as u64 + ((2 * MOST_QUEUES + number) * PAGE_SIZE) as u64
    }

    /// Maps a page, and keeps it.
    fn keep(&mut self, gref: GrantRef) {
        let place = self.place_of_kept(self.kept.len());
        let mut batch = [MapGrantRef::new(
            place,
            MapFlags::HOST_MAP,
            gref,
            self.frontend,
        )];
        // SAFETY: a page of the region, where nothing is mapped.
        let mapped = unsafe { self.hypervisor.map_grants(&mut batch) };
        mapped.expect("the hypercall");
        assert_eq!(batch[0].status, GrantStatus::OKAY);
        self.kept.push(batch[0].handle);
    }

    /// Lets go of the last page that it kept. Returns whether there was one.
    pub fn let_go(&mut self) -> bool {
        let Some(handle) = self.kept.pop() else {
            return false;
        };
        let place = self.place_of_kept(self.kept.len());
        let mut batch = [UnmapGrantRef::new(place, handle)];
        // SAFETY: nothing refers to it.
        let unmapped = unsafe { self.hypervisor.unmap_grants(&mut batch) };
        unmapped.expect("the hypercall");
        true
    }

    /// Copies between the backend's own page and one of the frontend's.
    fn copy(&self, gref: GrantRef, offset: u16, len: usize, into_frontend: bool) {
        let status = self.try_copy(gref, offset, len, into_frontend);
        assert_eq!(status, GrantStatus::OKAY);
    }

    fn try_copy(
        &self,
        gref: GrantRef,
        offset: u16,
        len: usize,
        into_frontend: bool,
    ) -> GrantStatus {
        let own = self.hypervisor.frame_of(self.page.as_ptr());
        let own = CopyEnd::own(own.expect("own memory"), 0);
        let granted = CopyEnd::granted(gref, self.frontend, offset);
        let (source, dest, flags) = match into_frontend {
            true => (own, granted, CopyFlags::DEST_GREF),
            false => (granted, own, CopyFlags::SOURCE_GREF),
        };
        let mut batch = [GrantCopy {
            source,
            dest,
            len: len as u16,
            flags: flags.bits(),
            status: GrantStatus::GENERAL_ERROR,
        }];
        // SAFETY: the own page is used here alone.
        let copied = unsafe { self.hypervisor.copy_grants(&mut batch) };
        copied.expect("the hypercall");
        batch[0].status
    }

    /// Returns the first bytes of the backend's own page.
    fn bytes(&self, len: usize) -> Vec<u8> {
        // SAFETY: the own page, that nothing writes to now.
        unsafe { std::slice::from_raw_parts(self.page.as_ptr(), len) }.to_vec()
    }

    fn serve(&mut self) -> bool {
        let mut queues = std::mem::take(&mut self.queues);
        let mut moved = false;
        let mut more = !queues.is_empty();
        while more {
            more = false;
            for (number, rings) in queues.iter_mut().enumerate() {
                while !self.takes_nothing
                    && let Some(frame) = self.take(rings)
                {
                    moved = true;
                    self.note_flow(&frame, number);
                    self.from_frontend.push_back(frame);
                }
                while let Some(Ok(request)) = rings.rx.take().expect("an honest frontend") {
                    rings.pages.push_back(request);
                }
            }
            while let Some(frame) = self.to_frontend.pop_front() {
                let number = self.queue_of(&frame, queues.len());
                if !self.put(&mut queues[number], &frame) {
                    self.to_frontend.push_front(frame);
                    break;
                }
                moved = true;
            }
            for rings in &mut queues {
                if rings.tx.publish() | rings.rx.publish() {
                    let notified = self.hypervisor.notify(rings.port);
                    notified.expect("the frontend's port");
                    self.notifications += 1;
                }
                more |= rings.rx.final_check().expect("an honest frontend");
                if !self.takes_nothing {
                    more |= rings.tx.final_check().expect("an honest frontend");
                }
            }
        }
        self.queues = queues;
        moved
    }
}
