//! A host in the backend's network.

use crate::half_open::HalfOpen;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, DeviceCapabilities, Medium, PacketMeta};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr, Ipv4Address, Ipv6Address};
use std::collections::VecDeque;

/// Its first address.
pub const ADDRESS: Ipv4Address = Ipv4Address::new(10, 0, 0, 2);
/// Its second address, at which the name server is found, too.
pub const SECOND: Ipv4Address = Ipv4Address::new(10, 0, 0, 4);
/// Its IPv6 address.
pub const ADDRESS6: Ipv6Address = Ipv6Address::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
/// Its Ethernet address.
pub const MAC: EthernetAddress = EthernetAddress([0x02, 0, 0, 0, 0, 2]);

/// The bytes of each of its sockets' buffers.
const BUFFER: usize = 128 << 10;

/// A packet on the network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// True if the TCP checksum is that of the pseudo-header alone, or is missing.
    pub blank: bool,
    /// The payload of each segment that it is to be cut into.
    pub segment: Option<u16>,
}

/// Its network card.
struct Card {
    offload: bool,
    received: VecDeque<Frame>,
    sent: VecDeque<Frame>,
}

/// One end of a connection to the host.
pub type Connection = Socket<'static>;

/// A host's service on one of its ports: called with the connection at each step of the host.
pub type Service = Box<dyn FnMut(&mut Connection)>;

/// The host.
pub struct Peer {
    card: Card,
    stack: Interface,
    sockets: SocketSet<'static>,
    servers: Vec<(SocketHandle, u16)>,
    services: Vec<(SocketHandle, Service)>,
    half_open: HalfOpen,
    /// The bytes that port 9 has taken.
    pub taken: Vec<u8>,
    /// True if port 9 takes nothing.
    pub stalled: bool,
}

impl Peer {
    /// Returns a host. `offload` says whether its network card computes checksums and cuts packets.
    pub fn new(offload: bool) -> Peer {
        let mut card = Card {
            offload,
            received: VecDeque::new(),
            sent: VecDeque::new(),
        };
        let mut config = Config::new(HardwareAddress::Ethernet(MAC));
        config.random_seed = 7;
        let mut stack = Interface::new(config, &mut card, Instant::ZERO);
        stack.update_ip_addrs(|addresses| {
            for address in [
                IpCidr::new(ADDRESS.into(), 24),
                IpCidr::new(SECOND.into(), 24),
                IpCidr::new(ADDRESS6.into(), 64),
            ] {
                addresses.push(address).expect("room for three");
            }
        });
        let mut peer = Peer {
            card,
            stack,
            sockets: SocketSet::new(Vec::new()),
            servers: Vec::new(),
            services: Vec::new(),
            half_open: HalfOpen::default(),
            taken: Vec::new(),
            stalled: false,
        };
        for port in [7, 7, 9] {
            peer.listen(port);
        }
        peer
    }

    /// Serves a port, for one connection at a time. A port may be served several times.
    pub fn serve(&mut self, port: u16, service: Service) {
        let socket = self.listen(port);
        self.services.push((socket, service));
    }

    fn listen(&mut self, port: u16) -> SocketHandle {
        let buffer = || SocketBuffer::new(vec![0; BUFFER]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.listen(port).expect("a port");
        let handle = self.sockets.add(socket);
        self.servers.push((handle, port));
        handle
    }

    /// Takes a packet off the network.
    pub fn receive(&mut self, mut frame: Frame) {
        self.half_open.arrives(&mut frame);
        self.card.received.push_back(frame);
    }

    /// Returns the next packet that the host puts on the network.
    pub fn take_sent(&mut self) -> Option<Frame> {
        let mut frame = self.card.sent.pop_front()?;
        self.half_open.sent(&mut frame);
        Some(frame)
    }

    /// Ends all of its connections.
    pub fn reset(&mut self) {
        for (handle, _) in &self.servers {
            self.sockets.get_mut::<Socket<'_>>(*handle).abort();
        }
    }

    /// Serves ports again whose connections are over: a server has a queue for connections that come meanwhile.
    fn listen_again(&mut self) {
        for (handle, port) in &self.servers {
            let socket = self.sockets.get_mut::<Socket<'_>>(*handle);
            if !socket.is_open() {
                socket.listen(*port).expect("a port");
            }
        }
    }

    /// Does the work that is due. Returns whether there was any. `micros` is the time.
    pub fn step(&mut self, micros: u64) -> bool {
        let before = self.card.received.len();
        let time = Instant::from_micros(micros as i64);
        let mut arrived = core::mem::take(&mut self.card.received);
        while let Some(frame) = arrived.pop_front() {
            self.card.received.push_back(frame);
            self.stack
                .poll_ingress_single(time, &mut self.card, &mut self.sockets);
            self.listen_again();
        }
        self.stack.poll(time, &mut self.card, &mut self.sockets);
        self.listen_again();
        for (handle, port) in &self.servers {
            let socket = self.sockets.get_mut::<Socket<'_>>(*handle);
            if socket.state() == State::CloseWait && !socket.can_recv() {
                socket.close();
            }
            let mut services = self.services.iter_mut();
            if let Some((_, service)) = services.find(|(served, _)| served == handle) {
                service(socket);
                continue;
            }
            if *port == 9 {
                while !self.stalled && socket.can_recv() {
                    let taken = &mut self.taken;
                    let taking = |bytes: &mut [u8]| {
                        taken.extend_from_slice(bytes);
                        (bytes.len(), ())
                    };
                    socket.recv(taking).expect("it can receive");
                }
                continue;
            }
            while socket.can_recv() && socket.can_send() {
                let room = socket.send_capacity() - socket.send_queue();
                let received = socket
                    .recv(|bytes| {
                        let count = bytes.len().min(room);
                        (count, bytes[..count].to_vec())
                    })
                    .expect("it can receive");
                let sent = socket.send_slice(&received);
                assert_eq!(sent, Ok(received.len()));
            }
        }
        self.stack.poll(time, &mut self.card, &mut self.sockets);
        before > 0 || !self.card.sent.is_empty()
    }

    /// Returns the time at which it wants to do something, in microseconds.
    pub fn next_deadline(&mut self, micros: u64) -> Option<u64> {
        let time = Instant::from_micros(micros as i64);
        let next = self.stack.poll_at(time, &self.sockets)?;
        Some((next.total_micros() as u64).max(micros + 1))
    }
}

impl smoltcp::phy::Device for Card {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sending<'_>)> {
        let frame = self.received.pop_front()?;
        let sending = Sending {
            card: self,
            segment: None,
        };
        Some((Received(frame), sending))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        Some(Sending {
            card: self,
            segment: None,
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        if self.offload {
            // What it receives, the backend has checked.
            capabilities.checksum.tcp = Checksum::Rx;
            capabilities.segmentation.tcpv4 = std::num::NonZeroUsize::new(65535);
        }
        capabilities
    }
}

/// A packet that has arrived.
pub struct Received(Frame);

impl smoltcp::phy::RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, look: F) -> R {
        look(&self.0.bytes)
    }
}

/// Room for a packet.
pub struct Sending<'a> {
    card: &'a mut Card,
    segment: Option<u16>,
}

impl smoltcp::phy::TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, make: F) -> R {
        let mut bytes = vec![0; len];
        let made = make(&mut bytes);
        self.card.sent.push_back(Frame {
            bytes,
            blank: self.card.offload,
            segment: self.segment,
        });
        made
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.segment = meta.segmentation_offload_size.map(u16::from);
    }
}
