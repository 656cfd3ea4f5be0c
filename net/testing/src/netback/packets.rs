//! Packets of the frontend's, and those for it.

use super::checksums::{finish, is_sound};
use super::{NetBack, Rings};
use crate::peer::Frame;
use bulkhead_ring::netif::{Extra, NULL, OKAY, PacketFlags, RxPart, TxResponse};
use bulkhead_xen::{GrantStatus, PAGE_SIZE};
use std::ptr::NonNull;

impl NetBack {
    /// Takes a packet off the ring.
    pub(super) fn take(&mut self, rings: &mut Rings) -> Option<Frame> {
        let Ok(first) = rings.tx.take().expect("an honest frontend")?;
        let first = first.part();
        let (mut part, mut size) = (first, usize::from(first.size));
        let mut frame = Frame {
            blank: first.flags.contains(PacketFlags::CHECKSUM_BLANK),
            ..Frame::default()
        };
        let mut extras = 0;
        if first.flags.contains(PacketFlags::EXTRA_INFO) {
            let Ok(extra) = rings.tx.take().expect("honest").expect("it was announced");
            let extra = extra.extra();
            assert_eq!((extra.kind, extra.more), (Extra::GSO, false));
            assert!(self.offered.offload, "it offers no segmentation");
            frame.segment = Some(extra.segment);
            extras = 1;
            self.segmented += 1;
        }
        let mut parts = vec![];
        while part.flags.contains(PacketFlags::MORE_DATA) {
            assert!(self.offered.parts, "it takes no packets of several parts");
            let Ok(next) = rings.tx.take().expect("honest").expect("it was announced");
            part = next.part();
            size = size
                .checked_sub(usize::from(part.size))
                .expect("parts of the packet");
            parts.push(part);
        }
        let first_part = (first.gref, first.offset, size, first.id);
        let rest = parts
            .iter()
            .map(|part| (part.gref, part.offset, part.size.into(), part.id));
        let all: Vec<_> = [first_part].into_iter().chain(rest).collect();
        assert!(all.len() <= 18, "XEN_NETIF_NR_SLOTS_MIN");
        for (gref, offset, len, id) in all {
            assert!(len > 0 && usize::from(offset) + len <= PAGE_SIZE);
            self.copy(gref, offset, len, false);
            frame.bytes.extend(self.bytes(len));
            let written = self.try_copy(gref, offset, len, true);
            assert_ne!(written, GrantStatus::OKAY, "what is sent can be changed");
            let status = OKAY;
            rings.tx.respond(&TxResponse { id, status }).expect("asked");
            for _ in 0..core::mem::take(&mut extras) {
                let nothing = TxResponse {
                    id: 0xffff,
                    status: NULL,
                };
                rings.tx.respond(&nothing).expect("asked");
            }
        }
        if frame.blank {
            finish(&mut frame.bytes);
            frame.blank = false;
        }
        assert!(is_sound(&frame.bytes), "a packet with a wrong checksum");
        assert!(frame.bytes.len() <= 1514 || frame.segment.is_some());
        Some(frame)
    }

    /// Puts a packet into the frontend's pages. Returns false if there are not enough.
    pub(super) fn put(&mut self, rings: &mut Rings, frame: &Frame) -> bool {
        let (most, offset) = self.part;
        let chunks: Vec<&[u8]> = frame.bytes.chunks(most).collect();
        let extra = usize::from(frame.segment.is_some());
        if rings.pages.len() < chunks.len() + extra {
            return false;
        }
        for (number, chunk) in chunks.iter().enumerate() {
            let request = rings.pages.pop_front().expect("enough");
            // SAFETY: the own page.
            unsafe {
                let from = NonNull::from(*chunk).cast();
                self.page.copy_from_nonoverlapping(from, chunk.len());
            }
            self.copy(request.gref, offset, chunk.len(), true);
            if std::mem::take(&mut self.keeps_page) {
                self.keep(request.gref);
            }
            let mut flags = PacketFlags::empty();
            flags.set(PacketFlags::MORE_DATA, number + 1 < chunks.len());
            if number == 0 && frame.blank {
                flags |= PacketFlags::CHECKSUM_BLANK | PacketFlags::CHECKSUM_VALID;
            }
            flags.set(PacketFlags::EXTRA_INFO, number == 0 && extra == 1);
            let part = RxPart {
                id: request.id,
                offset,
                flags,
                status: chunk.len() as i16,
            };
            rings.rx.respond(&part.into()).expect("asked");
            if let (0, Some(segment)) = (number, frame.segment) {
                rings.pages.pop_front().expect("enough");
                let details = Extra {
                    kind: Extra::GSO,
                    more: false,
                    segment,
                    protocol: Extra::TCPV4,
                };
                rings.rx.respond(&details.into()).expect("asked");
            }
        }
        true
    }
}
