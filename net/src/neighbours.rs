//! Asks for the Ethernet addresses of hosts that packets are about to be sent to.
//!
//! The stack asks for one host a second, whichever it needs (`SILENT_TIME` in smoltcp): of several servers, each after
//! the first one would be connected to a second later than the one before it, and so it would be for the streams that go
//! on over a backend that was restarted. So each host is asked for here as well, at once; the stack takes the answers,
//! and sends what waits for them.

use crate::device::{NetDevice, domain_time};
use alloc::vec::Vec;
use bulkhead_xen::{Hypervisor, Instant};
use core::time::Duration;
use smoltcp::iface::Interface as Stack;
use smoltcp::phy::{ChecksumCapabilities, Device as _, TxToken};
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    EthernetRepr, HardwareAddress, Icmpv6Message, Icmpv6Packet, Icmpv6Repr, IpAddress, IpCidr,
    IpProtocol, Ipv4Address, Ipv6Address, Ipv6Packet, Ipv6Repr, NdiscRepr,
};

/// The most hosts that are asked for at a time: as many as the stack remembers (`iface-neighbor-cache-count-64`).
const MOST: usize = 64;
/// How often a host is asked for, and the time between. The stack goes on by itself after that.
const TIMES: u8 = 5;
const PAUSE: Duration = Duration::from_secs(1);

/// The hosts that have not answered yet.
#[derive(Default)]
pub struct Neighbours(Vec<Asked>);

/// A host that is asked for.
struct Asked {
    host: IpAddress,
    /// The time of the next question, and how many there are to be.
    next: Instant,
    left: u8,
}

impl Neighbours {
    /// Asks for a host from now on.
    pub fn want(&mut self, host: IpAddress, now: Instant) {
        let is_asked = self.0.iter().any(|asked| asked.host == host);
        if !is_asked && self.0.len() < MOST {
            self.0.push(Asked {
                host,
                next: now,
                left: TIMES,
            });
        }
    }

    /// Returns the time of the next question.
    pub fn next(&self) -> Option<Instant> {
        self.0.iter().map(|asked| asked.next).min()
    }

    /// Takes the next host that is to be asked for now.
    fn take_due(&mut self, now: Instant) -> Option<IpAddress> {
        let place = self.0.iter().position(|asked| asked.next <= now)?;
        let asked = &mut self.0[place];
        let host = asked.host;
        (asked.next, asked.left) = (now + PAUSE, asked.left - 1);
        if asked.left == 0 {
            self.0.swap_remove(place);
        }
        Some(host)
    }

    /// Looks at a packet that has arrived: a host that has answered is not asked for any more.
    #[inline]
    pub fn received(&mut self, frame: &[u8]) {
        if !self.0.is_empty()
            && let Some(host) = answering(frame)
        {
            self.0.retain(|asked| asked.host != host);
        }
    }
}

/// Returns the host that answers a question for it by a packet.
fn answering(frame: &[u8]) -> Option<IpAddress> {
    let ethernet = EthernetFrame::new_checked(frame).ok()?;
    match ethernet.ethertype() {
        EthernetProtocol::Arp => {
            let packet = ArpPacket::new_checked(ethernet.payload()).ok()?;
            match ArpRepr::parse(&packet).ok()? {
                ArpRepr::EthernetIpv4 {
                    operation: ArpOperation::Reply,
                    source_protocol_addr,
                    target_protocol_addr,
                    ..
                } if source_protocol_addr != target_protocol_addr => {
                    Some(source_protocol_addr.into())
                }
                _ => None,
            }
        }
        EthernetProtocol::Ipv6 => {
            let ip = Ipv6Packet::new_checked(ethernet.payload()).ok()?;
            let icmp = Icmpv6Packet::new_checked(ip.payload());
            let icmp = icmp
                .ok()
                .filter(|_| ip.next_header() == IpProtocol::Icmpv6)?;
            let answers = icmp.msg_type() == Icmpv6Message::NeighborAdvert;
            answers.then(|| ip.src_addr().into())
        }
        _ => None,
    }
}

/// Returns the host to which packets for an address are sent: itself, or a gateway.
pub fn next_hop(stack: &Stack, address: &IpAddress) -> Option<IpAddress> {
    let is_near = |network: &IpCidr| network.contains_addr(address);
    if stack.ip_addrs().iter().any(is_near) {
        return Some(*address);
    }
    let routes = stack.routes();
    let gateway = match address {
        IpAddress::Ipv4(_) => routes.get_default_ipv4_route(),
        IpAddress::Ipv6(_) => routes.get_default_ipv6_route(),
    };
    gateway.map(|gateway| gateway.via_router)
}

/// A packet that asks for a host.
enum Question {
    Ipv4 { own: Ipv4Address, host: Ipv4Address },
    Ipv6 { own: Ipv6Address, host: Ipv6Address },
}

impl Question {
    /// Returns the question for a host; `None` if the domain has no address in its network.
    fn of(stack: &Stack, host: IpAddress) -> Option<Question> {
        let is_near = |network: &&IpCidr| network.contains_addr(&host);
        let own = stack.ip_addrs().iter().find(is_near)?.address();
        match (own, host) {
            (IpAddress::Ipv4(own), IpAddress::Ipv4(host)) => Some(Question::Ipv4 { own, host }),
            (IpAddress::Ipv6(own), IpAddress::Ipv6(host)) => Some(Question::Ipv6 { own, host }),
            _ => None,
        }
    }

    /// Sends the question by a device whose address is `mac`.
    fn send(&self, token: impl TxToken, mac: EthernetAddress) {
        match *self {
            Question::Ipv4 { own, host } => {
                let question = ArpRepr::EthernetIpv4 {
                    operation: ArpOperation::Request,
                    source_hardware_addr: mac,
                    source_protocol_addr: own,
                    target_hardware_addr: EthernetAddress([0; 6]),
                    target_protocol_addr: host,
                };
                let ethernet = EthernetRepr {
                    src_addr: mac,
                    dst_addr: EthernetAddress::BROADCAST,
                    ethertype: EthernetProtocol::Arp,
                };
                token.consume(ethernet.buffer_len() + question.buffer_len(), |bytes| {
                    let mut frame = EthernetFrame::new_unchecked(bytes);
                    ethernet.emit(&mut frame);
                    question.emit(&mut ArpPacket::new_unchecked(frame.payload_mut()));
                });
            }
            Question::Ipv6 { own, host } => {
                let question = Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit {
                    target_addr: host,
                    lladdr: Some(HardwareAddress::Ethernet(mac).into()),
                });
                let [.., x, y, z] = host.octets();
                let last = u16::from_be_bytes([y, z]);
                let ip = Ipv6Repr {
                    src_addr: own,
                    // The group of the hosts with these last bytes (RFC 4291, 2.7.1).
                    dst_addr: Ipv6Address::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(x), last),
                    next_header: IpProtocol::Icmpv6,
                    payload_len: question.buffer_len(),
                    hop_limit: 255,
                };
                let ethernet = EthernetRepr {
                    src_addr: mac,
                    // The same group on Ethernet (RFC 2464, 7).
                    dst_addr: EthernetAddress([0x33, 0x33, 0xff, x, y, z]),
                    ethertype: EthernetProtocol::Ipv6,
                };
                let len = ethernet.buffer_len() + ip.buffer_len() + ip.payload_len;
                token.consume(len, |bytes| {
                    let mut frame = EthernetFrame::new_unchecked(bytes);
                    ethernet.emit(&mut frame);
                    let mut packet = Ipv6Packet::new_unchecked(frame.payload_mut());
                    ip.emit(&mut packet);
                    question.emit(
                        &ip.src_addr,
                        &ip.dst_addr,
                        &mut Icmpv6Packet::new_unchecked(packet.payload_mut()),
                        &ChecksumCapabilities::default(),
                    );
                });
            }
        }
    }
}

impl<H: Hypervisor> NetDevice<H> {
    /// Sends the questions that are due, if there is room for them.
    pub fn ask_for_hosts(&mut self, stack: &Stack, now: smoltcp::time::Instant) {
        let HardwareAddress::Ethernet(mac) = stack.hardware_addr();
        while self.has_room()
            && let Some(host) = self.neighbours.take_due(domain_time(now))
        {
            if let Some(question) = Question::of(stack, host)
                && let Some(token) = self.transmit(now)
            {
                question.send(token, mac);
            }
        }
    }
}
