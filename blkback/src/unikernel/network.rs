//! The network of the driver domain, and the store of the exports that servers on it have.

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_executor::Handle;
use bulkhead_grant::TableOnDemand;
use bulkhead_images::Stores;
use bulkhead_kernel::command_line::value;
use bulkhead_kernel::rdrand::rdrand;
use bulkhead_kernel::{Hypercalls, Machine};
use bulkhead_nbd::{Exports, nbd_store, without_tls};
use bulkhead_net::{Interfaces, Traces};
use bulkhead_stream::Tls;
use bulkhead_xenstore_client::Client;
use core::pin::pin;
use core::time::Duration;
use futures_util::future::{join_all, select};

/// The key on the command line for the seconds that requests wait for a server that is away.
const TIMEOUT: &str = "nbd-timeout";

/// All keys on the command line.
pub const KEYS: [&str; 5] = {
    let [ip, gateway, dns, queues] = bulkhead_net::InterfaceSettings::KEYS;
    [ip, gateway, dns, queues, TIMEOUT]
};

/// TLS, or the reason why there is none.
pub type TlsOrReason = Result<Rc<dyn Tls>, String>;

/// The longest time that the end of the domain waits for servers to be told: one that is away cannot delay it.
const LEAVE: Duration = Duration::from_secs(2);

/// The time in which the last packets are sent.
const LAST_PACKETS: Duration = Duration::from_millis(20);

/// The exports of servers, and the network to these.
pub struct Network {
    /// The exports that are reached without TLS and, if there is TLS, those that are reached with it.
    exports: Vec<Rc<Exports<Hypercalls>>>,
    handle: Handle<Hypercalls>,
}

impl Network {
    /// Follows the interfaces that the domain is given, and registers the stores that use them. The traces are what survives
    /// of connections.
    pub fn start(
        machine: &Machine,
        handle: &Handle<Hypercalls>,
        store: &Client,
        vcpus: usize,
        (grants, traces): (TableOnDemand<Hypercalls>, Traces),
        tls: TlsOrReason,
        stores: &mut Stores,
    ) -> Network {
        let line = machine.command_line;
        let mistaken = |mistake| log::error!("command line: {mistake}");
        let addresses = bulkhead_net::InterfaceSettings::parse(line, mistaken);
        let memory = Arc::new(machine.hypervisor);
        let interfaces = Interfaces::new(
            handle.clone(),
            store.clone(),
            memory,
            grants,
            addresses,
            // Without the instruction, the time is all that there is.
            || rdrand().unwrap_or_default(),
            traces,
        );
        let following = interfaces.clone();
        handle.spawn(async move {
            let Err(error) = following.follow().await;
            log::error!("networks of our own cannot be followed any more: {error}");
        });

        let timeout = value(line, TIMEOUT).map(bulkhead_nbd::ExportSettings::parse_timeout);
        let timeout = timeout.unwrap_or(Ok(None)).unwrap_or_else(|expected| {
            log::error!("command line: {TIMEOUT}: {expected}; requests wait for ever");
            None
        });
        let settings = bulkhead_nbd::ExportSettings { vcpus, timeout };
        let plain = Exports::new(handle.clone(), interfaces, None, settings);
        stores.register(Box::new(nbd_store(plain.clone())));
        let mut exports = Vec::from([plain.clone()]);
        match tls {
            Ok(tls) => {
                let by_tls = plain.by_tls(tls);
                stores.register(Box::new(nbd_store(by_tls.clone())));
                exports.push(by_tls);
            }
            Err(reason) => stores.register(Box::new(without_tls(reason))),
        }
        let handle = handle.clone();
        Network { exports, handle }
    }

    /// Tells all servers that answer that the domain ends, and closes the connections to them.
    pub async fn close(&self) {
        let late = pin!(self.handle.sleep(LEAVE));
        let all = self.exports.iter().map(|exports| exports.close());
        select(pin!(join_all(all)), late).await;
        self.handle.sleep(LAST_PACKETS).await;
    }
}
