//! The addresses that an interface's stack uses.

use crate::interface::InterfaceState;
use bulkhead_xen::Hypervisor;
use smoltcp::socket::Socket;
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr, Ipv6Address, Ipv6Cidr};

impl<H: Hypervisor> InterfaceState<H> {
    /// Sets the stack's addresses. Connections from any other address end.
    pub(crate) fn address(&mut self, mac: EthernetAddress) {
        let Some(stack) = &mut self.stack else {
            return;
        };
        let all = [&self.settings, &self.leased];
        stack.update_ip_addrs(|addresses| {
            addresses.clear();
            for address in all.iter().flat_map(|settings| &settings.addresses) {
                // No more are taken than there is room for.
                let _ = addresses.push(*address);
            }
            let _ = addresses.push(IpCidr::Ipv6(link_local(mac)));
        });
        let routes = stack.routes_mut();
        routes.remove_default_ipv4_route();
        routes.remove_default_ipv6_route();
        // There is room for one of each kind, and the last one is used: the operator's own, if there is one.
        for gateway in all.iter().rev().flat_map(|settings| &settings.gateways) {
            let _ = match gateway {
                IpAddress::Ipv4(gateway) => routes.add_default_ipv4_route(*gateway),
                IpAddress::Ipv6(gateway) => routes.add_default_ipv6_route(*gateway),
            };
        }
        for (_, socket) in self.sockets.iter_mut() {
            // What it sends from now on would come from another host's address.
            if let Socket::Tcp(socket) = socket
                && let Some(local) = socket.local_endpoint()
                && !stack.has_ip_addr(local.addr)
            {
                socket.abort();
            }
        }
    }

    /// Returns whether the stack has a route to an address.
    pub(crate) fn reaches(&self, address: &IpAddress) -> bool {
        let Some(stack) = &self.stack else {
            return false;
        };
        let routes = stack.routes();
        let gateway = match address {
            IpAddress::Ipv4(_) => routes.get_default_ipv4_route().is_some(),
            IpAddress::Ipv6(_) => routes.get_default_ipv6_route().is_some(),
        };
        let near = |network: &IpCidr| network.contains_addr(address);
        gateway || stack.ip_addrs().iter().any(near)
    }
}

/// Returns the address that an interface makes for itself (RFC 4291, 2.5.6 and appendix A).
fn link_local(mac: EthernetAddress) -> Ipv6Cidr {
    let [a, b, c, d, e, f] = mac.0;
    let word = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    let address = Ipv6Address::new(
        0xfe80,
        0,
        0,
        0,
        word(a ^ 2, b),
        word(c, 0xff),
        word(0xfe, d),
        word(e, f),
    );
    Ipv6Cidr::new(address, 64)
}
