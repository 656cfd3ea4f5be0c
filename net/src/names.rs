//! Resolving the names of servers, by name servers.

use crate::interface::{Interface, InterfaceState};
use crate::question::{Answer, ask, encode};
use alloc::vec::Vec;
use bulkhead_stream::ConnectError;
use bulkhead_xen::Hypervisor;
use smoltcp::wire::{DnsQueryType, IpAddress};

/// The most name servers that are asked.
const MOST: usize = 4;

impl<H: Hypervisor> InterfaceState<H> {
    /// Returns the name servers, in the order in which they are asked: the one that has answered last comes first.
    pub(crate) fn name_servers(&self) -> Vec<IpAddress> {
        let all = [&self.settings, &self.leased];
        let all = all.iter().flat_map(|settings| &settings.name_servers);
        let mut servers: Vec<IpAddress> = all.copied().take(MOST).collect();
        let is_first = |server: &IpAddress| Some(*server) == self.first_name_server;
        let first = servers.iter().position(is_first);
        servers.rotate_left(first.unwrap_or(0));
        servers
    }
}

/// Asks the name servers for the addresses of a host, and returns them if at least one can be reached. They are not
/// cached: the next connection asks again.
pub(crate) async fn resolve<H: Hypervisor>(
    interface: &Interface<H>,
    host: &str,
) -> Result<Vec<IpAddress>, ConnectError> {
    let name = encode(host).ok_or(ConnectError::NoAddress)?;
    let mut found = Vec::new();
    for kind in [DnsQueryType::A, DnsQueryType::Aaaa] {
        let told = ask_each(interface, &name, kind).await?;
        found.extend(told.into_iter().filter(is_a_servers));
        let state = interface.state.borrow();
        if found.iter().any(|address| state.reaches(address)) {
            return Ok(found);
        }
    }
    Err(match found.is_empty() {
        true => ConnectError::NoAddress,
        false => ConnectError::Unreachable,
    })
}

/// Returns whether the address can be a server's: it is neither this domain's own, nor a group's.
fn is_a_servers(address: &IpAddress) -> bool {
    let is_loopback = match address {
        IpAddress::Ipv4(address) => address.is_loopback(),
        IpAddress::Ipv6(address) => address.is_loopback(),
    };
    address.is_unicast() && !is_loopback
}

/// Asks one name server after the other, until one can tell. Returns no address if the host has none.
async fn ask_each<H: Hypervisor>(
    interface: &Interface<H>,
    name: &[u8],
    kind: DnsQueryType,
) -> Result<Vec<IpAddress>, ConnectError> {
    let servers = interface.state.borrow().name_servers();
    let mut error = match servers.is_empty() {
        true => ConnectError::NoNameServer,
        false => ConnectError::NameServerSilent,
    };
    for server in servers {
        if !interface.state.borrow().reaches(&server) {
            continue;
        }
        match ask(interface, server, name, kind).await {
            Some(Answer::Addresses(addresses)) => {
                interface.state.borrow_mut().first_name_server = Some(server);
                return Ok(addresses);
            }
            Some(Answer::Fails) => error = ConnectError::NameServerFails,
            None => {}
        }
    }
    Err(error)
}
