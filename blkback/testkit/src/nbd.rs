//! An NBD server that the driver domain can reach.

use super::executors::Executors;
use super::network::{Network, interfaces};
use bulkhead_grant::TableOnDemand;
use bulkhead_nbd::{ExportSettings, Exports};
use bulkhead_nbd_testing::{Config, FakeNetwork, FakeServer};
use bulkhead_net::Traces;
use bulkhead_xen_sim::{Sim, SimDomain, SimVcpu};
use bulkhead_xenstore_client::Client;
use std::rc::Rc;

/// The server and its client.
pub struct Nbd {
    /// The server, `nbd:10.0.0.2`.
    pub server: FakeServer,
    /// The client.
    pub exports: Rc<Exports<SimVcpu>>,
    /// The network between them, if there is one.
    pub network: Option<Network>,
}

/// Returns the client of a server. If the driver domain has an interface, the client reaches the server over it; its
/// grants are those of `own`, as are the traces of connections that survive.
pub(crate) fn client(
    storage: &SimDomain,
    executors: &Executors,
    store: &Client,
    own: (TableOnDemand<SimVcpu>, Traces),
    server: &FakeServer,
    over_network: bool,
) -> Rc<Exports<SimVcpu>> {
    let vcpus = executors.spawners().len();
    let settings = ExportSettings {
        vcpus,
        timeout: None,
    };
    let network: Rc<dyn bulkhead_stream::Network> = match over_network {
        true => interfaces(storage, executors, store, own),
        false => {
            let servers = vec![("10.0.0.2:10809".to_string(), server.clone())];
            Rc::new(FakeNetwork(servers))
        }
    };
    Exports::new(executors.handle(), network, None, settings)
}

impl Nbd {
    pub(crate) fn new(
        sim: &Sim,
        storage: &SimDomain,
        executors: &Executors,
        store: &Client,
        own: (TableOnDemand<SimVcpu>, Traces),
        (config, over_network): (Config, bool),
    ) -> Nbd {
        let server = FakeServer::new(config);
        Nbd {
            network: over_network.then(|| Network::new(sim, storage, &server)),
            exports: client(storage, executors, store, own, &server, over_network),
            server,
        }
    }

    /// Has the server, and the network to it, do their work. Returns whether there was any.
    pub(crate) fn step(&self, sim: &Sim) -> bool {
        let moved = self.server.step();
        let network = self.network.as_ref();
        network.is_some_and(|network| network.step(sim)) | moved
    }
}
