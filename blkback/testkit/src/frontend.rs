//! A guest's blkfront: its directory in xenstore, and its connection if it has one. It behaves
//! unless a test makes it do otherwise, at any step.

use super::{Answer, Guest, Link, Style, World};
use bulkhead_grant::GrantTable;
use bulkhead_ring::blkif::{Status, TransferKind};
use bulkhead_xen_sim::xenstore::toolstack::{self, Vbd};
use bulkhead_xen_sim::{SimDomain, SimVcpu};
use bulkhead_xenbus::XenbusState;
use std::time::Duration;

/// The longest that an answer is held back for others to join it.
const HOLD: Duration = Duration::from_millis(2);

/// The longest time for which a frontend is served that has closed.
const CLOSES: Duration = Duration::from_millis(20);

/// A disk of a guest, as its frontend sees it.
pub struct Frontend<'w> {
    /// The machine.
    pub world: &'w World,
    /// The guest's domain.
    pub domain: SimDomain,
    grants: GrantTable<SimVcpu>,
    /// The device, as the toolstack names it.
    pub vbd: Vbd,
    /// The features that the frontend uses.
    pub style: Style,
    links: Vec<Link>,
}

impl<'w> Frontend<'w> {
    /// Makes the frontend of a device that was attached to the guest.
    pub fn new(guest: &Guest<'w>, vbd: Vbd) -> Frontend<'w> {
        Frontend {
            world: guest.world,
            domain: guest.domain.clone(),
            grants: guest.grants.clone(),
            vbd,
            style: Style::default(),
            links: Vec::new(),
        }
    }

    /// Gives the frontend that style.
    pub fn styled(mut self, style: Style) -> Self {
        self.style = style;
        self
    }

    /// Returns the backend's state; `None` if there is no such directory.
    pub fn backend(&self) -> Option<XenbusState> {
        let state = self.vbd.backend_state(&mut self.world.sim.store());
        state.map(|state| XenbusState::parse(Some(&state)))
    }

    /// Reads a node of the backend's directory.
    pub fn backend_node(&self, name: &str) -> Option<String> {
        self.world.read(&self.backend_path(name))
    }

    /// Returns the path of a node of the backend's directory.
    pub fn backend_path(&self, name: &str) -> String {
        format!("{}/{name}", self.vbd.backend_path())
    }

    /// Writes a node of its own directory.
    pub fn write_node(&self, name: &str, value: impl AsRef<[u8]>) {
        let path = format!("{}/{name}", self.vbd.frontend_path());
        let mut store = self.world.sim.store();
        let written = store
            .as_domain(self.domain.id())
            .write(&path, value.as_ref());
        written.expect("a guest may write its own directory");
    }

    /// Removes a node of its own directory.
    pub fn remove_node(&self, name: &str) {
        let path = format!("{}/{name}", self.vbd.frontend_path());
        let mut store = self.world.sim.store();
        let removed = store.as_domain(self.domain.id()).remove(&path);
        removed.expect("a guest may remove what is its own");
    }

    /// Returns whether its directory is there.
    pub fn has_directory(&self) -> bool {
        self.world.sim.store().exists(&self.vbd.frontend_path())
    }

    /// Removes a node of its own directory, if it is there.
    pub fn remove_if_there(&self, name: &str) {
        let path = format!("{}/{name}", self.vbd.frontend_path());
        if self.world.sim.store().exists(&path) {
            self.remove_node(name);
        }
    }

    /// Writes the frontend's state, without running the machine.
    pub fn say(&self, state: XenbusState) {
        self.write_node("state", state.to_string());
    }

    /// Writes the frontend's state, and runs the machine until the backend has followed.
    pub fn go(&self, state: XenbusState) {
        self.say(state);
        self.world.run();
        if state == XenbusState::Closed && self.backend() != Some(XenbusState::Closed) {
            self.world.wait(CLOSES);
        }
    }

    /// Makes its rings.
    pub fn prepare(&mut self) -> &mut Link {
        let link = |_| Link::new(&self.domain, &self.grants, self.vbd.backend, self.style);
        self.links = (0..self.style.queues).map(link).collect();
        self.link()
    }

    /// Publishes its rings.
    pub fn publish(&self) {
        let first = self.links.first().expect("a ring was prepared");
        for (name, value) in first.common_details() {
            self.write_node(&name, value);
        }
        for (number, link) in self.links.iter().enumerate() {
            let prefix = match self.links.len() {
                1 => String::new(),
                _ => format!("queue-{number}/"),
            };
            for (name, value) in link.details() {
                self.write_node(&format!("{prefix}{name}"), value);
            }
        }
    }

    /// Makes a ring, publishes it and waits for the backend. Returns whether that connected.
    pub fn try_connect(&mut self) -> bool {
        self.prepare();
        self.publish();
        self.go(XenbusState::Initialised);
        if self.backend() != Some(XenbusState::Connected) {
            return false;
        }
        self.go(XenbusState::Connected);
        true
    }

    /// Connects, which must succeed.
    pub fn connect(&mut self) {
        assert_eq!(
            self.backend(),
            Some(XenbusState::InitWait),
            "is offered: {:#?}",
            self.world.journal()
        );
        let connected = self.try_connect();
        assert!(connected, "no connection: {:?}", self.problem());
    }

    /// Connects, and returns itself.
    pub fn connected(mut self) -> Self {
        self.connect();
        self
    }

    /// Connects, with a driver domain that may need `span` for each step.
    pub fn connected_after(mut self, span: Duration) -> Self {
        assert_eq!(self.backend(), Some(XenbusState::InitWait));
        self.prepare();
        self.publish();
        self.go(XenbusState::Initialised);
        self.world.wait(span);
        assert_eq!(
            self.backend(),
            Some(XenbusState::Connected),
            "{:#?}",
            self.world.journal()
        );
        self.go(XenbusState::Connected);
        self.world.wait(span);
        self
    }

    /// Returns the driver domain's error node for the disk.
    pub fn problem(&self) -> Option<String> {
        self.world.error(&self.vbd)
    }

    /// Returns whether it has made a ring.
    pub fn is_prepared(&self) -> bool {
        !self.links.is_empty()
    }

    /// Returns its first ring.
    pub fn link(&mut self) -> &mut Link {
        self.queue(0)
    }

    /// Returns one of its rings.
    pub fn queue(&mut self, number: usize) -> &mut Link {
        self.links.get_mut(number).expect("a ring was prepared")
    }

    /// Returns all its rings.
    pub fn queues(&mut self) -> impl Iterator<Item = &mut Link> {
        self.links.iter_mut()
    }

    /// Forgets its connection, and says nothing about it to the backend.
    pub fn forget(&mut self) -> Vec<Link> {
        std::mem::take(&mut self.links)
    }

    /// Returns the number of rings that it has made.
    pub fn rings(&self) -> usize {
        self.links.len()
    }

    /// Closes by itself: the ring must be free to take down afterwards.
    pub fn close(&mut self) {
        self.go(XenbusState::Closing);
        self.go(XenbusState::Closed);
        self.take_down();
    }

    /// Takes its rings back.
    pub fn take_down(&mut self) {
        for link in self.forget() {
            link.take_down();
        }
    }

    /// `xl block-detach`: the toolstack asks, the guest follows, and nothing is left.
    pub fn detach(mut self) {
        self.request_detach();
        if self.backend() == Some(XenbusState::Closing) && self.is_prepared() {
            self.go(XenbusState::Closing);
            self.go(XenbusState::Closed);
            self.take_down();
        }
        self.finish_detach();
    }

    /// As [`detach`](Self::detach), but the guest says at once that it has closed.
    pub fn detach_at_once(mut self) {
        self.request_detach();
        self.go(XenbusState::Closed);
        self.take_down();
        self.finish_detach();
    }

    /// The toolstack asks the backend to let go.
    pub fn request_detach(&self) {
        let there = toolstack::request_detach(&mut self.world.sim.store(), &self.vbd);
        assert!(there, "there is something to detach");
        self.world.run();
    }

    /// The toolstack waits for the backend, and cleans up.
    pub fn finish_detach(self) {
        self.world.run();
        let state = self.backend();
        assert!(
            matches!(state, Some(XenbusState::Closed) | None),
            "libxl waits for state 6, not {state:?}"
        );
        self.world.wait_for_removal();
        let gone = self.vbd.backend_gone(&self.world.sim.store());
        assert!(gone, "libxl waits for the directory to vanish");
        toolstack::finish_detach(&mut self.world.sim.store(), &self.vbd);
        self.world.late.forget(&self.vbd);
        self.world.run();
    }

    /// Shows the backend what was put into the ring, and takes the answers.
    pub fn exchange(&mut self) -> Vec<Answer> {
        self.link().kick();
        self.world.run();
        self.link().collect()
    }

    /// As [`exchange`](Self::exchange), for one request.
    pub fn answer(&mut self) -> Answer {
        let mut answers = self.exchange();
        // It may be held back for company, or timers of a network have to pass.
        let network = self
            .world
            .nbd
            .as_ref()
            .is_some_and(|nbd| nbd.network.is_some());
        let mut pauses = if network { 50 } else { 1 };
        while answers.is_empty() && pauses > 0 {
            self.world.wait(HOLD);
            answers = self.link().collect();
            pauses -= 1;
        }
        assert_eq!(answers.len(), 1, "one request, one answer");
        answers.remove(0)
    }

    /// Sends one read or write, and returns its answer.
    pub fn transfer(
        &mut self,
        kind: TransferKind,
        sector: u64,
        sectors: usize,
        data: &[u8],
    ) -> Answer {
        self.link().push_transfer(kind, sector, sectors, data);
        self.answer()
    }

    /// Reads sectors, which must succeed.
    pub fn read(&mut self, sector: u64, sectors: usize) -> Vec<u8> {
        self.link().push_read(sector, sectors);
        let answer = self.answer();
        let journal = || self.world.journal();
        assert_eq!(
            answer.status,
            Status::Okay,
            "read of {sectors} at {sector}: {:#?}",
            journal()
        );
        answer.data
    }

    /// Writes whole sectors, which must succeed.
    pub fn write(&mut self, sector: u64, data: &[u8]) {
        self.link().push_write(sector, data);
        assert_eq!(self.answer().status, Status::Okay, "write at {sector}");
    }

    /// Flushes, which must succeed.
    pub fn flush(&mut self) {
        self.link().push_flush();
        assert_eq!(self.answer().status, Status::Okay, "flush");
    }
}
