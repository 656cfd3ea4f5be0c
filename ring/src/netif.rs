//! The messages of a network interface's two rings (`io/netif.h`), by the Xen interface's own layout.
//!
//! A slot holds a part of a packet or details of one (`struct netif_extra_info`), and only the slots before it tell
//! which. So a message here is the slot's bytes, and its reader asks for the one or the other.

use crate::message::Format;
use bulkhead_xen::GrantRef;
use core::convert::Infallible;

bitflags::bitflags! {
    /// The flags of a packet, or of a part of it (`NETTXF_*`, `NETRXF_*`, which differ in the order of two).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct PacketFlags: u8 {
        /// The TCP or UDP checksum is yet to be computed; the field has that of the pseudo-header.
        const CHECKSUM_BLANK = 1;
        /// The checksum is right.
        const CHECKSUM_VALID = 2;
        /// The next slot that is not of details has more of the packet.
        const MORE_DATA = 4;
        /// The next slot has details.
        const EXTRA_INFO = 8;
    }
}

impl PacketFlags {
    /// Returns them as a transmit request has them.
    fn sent(self) -> u16 {
        self.bits().into()
    }

    /// Reads those of a transmit request.
    fn of_sent(bits: u16) -> Self {
        Self::from_bits_truncate(bits as u8)
    }

    /// Returns them as a receive response has them, where the first two are the other way round.
    fn received(self) -> u16 {
        let bits = self.bits();
        (bits & !3 | (bits & 1) << 1 | (bits & 2) >> 1).into()
    }

    /// Reads those of a receive response.
    fn of_received(bits: u16) -> Self {
        let bits = bits as u8;
        Self::from_bits_truncate(bits & !3 | (bits & 1) << 1 | (bits & 2) >> 1)
    }
}

/// Details of a packet whose slot says that there are some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extra {
    /// `XEN_NETIF_EXTRA_TYPE_*`.
    pub kind: u8,
    /// The next slot has details, too.
    pub more: bool,
    /// The payload of each segment (of kind [`GSO`](Self::GSO)).
    pub segment: u16,
    /// `XEN_NETIF_GSO_TYPE_*` (of that kind).
    pub protocol: u8,
}

impl Extra {
    /// The packet is to be cut into segments.
    pub const GSO: u8 = 1;
    /// The segments are TCP's over IPv4.
    pub const TCPV4: u8 = 1;
    /// The segments are TCP's over IPv6.
    pub const TCPV6: u8 = 2;

    fn bytes(self) -> [u8; 8] {
        let [low, high] = self.segment.to_ne_bytes();
        [
            self.kind,
            self.more.into(),
            low,
            high,
            self.protocol,
            0,
            0,
            0,
        ]
    }

    fn of(bytes: [u8; 8]) -> Self {
        Extra {
            kind: bytes[0],
            more: bytes[1] & 1 != 0,
            segment: u16::from_ne_bytes([bytes[2], bytes[3]]),
            protocol: bytes[4],
        }
    }
}

/// A part of a packet that the frontend sends (`struct netif_tx_request`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TxPart {
    /// The page that it is in.
    pub gref: GrantRef,
    /// Its first byte in the page.
    pub offset: u16,
    /// The flags of the packet, or of this part of it.
    pub flags: PacketFlags,
    /// The request's identifier.
    pub id: u16,
    /// The bytes of the whole packet in the first part, and of the part itself in others.
    pub size: u16,
}

/// A slot with a transmit request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TxRequest([u8; 12]);

impl From<TxPart> for TxRequest {
    fn from(part: TxPart) -> Self {
        let mut bytes = [0; 12];
        bytes[..4].copy_from_slice(&part.gref.0.to_ne_bytes());
        let fields = [part.offset, part.flags.sent(), part.id, part.size];
        for (place, field) in bytes[4..].chunks_exact_mut(2).zip(fields) {
            place.copy_from_slice(&field.to_ne_bytes());
        }
        TxRequest(bytes)
    }
}

impl From<Extra> for TxRequest {
    fn from(extra: Extra) -> Self {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&extra.bytes());
        TxRequest(bytes)
    }
}

impl TxRequest {
    /// Reads it as a part of a packet.
    pub fn part(self) -> TxPart {
        let [a, b, c, d, fields @ ..] = self.0;
        let field = |n: usize| u16::from_ne_bytes([fields[2 * n], fields[2 * n + 1]]);
        TxPart {
            gref: GrantRef(u32::from_ne_bytes([a, b, c, d])),
            offset: field(0),
            flags: PacketFlags::of_sent(field(1)),
            id: field(2),
            size: field(3),
        }
    }

    /// Reads it as details.
    pub fn extra(self) -> Extra {
        let [bytes @ .., _, _, _, _] = self.0;
        Extra::of(bytes)
    }
}

/// The answer to a transmit request (`struct netif_tx_response`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TxResponse {
    /// The request's identifier.
    pub id: u16,
    /// `NETIF_RSP_*`.
    pub status: i16,
}

/// The packet was taken (`NETIF_RSP_OKAY`).
pub const OKAY: i16 = 0;
/// The packet was not taken (`NETIF_RSP_ERROR`).
pub const ERROR: i16 = -1;
/// The packet was dropped (`NETIF_RSP_DROPPED`).
pub const DROPPED: i16 = -2;
/// The answer to a slot with details, which has no identifier (`NETIF_RSP_NULL`).
pub const NULL: i16 = 1;

/// The ring of packets that the frontend sends.
#[derive(Clone, Copy, Debug, Default)]
pub struct NetifTx;

impl Format for NetifTx {
    type Request = TxRequest;
    type Response = TxResponse;
    type Malformed = Infallible;
    type Slot = [u8; 12];
    type ResponseSlot = [u8; 4];

    fn empty_slot(&self) -> [u8; 12] {
        [0; 12]
    }

    fn request_size(&self) -> usize {
        12
    }

    fn response_size(&self) -> usize {
        4
    }

    fn decode_request(&self, slot: &[u8; 12]) -> Result<TxRequest, Infallible> {
        Ok(TxRequest(*slot))
    }

    fn encode_request(&self, request: &TxRequest, slot: &mut [u8; 12]) {
        *slot = request.0;
    }

    fn decode_response(&self, slot: &[u8; 4]) -> TxResponse {
        let [a, b, c, d] = *slot;
        TxResponse {
            id: u16::from_ne_bytes([a, b]),
            status: i16::from_ne_bytes([c, d]),
        }
    }

    fn encode_response(&self, response: &TxResponse) -> [u8; 4] {
        let ([a, b], [c, d]) = (response.id.to_ne_bytes(), response.status.to_ne_bytes());
        [a, b, c, d]
    }
}

/// A page for what the frontend is to receive (`struct netif_rx_request`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RxRequest {
    /// The request's identifier.
    pub id: u16,
    /// The page.
    pub gref: GrantRef,
}

/// A part of a packet that the frontend receives (`struct netif_rx_response`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RxPart {
    /// The identifier of the request whose page it is in.
    pub id: u16,
    /// Its first byte in the page.
    pub offset: u16,
    /// The flags of the packet, or of this part of it.
    pub flags: PacketFlags,
    /// Its bytes, or the reason why there are none.
    pub status: i16,
}

/// A slot with a receive response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RxResponse([u8; 8]);

impl From<RxPart> for RxResponse {
    fn from(part: RxPart) -> Self {
        let mut bytes = [0; 8];
        let status = u16::from_ne_bytes(part.status.to_ne_bytes());
        let fields = [part.id, part.offset, part.flags.received(), status];
        for (place, field) in bytes.chunks_exact_mut(2).zip(fields) {
            place.copy_from_slice(&field.to_ne_bytes());
        }
        RxResponse(bytes)
    }
}

impl From<Extra> for RxResponse {
    fn from(extra: Extra) -> Self {
        RxResponse(extra.bytes())
    }
}

impl From<[u8; 8]> for RxResponse {
    fn from(bytes: [u8; 8]) -> Self {
        RxResponse(bytes)
    }
}

impl RxResponse {
    /// Reads it as a part of a packet.
    pub fn part(self) -> RxPart {
        let field = |n: usize| [self.0[2 * n], self.0[2 * n + 1]];
        RxPart {
            id: u16::from_ne_bytes(field(0)),
            offset: u16::from_ne_bytes(field(1)),
            flags: PacketFlags::of_received(u16::from_ne_bytes(field(2))),
            status: i16::from_ne_bytes(field(3)),
        }
    }

    /// Reads it as details.
    pub fn extra(self) -> Extra {
        Extra::of(self.0)
    }
}

/// The ring of packets that the frontend receives.
#[derive(Clone, Copy, Debug, Default)]
pub struct NetifRx;

impl Format for NetifRx {
    type Request = RxRequest;
    type Response = RxResponse;
    type Malformed = Infallible;
    type Slot = [u8; 8];
    type ResponseSlot = [u8; 8];

    fn empty_slot(&self) -> [u8; 8] {
        [0; 8]
    }

    fn request_size(&self) -> usize {
        8
    }

    fn response_size(&self) -> usize {
        8
    }

    fn decode_request(&self, slot: &[u8; 8]) -> Result<RxRequest, Infallible> {
        let [a, b, _, _, gref @ ..] = *slot;
        Ok(RxRequest {
            id: u16::from_ne_bytes([a, b]),
            gref: GrantRef(u32::from_ne_bytes(gref)),
        })
    }

    fn encode_request(&self, request: &RxRequest, slot: &mut [u8; 8]) {
        slot[..2].copy_from_slice(&request.id.to_ne_bytes());
        slot[4..].copy_from_slice(&request.gref.0.to_ne_bytes());
    }

    fn decode_response(&self, slot: &[u8; 8]) -> RxResponse {
        RxResponse(*slot)
    }

    fn encode_response(&self, response: &RxResponse) -> [u8; 8] {
        response.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_lie_as_the_header_says() {
        let part = TxPart {
            gref: GrantRef(0x0403_0201),
            offset: 0x0605,
            flags: PacketFlags::CHECKSUM_BLANK | PacketFlags::MORE_DATA,
            id: 0x0a09,
            size: 0x0c0b,
        };
        let mut slot = [0; 12];
        NetifTx.encode_request(&part.into(), &mut slot);
        assert_eq!(slot, [1, 2, 3, 4, 5, 6, 5, 0, 9, 10, 11, 12]);
        let Ok(read) = NetifTx.decode_request(&slot);
        assert_eq!(read.part(), part);

        // _NETRXF_csum_blank is 1 and _NETRXF_data_validated 0, the other way round than in NETTXF.
        let part = RxPart {
            id: 0x0201,
            offset: 0x0403,
            flags: PacketFlags::CHECKSUM_BLANK | PacketFlags::EXTRA_INFO,
            status: -2,
        };
        let slot = NetifRx.encode_response(&part.into());
        assert_eq!(slot, [1, 2, 3, 4, 10, 0, 0xfe, 0xff]);
        assert_eq!(NetifRx.decode_response(&slot).part(), part);

        let request = RxRequest {
            id: 0x0201,
            gref: GrantRef(0x0807_0605),
        };
        let mut slot = [0; 8];
        NetifRx.encode_request(&request, &mut slot);
        assert_eq!(slot, [1, 2, 0, 0, 5, 6, 7, 8]);
        assert_eq!(NetifRx.decode_request(&slot), Ok(request));

        let extra = Extra {
            kind: Extra::GSO,
            more: true,
            segment: 0x0403,
            protocol: Extra::TCPV6,
        };
        assert_eq!(
            NetifRx.encode_response(&extra.into()),
            [1, 1, 3, 4, 2, 0, 0, 0]
        );
        let mut slot = [0; 12];
        NetifTx.encode_request(&extra.into(), &mut slot);
        assert_eq!(slot, [1, 1, 3, 4, 2, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(TxRequest::from(extra).extra(), extra);
    }
}
