//! The task of an interface: it reads the states of both ends, decides, acts, and waits for the next change.

use crate::backend_nodes::{OFFER_NODES, OWN_FEATURES, Offer, mac};
use crate::interface::Interface;
use crate::interfaces::Interfaces;
use crate::rings::{GrantedMemory, Rings};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use bulkhead_executor::Signal;
use bulkhead_xen::{DomId, Hypervisor, Instant};
use bulkhead_xenbus::frontend::{FrontendNodes, Observed, Phase, Retries, Step, decide, is_left};
use bulkhead_xenbus::retry::PAUSE;
use bulkhead_xenbus::{NodeMap, XenbusState, own_node, read_nodes};
use bulkhead_xenstore_client::Error;
use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::Poll;
use core::time::Duration;
use futures_util::future::{Either, select};
use smoltcp::wire::EthernetAddress;

/// The time in which a restarted backend has to connect to the rings that it finds.
const GOES_ON: Duration = Duration::from_secs(5);
/// The time between the first two checks whether a backend has let go of this domain's memory; it doubles each time.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// The time after which a backend that keeps this domain's memory is waited for no longer.
const LONG_LOOK: Duration = Duration::from_secs(2);

/// The task of an interface.
struct InterfaceTask<'a, H: Hypervisor> {
    interfaces: &'a Interfaces<H>,
    interface: &'a Interface<H>,
    nodes: FrontendNodes,
    phase: Phase,
    /// The rings that were published and to which the backend is not connected yet, the backend's offer, and the
    /// interface's address.
    published: Option<(Rings<H>, Offer, EthernetAddress)>,
    /// Memory that an earlier backend may still use.
    leftover: Option<GrantedMemory<H>>,
    waited: bool,
    retries: Retries,
    /// No attempt to connect is made before this time.
    rests_until: Instant,
    told: Option<String>,
}

/// Follows an interface until the toolstack has removed it. `changed` is raised whenever something in its directory
/// changes.
pub async fn live<H: Hypervisor>(
    interfaces: &Interfaces<H>,
    number: u32,
    interface: &Interface<H>,
    changed: &Signal,
) {
    let mut task = InterfaceTask {
        interfaces,
        interface,
        nodes: FrontendNodes::new(format!("device/vif/{number}"), &[]),
        phase: Phase::Fresh,
        published: None,
        leftover: None,
        waited: false,
        retries: Retries::new(interfaces.was_left()),
        rests_until: Instant(0),
        told: None,
    };
    loop {
        match task.step(changed).await {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) if error.is_disconnected() => {
                // A connected interface is used on.
                log::error!(
                    "network {}: cannot be followed any more: {error}",
                    interface.name
                );
                core::future::pending::<()>().await;
            }
            Err(error) => {
                task.tell(format!("{error}; to be tried again"));
                interfaces.handle().sleep(PAUSE).await;
            }
        }
    }
}

impl<H: Hypervisor> InterfaceTask<'_, H> {
    /// Reads the states, decides and acts. Returns false if the interface is gone.
    async fn step(&mut self, changed: &Signal) -> Result<bool, Error> {
        if self.interface.has_failed() && self.phase != Phase::Failed {
            self.give_up().await?;
        }
        let seen = self.observe().await?;
        if seen.attached {
            self.nodes.write_again(self.interfaces.store()).await?;
        }
        match decide(self.phase, seen) {
            // Neither going on nor use is observed, and a backend's offer holds as long as its rings.
            Step::Wait | Step::Keep | Step::GoOn | Step::Reread => self.wait(changed).await?,
            Step::WaitForBackend => {
                let over = self.interfaces.handle().sleep(GOES_ON);
                if let Either::Left((waited, _)) =
                    select(pin!(self.wait(changed)), pin!(over)).await
                {
                    waited?;
                    return Ok(true);
                }
                self.waited = true;
            }
            Step::Publish => self.publish().await?,
            Step::Connect => self.connect(),
            Step::Close => self.close().await?,
            Step::StartOver if self.interfaces.handle().now() < self.rests_until => {
                // Changes by the backend are looked at after the pause; the toolstack may remove the interface during it.
                let over = self.interfaces.handle().sleep_until(self.rests_until);
                select(pin!(changed.raised()), pin!(over)).await;
            }
            Step::StartOver => {
                self.write(Vec::new(), XenbusState::Initialising).await?;
                self.phase = Phase::Fresh;
            }
            Step::Forget => {
                self.disconnect().await;
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn observe(&mut self) -> Result<Observed, Error> {
        let store = self.interfaces.store();
        let found = self.nodes.read(store).await?;
        let attached = found.backend.is_some();
        let (mut backend, mut online) = (XenbusState::Unknown, false);
        if let Some(named) = found.backend {
            self.follow_backend(named).await?;
            (backend, online) = self.nodes.backend(store).await?;
        }
        Ok(Observed {
            attached,
            backend,
            online,
            // Users of the network wait for its return, or for another interface.
            in_use: false,
            waited: core::mem::take(&mut self.waited),
            left: self.interfaces.was_left() && is_left(found.own),
            // What was on the way at a crash is sent again by those who need it.
            may_go_on: false,
        })
    }

    /// Follows the backend that the toolstack has named, if it is another one than before.
    async fn follow_backend(&mut self, named: (String, DomId)) -> Result<(), Error> {
        if self.nodes.follows(&named) {
            return Ok(());
        }
        self.disconnect().await;
        if self.phase != Phase::Failed {
            self.phase = Phase::Fresh;
        }
        self.nodes.follow(self.interfaces.store(), named).await
    }

    /// Waits until a change may have happened.
    async fn wait(&mut self, changed: &Signal) -> Result<(), Error> {
        let (interface, failed) = (self.interface, self.phase == Phase::Failed);
        let nodes = &mut self.nodes;
        let mut raised = pin!(changed.raised());
        let mut violated = pin!(interface.failed());
        let by_backend = poll_fn(|context| {
            if !failed && violated.as_mut().poll(context).is_ready() {
                return Poll::Ready(Ok(false));
            }
            if let Poll::Ready(event) = nodes.poll_backend(context) {
                return Poll::Ready(event.map(|()| true));
            }
            raised.as_mut().poll(context).map(|()| Ok(false))
        })
        .await?;
        if by_backend {
            self.nodes.paced(self.interfaces.handle()).await;
        }
        Ok(())
    }

    /// Makes rings, and publishes them to the backend.
    async fn publish(&mut self) -> Result<(), Error> {
        let Some(peer) = self.nodes.peer() else {
            return Ok(());
        };
        let (store, backend) = (self.interfaces.store(), peer.id);
        if !self.interfaces.leftovers().allow(backend) {
            let problem = "backends do not let go of our memory, and there is to be no more of it";
            return self.back_off(problem.to_string()).await;
        }
        let mut nodes = NodeMap::new();
        read_nodes(&mut nodes, store, &peer.path, &OFFER_NODES).await?;
        let own = own_node(store, format!("{}/mac", self.nodes.path())).await?;
        let mtu = own_node(store, format!("{}/mtu", self.nodes.path())).await?;
        let offer = Offer::parse(&nodes, mtu.as_deref());
        let mac = match mac(own.as_deref()) {
            Ok(mac) => mac,
            Err(error) => return self.back_off(error.to_string()).await,
        };
        let rings = match self.rings(backend, offer.queues) {
            Ok(rings) => rings,
            Err(problem) => return self.back_off(problem).await,
        };
        let features = OWN_FEATURES.map(|(name, value)| (name.to_string(), value.to_string()));
        let mut nodes: Vec<_> = features.into();
        nodes.extend(rings.nodes());
        self.published = Some((rings, offer, mac));
        self.phase = Phase::Published;
        self.write(nodes, XenbusState::Connected).await
    }

    /// Makes rings for as many queues as are wanted and the backend takes, or for fewer if there is no memory for these,
    /// but for one.
    fn rings(&mut self, backend: DomId, taken: u32) -> Result<Rings<H>, String> {
        let handle = self.interfaces.handle();
        let table = self.interfaces.grants().get();
        let table = table.ok_or("Xen gives no grant table")?;
        // What a boot before this one had granted is the memory that these are made of.
        table.end_left(None);
        let memory = (self.interfaces.pool(), &table);
        let rings = Rings::new(handle, memory, backend);
        let mut rings = rings.map_err(|error| error.to_string())?;
        let wanted = u32::from(self.interfaces.queues().get());
        for number in 0..wanted.min(taken) {
            match rings.add_queue(handle, memory, backend) {
                Ok(()) => {}
                Err(problem) if number == 0 => return Err(problem.to_string()),
                Err(problem) => {
                    self.tell(format!("no more queues than {number}: {problem}"));
                    break;
                }
            }
        }
        Ok(rings)
    }

    /// Begins to use the rings, to which the backend has connected.
    fn connect(&mut self) {
        let Some((rings, offer, mac)) = self.published.take() else {
            return;
        };
        let queues = rings.queues();
        {
            let mut state = self.interface.state.borrow_mut();
            state.device.rings = Some(rings);
            state.device.offer = offer;
        }
        self.interface.connected(mac);
        self.phase = Phase::Connected;
        self.retries.connected();
        self.told = None;
        let backend = self.nodes.peer().map(|peer| peer.id);
        log::info!(
            "network {}: connected to domain {}, {mac}, packets of up to {} bytes, {queues} queue(s)",
            self.interface.name,
            backend.unwrap_or_default(),
            offer.mtu,
        );
    }

    /// Takes back everything, and reports that to the backend.
    async fn close(&mut self) -> Result<(), Error> {
        let was_connected = self.phase == Phase::Connected;
        if was_connected {
            log::warn!("network {}: the backend is gone", self.interface.name);
        }
        self.stop();
        self.phase = Phase::Closed;
        self.write(Vec::new(), XenbusState::Closed).await?;
        self.disconnect().await;
        let now = self.interfaces.handle().now();
        self.rests_until = self.retries.after_close(was_connected, now);
        Ok(())
    }

    /// Gives up an interface whose backend has broken the protocol, until the toolstack attaches it anew.
    async fn give_up(&mut self) -> Result<(), Error> {
        log::error!("{}", self.interface.line());
        self.stop();
        self.phase = Phase::Failed;
        self.write(Vec::new(), XenbusState::Closed).await?;
        // Not waited for: it may never let go.
        if self.leftover.as_mut().is_some_and(GrantedMemory::revoke) {
            self.leftover = None;
        }
        Ok(())
    }

    async fn back_off(&mut self, problem: String) -> Result<(), Error> {
        self.tell(format!("cannot be connected: {problem}"));
        self.close().await
    }

    /// Stops using the rings.
    fn stop(&mut self) {
        let used = self.interface.state.borrow_mut().device.disconnect();
        let rings = used.or(self.published.take().map(|(rings, ..)| rings));
        if let Some(rings) = rings {
            self.leftover = Some(rings.into_memory());
        }
        self.interface.work.raise();
    }

    /// Stops using the rings, and waits until the backend has let go of this domain's memory, but not for long: the next one
    /// needs nothing of it.
    async fn disconnect(&mut self) {
        self.stop();
        let Some(mut leftover) = self.leftover.take() else {
            return;
        };
        let mut pause = LOOK_AGAIN;
        while !leftover.revoke() {
            if pause > LONG_LOOK {
                let what = "the backend does not let go of our memory: it is taken back later";
                self.tell(what.to_string());
                let backend = self.nodes.peer().map(|peer| peer.id);
                let leftovers = self.interfaces.leftovers();
                return leftovers.keep(backend.unwrap_or_default(), leftover);
            }
            self.interfaces.handle().sleep(pause).await;
            pause *= 2;
        }
    }

    /// Writes nodes and this end's state. Nodes that xenstored refuses are written later.
    async fn write(
        &mut self,
        nodes: Vec<(String, String)>,
        state: XenbusState,
    ) -> Result<(), Error> {
        self.nodes
            .write(self.interfaces.store(), nodes, state)
            .await
    }

    /// Logs a line, unless it repeats the last one.
    fn tell(&mut self, what: String) {
        if self.told.as_ref() != Some(&what) {
            log::warn!("network {}: {what}", self.interface.name);
            self.told = Some(what);
        }
    }
}
