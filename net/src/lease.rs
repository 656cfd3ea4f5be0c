//! The address that a DHCP server gives, and the time for which it is valid.

use crate::interface::InterfaceState;
use crate::packet::Contents;
use crate::settings::InterfaceSettings;
use bulkhead_executor::RateLimit;
use bulkhead_xen::{Hypervisor, Instant};
use core::fmt;
use core::time::Duration;
use log::Level;
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::dhcpv4::{Config, Event, Socket};
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr, Ipv4Cidr};

/// The pause between two requests while no server answers (RFC 2131, 4.1). A bridge that has just got its port may have
/// dropped the first one.
const ASK_AGAIN: smoltcp::time::Duration = smoltcp::time::Duration::from_secs(4);
/// The time without an address after which the log says so.
const LOG_AFTER: Duration = Duration::from_secs(10);
/// The number of log lines about a lease that may come at once, and the time after which there may be one more. A
/// server may give another address with every packet.
const LINES: RateLimit = RateLimit::new(8, Duration::from_secs(300));
/// The number of servers' answers that are used in a time. The client asks again at once after a refusal, and after an
/// address with no time: a server could keep it busy.
const ANSWERS: RateLimit = RateLimit::new(8, Duration::from_secs(1));

/// The answers of servers to an interface. Others in the network may send what looks like some: only those to the last
/// question count, so that nobody who has not seen it can use the limit up. A renewal is asked of the server alone.
pub struct DhcpAnswers {
    client: EthernetAddress,
    /// The number of the last question.
    transaction: Option<u32>,
    limit: RateLimit,
}

impl DhcpAnswers {
    /// Returns those to an interface that has not asked yet.
    pub fn new(client: EthernetAddress) -> DhcpAnswers {
        DhcpAnswers {
            client,
            transaction: None,
            limit: ANSWERS,
        }
    }

    /// Notes the number of a question that is sent.
    pub fn asked(&mut self, transaction: u32) {
        self.transaction = Some(transaction);
    }

    /// Returns whether the stack is to have a packet: it is no answer, or one to the last question, and there are not too
    /// many.
    pub fn admit(&mut self, packet: &Contents<'_>, now: Instant) -> bool {
        match packet.dhcp_answer(self.client) {
            None => true,
            answered if answered == self.transaction => self.limit.take(now),
            Some(_) => false,
        }
    }
}

/// The client of an interface's DHCP server.
pub struct Lease {
    socket: SocketHandle,
    /// The time since which there is no address, and whether the log says so.
    since: Option<Instant>,
    logged: bool,
    lines: RateLimit,
}

impl Lease {
    /// Makes a client that has no address yet.
    pub fn new(sockets: &mut SocketSet<'static>) -> Lease {
        let mut socket = Socket::new();
        let mut retry = socket.get_retry_config();
        retry.discover_timeout = ASK_AGAIN;
        socket.set_retry_config(retry);
        Lease {
            socket: sockets.add(socket),
            since: None,
            logged: false,
            lines: LINES,
        }
    }

    /// Asks at once if there is no address. An address stays valid although the backend was restarted.
    pub fn ask(&mut self, sockets: &mut SocketSet<'static>, has_address: bool) {
        if !has_address {
            sockets.get_mut::<Socket<'_>>(self.socket).reset();
        }
    }

    /// Logs a line, unless there were too many.
    fn tell(&mut self, now: Instant, level: Level, line: fmt::Arguments<'_>) {
        match self.lines.take(now) {
            true => log::log!(level, "{line}"),
            false => log::debug!("{line}"),
        }
    }

    /// Notes whether there is an address.
    fn note(&mut self, has_address: bool, name: &str, now: Instant) {
        if has_address {
            (self.since, self.logged) = (None, false);
            return;
        }
        let since = *self.since.get_or_insert(now);
        if !self.logged && now.since(since) >= LOG_AFTER {
            self.logged = true;
            let line = format_args!("network {name}: no DHCP server gives an address");
            self.tell(now, Level::Warn, line);
        }
    }
}

impl<H: Hypervisor> InterfaceState<H> {
    /// Takes the address that a server gives, or takes away.
    pub(crate) fn follow_lease(&mut self, name: &str, now: Instant) {
        let (Some(lease), Some(stack)) = (&mut self.lease, &self.stack) else {
            return;
        };
        let HardwareAddress::Ethernet(mac) = stack.hardware_addr();
        let has_address = !self.leased.addresses.is_empty();
        let told = match self.sockets.get_mut::<Socket<'_>>(lease.socket).poll() {
            None => return lease.note(has_address, name, now),
            Some(Event::Deconfigured) => InterfaceSettings::default(),
            Some(Event::Configured(config)) => match settings(&config) {
                Some(settings) => settings,
                None => {
                    let (server, address) = (config.server.address, config.address);
                    let line = format_args!(
                        "network {name}: the DHCP server {server} gives {address}, which no interface can have"
                    );
                    lease.tell(now, Level::Error, line);
                    InterfaceSettings::default()
                }
            },
        };
        lease.note(!told.addresses.is_empty(), name, now);
        if told == self.leased {
            return;
        }
        match told.addresses.first() {
            Some(address) => {
                let line = format_args!("network {name}: the address is {address} (DHCP)");
                lease.tell(now, Level::Info, line);
            }
            None => {
                let line = format_args!("network {name}: the address is given no longer (DHCP)");
                lease.tell(now, Level::Warn, line);
            }
        }
        self.leased = told;
        self.address(mac);
    }

    /// Returns whether there is no address yet, or no longer one, and a server would give one.
    pub(crate) fn waits_for_lease(&self) -> bool {
        self.lease.is_some() && self.leased.addresses.is_empty()
    }
}

/// Returns the settings that a server gives, as far as they are of use; `None` if no interface can have the address.
fn settings(told: &Config<'_>) -> Option<InterfaceSettings> {
    let given = |address: &smoltcp::wire::Ipv4Address| {
        let all = IpAddress::Ipv4(*address);
        all.is_unicast() && !address.is_loopback()
    };
    is_usable(told.address).then(|| InterfaceSettings {
        dhcp: true,
        addresses: [IpCidr::Ipv4(told.address)].into(),
        gateways: told
            .router
            .filter(given)
            .map(IpAddress::Ipv4)
            .into_iter()
            .collect(),
        name_servers: told
            .dns_servers
            .iter()
            .copied()
            .filter(given)
            .map(IpAddress::Ipv4)
            .collect(),
        queues: None,
    })
}

/// Returns whether an interface can have an address: it is neither a network's nor a broadcast address, and not
/// reserved (RFC 1122, 3.2.1.3; RFC 1112, 4).
fn is_usable(address: Ipv4Cidr) -> bool {
    let own = address.address();
    let first = own.octets()[0];
    let is_network = address.prefix_len() < 31 && own == address.network().address();
    let is_reserved = first == 0 || first >= 224 || own.is_loopback();
    address.prefix_len() > 0 && !is_network && !is_reserved && Some(own) != address.broadcast()
}
