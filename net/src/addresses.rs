//! The addresses of an interface: those that it was given, and those that a server tells (DHCP).

use crate::interface::State;
use crate::settings::Settings;
use alloc::vec::Vec;
use bulkhead_xen::Hypervisor;
use smoltcp::socket::{dhcpv4, dns};
use smoltcp::wire::{
    EthernetAddress, HardwareAddress, IpAddress, IpCidr, Ipv4Cidr, Ipv6Address, Ipv6Cidr,
};

impl<H: Hypervisor> State<H> {
    /// Gives the stack its addresses.
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
        for gateway in all.iter().flat_map(|settings| &settings.gateways) {
            // There is room for one of each kind, and the last one is used.
            let _ = match gateway {
                IpAddress::Ipv4(gateway) => routes.add_default_ipv4_route(*gateway),
                IpAddress::Ipv6(gateway) => routes.add_default_ipv6_route(*gateway),
            };
        }
        let servers: Vec<IpAddress> = all
            .iter()
            .flat_map(|settings| &settings.name_servers)
            .copied()
            .collect();
        let dns = self.sockets.get_mut::<dns::Socket>(self.dns);
        dns.update_servers(&servers);
    }

    /// Takes the address that a server gives, or takes away.
    pub(crate) fn ask_for_address(&mut self) {
        let (Some(dhcp), Some(stack)) = (self.dhcp, &self.stack) else {
            return;
        };
        let HardwareAddress::Ethernet(mac) = stack.hardware_addr();
        let socket = self.sockets.get_mut::<dhcpv4::Socket>(dhcp);
        self.leased = match socket.poll() {
            None => return,
            Some(dhcpv4::Event::Deconfigured) => Settings::default(),
            Some(dhcpv4::Event::Configured(told)) => Settings {
                dhcp: true,
                addresses: usable(told.address).into_iter().collect(),
                gateways: told.router.map(IpAddress::Ipv4).into_iter().collect(),
                name_servers: told
                    .dns_servers
                    .iter()
                    .copied()
                    .map(IpAddress::Ipv4)
                    .collect(),
            },
        };
        match self.leased.addresses.first() {
            Some(address) => log::info!("network: the address is {address} (DHCP)"),
            None => log::warn!("network: no address any more (DHCP)"),
        }
        self.address(mac);
    }

    /// Returns whether the stack has a way to an address.
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

    /// Returns whether there are name servers.
    pub(crate) fn has_name_servers(&self) -> bool {
        let all = [&self.settings, &self.leased];
        all.iter().any(|settings| !settings.name_servers.is_empty())
    }
}

/// Returns the address that a server gives, if an interface can have it.
fn usable(address: Ipv4Cidr) -> Option<IpCidr> {
    let address = IpCidr::Ipv4(address);
    address.address().is_unicast().then_some(address)
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
