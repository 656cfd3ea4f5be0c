//! The network of a driver domain: the domain of its backend, and a host at which an NBD server listens.

use super::executors::Executors;
use bulkhead_grant::TableOnDemand;
use bulkhead_nbd_testing::FakeServer;
use bulkhead_net::{InterfaceSettings, Interfaces, Traces};
use bulkhead_net_testing::{Connection, NetBack, Offered, Peer};
use bulkhead_xen::Instant;
use bulkhead_xen_sim::{DomainConfig, Sim, SimDomain, SimVcpu};
use bulkhead_xenstore_client::Client;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

/// The server's port.
const PORT: u16 = 10809;
/// The most connections to it at a time.
const CONNECTIONS: usize = 6;

/// The network.
pub struct Network {
    /// The domain of the backend.
    pub domain: SimDomain,
    /// The backend of the driver domain's interface.
    pub back: RefCell<NetBack>,
    /// The host, at 10.0.0.2.
    pub peer: RefCell<Peer>,
    /// True while the domain of the backend is paused.
    pub paused: Cell<bool>,
}

impl Network {
    /// Attaches an interface to the driver domain, in whose network the server is.
    pub(crate) fn new(sim: &Sim, storage: &SimDomain, server: &FakeServer) -> Network {
        let domain = sim.add_domain_with(DomainConfig {
            memory_pages: 64,
            ..DomainConfig::default()
        });
        let offered = Offered {
            parts: true,
            offload: true,
            // As many as dom0's netback takes: one for each of its vCPUs.
            queues: Some("2"),
        };
        let mut peer = Peer::new(true);
        for _ in 0..CONNECTIONS {
            serve(&mut peer, server.clone());
        }
        Network {
            back: RefCell::new(NetBack::new(sim, &domain, storage.id(), offered)),
            peer: RefCell::new(peer),
            domain,
            paused: Cell::new(false),
        }
    }

    /// Does the work that is due. Returns whether there was any.
    pub(crate) fn step(&self, sim: &Sim) -> bool {
        if self.paused.get() {
            return false;
        }
        let (mut back, mut peer) = (self.back.borrow_mut(), self.peer.borrow_mut());
        let mut moved = back.step(sim);
        while let Some(frame) = back.from_frontend.pop_front() {
            peer.receive(frame);
            moved = true;
        }
        moved |= peer.step(micros(sim));
        while let Some(frame) = peer.take_sent() {
            back.to_frontend.push_back(frame);
            moved = true;
        }
        moved
    }

    /// Returns the time at which the host wants to do something by itself.
    pub(crate) fn next_deadline(&self, sim: &Sim) -> Option<Instant> {
        let next = self.peer.borrow_mut().next_deadline(micros(sim));
        next.filter(|_| !self.paused.get())
            .map(|next| Instant(next * 1000))
    }
}

fn micros(sim: &Sim) -> u64 {
    sim.now().0 / 1000
}

/// Has the host listen once more, for the server.
fn serve(peer: &mut Peer, server: FakeServer) {
    let mut connection = None;
    let service = move |socket: &mut Connection| {
        if !socket.is_active() {
            if let Some(ended) = connection.take() {
                server.hang_up(ended);
            }
            return;
        }
        if connection.is_none() && server.is_full() {
            // It waits until another one has ended, as those of a server do that looks at no more.
            return;
        }
        let number = *connection.get_or_insert_with(|| server.accept());
        while socket.can_recv() {
            let taken = socket.recv(|bytes| {
                server.deliver(number, bytes);
                (bytes.len(), ())
            });
            taken.expect("it can receive");
        }
        server.deliver(number, &[]);
        if socket.can_send() {
            let room = socket.send_capacity() - socket.send_queue();
            let bytes = server.collect(number, room);
            assert_eq!(socket.send_slice(&bytes), Ok(bytes.len()));
        }
    };
    peer.serve(PORT, Box::new(service));
}

thread_local! {
    static DRAWN: Cell<u64> = const { Cell::new(0) };
}

/// Returns a number that none of the boots before had.
fn random() -> u64 {
    DRAWN.set(DRAWN.get() + 1);
    DRAWN.get().wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Follows the interface of the driver domain, which may have a queue for each vCPU.
pub(crate) fn interfaces(
    storage: &SimDomain,
    executors: &Executors,
    store: &Client,
    (grants, traces): (TableOnDemand<SimVcpu>, Traces),
) -> Rc<Interfaces<SimVcpu>> {
    let mut settings = InterfaceSettings::default();
    let queues = format!("net-queues={}", executors.spawners().len().min(4));
    for word in ["ip=10.0.0.7/24", &queues] {
        assert_eq!(settings.take(word), Ok(true), "{word}");
    }
    let (handle, memory) = (executors.handle(), Arc::new(storage.hypervisor()));
    let interfaces = Interfaces::new(
        handle.clone(),
        store.clone(),
        memory,
        grants,
        settings,
        random,
        traces,
    );
    let following = interfaces.clone();
    handle.spawn(async move {
        let Err(error) = following.follow().await;
        log::error!("networks of our own cannot be followed any more: {error}");
    });
    interfaces
}
