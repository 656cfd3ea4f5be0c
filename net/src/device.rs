//! The rings, in the form in which the TCP/IP stack uses them.

use crate::backend_nodes::Offer;
use crate::duplicate::{OPTION, report};
use crate::lease::DhcpAnswers;
use crate::neighbours::Neighbours;
use crate::packet::{Contents, Packet, Segmentation, complete};
use crate::rings::Rings;
use crate::sender::{LARGEST_SENT, Sender};
use crate::sequences::{Repeats, Sequences};
use crate::violation::NetifViolation;
use alloc::vec;
use alloc::vec::Vec;
use bulkhead_ring::netif::{Extra, PacketFlags};
use bulkhead_xen::Hypervisor;
use core::num::{NonZeroU16, NonZeroUsize};
use smoltcp::phy::{Checksum, DeviceCapabilities, Medium, PacketMeta};
use smoltcp::time::Instant;

/// The bytes of an Ethernet header.
pub const ETHERNET_HEADER: usize = 14;

/// The most bytes of a packet that acknowledges and carries no data: headers of Ethernet, IPv6 and TCP.
const SMALL: usize = ETHERNET_HEADER + 40 + 20;

/// Packets and bytes so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PacketCounts {
    /// Packets that arrived.
    pub received: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Packets that were sent.
    pub sent: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Packets that arrived with a wrong checksum.
    pub damaged: u64,
    /// Packets that the backend did not take, or could not deliver.
    pub refused: u64,
    /// Packets of connections that were sent again.
    pub repeats: Repeats,
}

/// Returns a time of the stack's as a time of the domain's clock.
pub fn domain_time(time: Instant) -> bulkhead_xen::Instant {
    bulkhead_xen::Instant(time.total_micros().unsigned_abs().saturating_mul(1000))
}

/// A network device: connected or not.
pub struct NetDevice<H: Hypervisor> {
    /// The rings, while there is a backend.
    pub rings: Option<Rings<H>>,
    /// The features of the backend.
    pub offer: Offer,
    /// The breach of the protocol that the backend has committed.
    pub violation: Option<NetifViolation>,
    /// The answers of DHCP servers, if it uses DHCP.
    pub dhcp: Option<DhcpAnswers>,
    /// The hosts that are asked for.
    pub neighbours: Neighbours,
    /// The connections over it.
    pub sequences: Sequences,
    counts: PacketCounts,
}

impl<H: Hypervisor> NetDevice<H> {
    /// Returns a device without a backend.
    pub fn new() -> Self {
        NetDevice {
            rings: None,
            offer: Offer::default(),
            violation: None,
            dhcp: None,
            neighbours: Neighbours::default(),
            sequences: Sequences::default(),
            counts: PacketCounts::default(),
        }
    }

    /// Returns the packets and bytes so far.
    pub fn counts(&self) -> PacketCounts {
        let refused = self.rings.as_ref().map_or(0, Rings::refused);
        PacketCounts {
            refused: self.counts.refused + refused,
            repeats: self.sequences.counts(),
            ..self.counts
        }
    }

    /// Ends the connection to the backend, and returns its rings.
    pub fn disconnect(&mut self) -> Option<Rings<H>> {
        let rings = self.rings.take()?;
        self.counts.refused += rings.refused();
        Some(rings)
    }

    /// Returns whether a packet can be sent now.
    pub fn has_room(&self) -> bool {
        self.rings.as_ref().is_some_and(|rings| rings.tx.has_room())
    }

    /// Calls `act` with the rings, if there are any and the backend has kept to the protocol.
    fn with<T>(
        &mut self,
        act: impl FnOnce(&mut Rings<H>) -> Result<T, NetifViolation>,
    ) -> Option<T> {
        let rings = self.rings.as_mut().filter(|_| self.violation.is_none())?;
        match act(rings) {
            Ok(value) => Some(value),
            Err(violation) => {
                self.violation = Some(violation);
                None
            }
        }
    }

    /// Returns the numbers of packets that each queue has received and sent since the backend has connected.
    pub fn queues(&self) -> Vec<(u64, u64)> {
        let rings = self.rings.as_ref();
        rings.map_or_else(Vec::new, |rings| rings.packets().collect())
    }

    /// Takes the backend's answers.
    pub fn collect(&mut self) {
        self.with(|rings| rings.tx.collect());
    }

    /// Begins a turn of receiving packets.
    pub fn turn(&mut self) {
        if let Some(rings) = &mut self.rings {
            rings.rx.turn();
        }
    }

    /// Shows the backend what was put into the rings.
    pub fn publish(&mut self) {
        if let Some(rings) = &mut self.rings {
            rings.publish();
        }
    }

    /// Asks the backend to notify this end of the next packet or answer. Returns true if there is one already.
    pub fn final_check(&mut self) -> bool {
        self.with(Rings::final_check).unwrap_or(false)
    }

    /// Receives the next packet with a right checksum.
    fn next(&mut self, now: Instant) -> Option<Packet> {
        loop {
            let rings = self.rings.as_mut().filter(|_| self.violation.is_none())?;
            let packet = match rings.rx.receive() {
                Ok(packet) => packet?,
                Err(violation) => {
                    self.violation = Some(violation);
                    return None;
                }
            };
            let vouched = PacketFlags::CHECKSUM_BLANK | PacketFlags::CHECKSUM_VALID;
            let contents = Contents::of(rings.rx.bytes(&packet));
            if packet.flags.intersects(vouched) || contents.is_sound() {
                if let Some(dhcp) = &mut self.dhcp
                    && !dhcp.admit(&contents, domain_time(now))
                {
                    continue;
                }
                if let Some((source, tcp)) = contents.tcp()
                    && !self.sequences.received(source, &tcp)
                {
                    continue;
                }
                self.neighbours.received(rings.rx.bytes(&packet));
                self.counts.received += 1;
                self.counts.received_bytes += packet.len as u64;
                return Some(packet);
            }
            self.counts.damaged += 1;
        }
    }
}

impl<H: Hypervisor> smoltcp::phy::Device for NetDevice<H> {
    type RxToken<'a> = RxToken<'a>;
    type TxToken<'a> = TxToken<'a, H>;

    fn receive(&mut self, now: Instant) -> Option<(RxToken<'_>, TxToken<'_, H>)> {
        // There may be an answer to the packet.
        if !self.has_room() {
            self.collect();
        }
        if !self.has_room() {
            return None;
        }
        let packet = self.next(now)?;
        let rings = self.rings.as_mut()?;
        let frame = rings.rx.bytes(&packet);
        let token = TxToken {
            sender: &mut rings.tx,
            counts: &mut self.counts,
            offer: &self.offer,
            sequences: &mut self.sequences,
            dhcp: &mut self.dhcp,
            segment: None,
        };
        Some((RxToken(frame), token))
    }

    fn transmit(&mut self, _: Instant) -> Option<TxToken<'_, H>> {
        if !self.has_room() {
            self.collect();
        }
        if !self.has_room() || self.violation.is_some() {
            return None;
        }
        Some(TxToken {
            sender: &mut self.rings.as_mut()?.tx,
            counts: &mut self.counts,
            offer: &self.offer,
            sequences: &mut self.sequences,
            dhcp: &mut self.dhcp,
            segment: None,
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = usize::from(self.offer.mtu) + ETHERNET_HEADER;
        // This end verifies and computes them where the backend does not (`packet`): the stack's notion of who does
        // what is the same for all packets.
        capabilities.checksum.tcp = Checksum::None;
        capabilities.checksum.udp = Checksum::Tx;
        let largest = NonZeroUsize::new(LARGEST_SENT);
        capabilities.segmentation.tcpv4 = largest.filter(|_| self.offer.gso_tcpv4);
        // Over IPv6, the stack drops what would have to be cut.
        capabilities.segmentation.tcpv6 = None;
        capabilities
    }
}

/// A packet that has arrived.
pub struct RxToken<'a>(&'a [u8]);

impl smoltcp::phy::RxToken for RxToken<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, look: F) -> R {
        look(self.0)
    }
}

/// Room for a packet that is to be sent.
pub struct TxToken<'a, H: Hypervisor> {
    sender: &'a mut Sender<H>,
    counts: &'a mut PacketCounts,
    offer: &'a Offer,
    sequences: &'a mut Sequences,
    dhcp: &'a mut Option<DhcpAnswers>,
    segment: Option<NonZeroU16>,
}

impl<H: Hypervisor> smoltcp::phy::TxToken for TxToken<'_, H> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, make: F) -> R {
        // An acknowledgement is small; one with bytes behind it has no room for what came twice.
        let reports = self.sequences.any_duplicate() && len <= SMALL;
        let room = len + if reports { OPTION } else { 0 };
        let Some(frame) = self.sender.frame(room) else {
            // There is room, and the stack keeps to the sizes in the capabilities; if not, the packet is lost.
            return make(&mut vec![0; len]);
        };
        let made = make(&mut frame.bytes[..len]);
        let len = match reports {
            true => report(frame.bytes, len, self.sequences),
            false => len,
        };
        let flow = complete(&mut frame.bytes[..len], self.offer.offload, self.sequences);
        if let (Some(dhcp), Some(transaction)) = (&mut *self.dhcp, flow.dhcp) {
            dhcp.asked(transaction);
        }
        let place = (frame.page, len);
        let segmentation = self.segment.map(|segment| Segmentation {
            segment: segment.get(),
            protocol: Extra::TCPV4,
        });
        if self.sender.send(place, flow, segmentation) {
            self.counts.sent += 1;
            self.counts.sent_bytes += len as u64;
        }
        made
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.segment = meta.segmentation_offload_size;
    }
}
