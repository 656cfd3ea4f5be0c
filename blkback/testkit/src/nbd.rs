//! An NBD server that the driver domain can reach.

use super::executors::Executors;
use bulkhead_nbd::{Exports, Settings};
use bulkhead_nbd_testing::{Config, FakeNetwork, FakeServer};
use bulkhead_xen_sim::SimVcpu;
use std::rc::Rc;

/// The server and its client.
pub struct Nbd {
    /// The server, `nbd:10.0.0.2`.
    pub server: FakeServer,
    /// The client.
    pub exports: Rc<Exports<SimVcpu>>,
}

impl Nbd {
    pub(crate) fn new(executors: &Executors, vcpus: u32, config: Config) -> Nbd {
        let server = FakeServer::new(config);
        let network = FakeNetwork(vec![("10.0.0.2:10809".to_string(), server.clone())]);
        let settings = Settings {
            vcpus: vcpus as usize,
            patience: None,
        };
        Nbd {
            exports: Exports::new(executors.handle(), Rc::new(network), None, settings),
            server,
        }
    }
}
