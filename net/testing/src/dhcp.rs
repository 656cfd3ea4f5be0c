//! A DHCP server.

use crate::datagram::Datagram;
use crate::peer::{ADDRESS, Frame};
use smoltcp::wire::{DhcpMessageType, DhcpPacket, DhcpRepr, EthernetAddress, Ipv4Address};

/// The server's settings for an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The address.
    pub address: Ipv4Address,
    /// The mask of its network.
    pub mask: Option<Ipv4Address>,
    /// The way to other networks.
    pub router: Option<Ipv4Address>,
    /// The name servers; only the first three are sent.
    pub name_servers: Vec<Ipv4Address>,
    /// The seconds for which the address is given.
    pub seconds: Option<u32>,
    /// The seconds until it is to be renewed, and until any server is asked.
    pub renewal: [Option<u32>; 2],
}

impl Default for Lease {
    fn default() -> Lease {
        Lease {
            address: Ipv4Address::new(10, 0, 0, 7),
            mask: Some(Ipv4Address::new(255, 255, 255, 0)),
            router: None,
            name_servers: vec![ADDRESS],
            seconds: Some(3600),
            renewal: [None; 2],
        }
    }
}

/// Changes the bytes of an answer.
type Forgery = Box<dyn FnMut(&mut Vec<u8>)>;

/// A server at [`ADDRESS`].
#[derive(Default)]
pub struct DhcpServer {
    /// True if the server answers; at first it does not.
    pub answers: bool,
    /// True if the server refuses an address that it has offered, once it is asked for.
    pub refuses: bool,
    /// The settings that it gives.
    pub lease: Lease,
    /// The requests that it got, and the address from which each came.
    pub asked: Vec<(DhcpMessageType, Ipv4Address)>,
    forgery: Option<Forgery>,
}

impl DhcpServer {
    /// Has `forgery` change all answers.
    pub fn forge(&mut self, forgery: impl FnMut(&mut Vec<u8>) + 'static) {
        self.forgery = Some(Box::new(forgery));
    }

    /// Returns the number of requests of a kind.
    pub fn asked_for(&self, kind: DhcpMessageType) -> usize {
        self.asked.iter().filter(|asked| asked.0 == kind).count()
    }

    /// Takes a frame that is for the server, and returns the answer.
    pub fn take(&mut self, frame: &Frame) -> Option<Option<Frame>> {
        let question = Datagram::find(frame).filter(|datagram| datagram.destination.1 == 67)?;
        Some(self.answer(&question))
    }

    fn answer(&mut self, question: &Datagram) -> Option<Frame> {
        let packet = DhcpPacket::new_checked(&question.payload[..]).expect("a DHCP packet");
        let asked = DhcpRepr::parse(&packet).expect("a valid DHCP packet");
        assert_eq!(asked.client_hardware_address, question.from);
        self.asked.push((asked.message_type, question.source.0));
        let kind = match asked.message_type {
            DhcpMessageType::Discover => DhcpMessageType::Offer,
            DhcpMessageType::Request if self.refuses => DhcpMessageType::Nak,
            DhcpMessageType::Request => DhcpMessageType::Ack,
            other => panic!("a client does not send {other:?} here"),
        };
        if !self.answers {
            return None;
        }
        let lease = &self.lease;
        let repr = DhcpRepr {
            message_type: kind,
            transaction_id: asked.transaction_id,
            secs: 0,
            client_hardware_address: question.from,
            client_ip: Ipv4Address::UNSPECIFIED,
            your_ip: lease.address,
            server_ip: ADDRESS,
            router: lease.router,
            subnet_mask: lease.mask,
            relay_agent_ip: Ipv4Address::UNSPECIFIED,
            broadcast: true,
            requested_ip: None,
            client_identifier: None,
            server_identifier: Some(ADDRESS),
            parameter_request_list: None,
            dns_servers: Some(lease.name_servers.iter().take(3).copied().collect()),
            max_size: None,
            lease_duration: lease.seconds,
            renew_duration: lease.renewal[0],
            rebind_duration: lease.renewal[1],
            additional_options: &[],
        };
        let mut payload = vec![0; repr.buffer_len()];
        let emitted = repr.emit(&mut DhcpPacket::new_unchecked(&mut payload[..]));
        emitted.expect("room for it");
        if let Some(forgery) = &mut self.forgery {
            forgery(&mut payload);
        }
        let answer = Datagram {
            from: question.from,
            source: (ADDRESS, 67),
            destination: (Ipv4Address::BROADCAST, 68),
            payload,
        };
        Some(answer.frame(EthernetAddress::BROADCAST))
    }
}
