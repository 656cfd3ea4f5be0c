//! The reply that is being received. Nothing of it is used before it is checked.

use crate::entry::EntryState;
use crate::fault::{Fault, NbdViolation};
use crate::request_table::{RequestTable, Slot};
use crate::wire::{
    CHUNK_HEADER, Chunk, ChunkKind, CommandKind, ErrorCode, REPLY_MAGIC, SIMPLE_REPLY,
    STRUCTURED_MAGIC, SimpleReply, bytes_at,
};

/// The most bytes of a reply that are kept before they are acted on.
const HEAD: usize = CHUNK_HEADER + 12;
/// The bytes of the number with which every reply begins.
const MAGIC: usize = 4;

/// The state of a reply that is being received.
pub struct Receiver {
    head: [u8; HEAD],
    have: usize,
    want: usize,
    /// The bytes that follow its head.
    body: Option<Body>,
}

/// Bytes that follow the head of a reply.
#[derive(Clone, Copy)]
struct Body {
    slot: Slot,
    left: u64,
    /// True if they are data, and not a text.
    data: bool,
    /// True if they are the end of the reply.
    done: bool,
}

impl Receiver {
    pub const IDLE: Receiver = Receiver {
        head: [0; HEAD],
        have: 0,
        want: MAGIC,
        body: None,
    };

    /// Returns whether a reply was received in part.
    pub fn is_amid(&self) -> bool {
        self.have > 0 || self.body.is_some()
    }
}

impl RequestTable {
    /// Takes bytes that have arrived, until there are none or one cannot be right. Returns the number of bytes that
    /// were used.
    #[inline]
    pub(crate) fn take(&mut self, bytes: &[u8], fault: &mut Result<(), Fault>) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            match self.take_some(&bytes[at..]) {
                Ok(taken) => at += taken,
                Err(reason) => {
                    *fault = Err(reason);
                    return bytes.len();
                }
            }
        }
        at
    }

    #[inline]
    fn take_some(&mut self, bytes: &[u8]) -> Result<usize, Fault> {
        if let Some(body) = &mut self.receiver.body {
            let part = body.left.min(bytes.len() as u64) as usize;
            body.left -= part as u64;
            let body = *body;
            if body.data {
                // Of a queue that was closed, there are no segments, and the bytes go nowhere.
                self.entry(body.slot).segments.copy_from(&bytes[..part]);
            }
            if body.left == 0 {
                self.receiver.body = None;
                if body.done {
                    self.answered(body.slot)?;
                }
            }
            return Ok(part);
        }
        let receiver = &mut self.receiver;
        let part = (receiver.want - receiver.have).min(bytes.len());
        receiver.head[receiver.have..receiver.have + part].copy_from_slice(&bytes[..part]);
        receiver.have += part;
        if receiver.have == receiver.want {
            self.head_is_there()?;
        }
        Ok(part)
    }

    #[inline]
    fn head_is_there(&mut self) -> Result<(), Fault> {
        let receiver = &mut self.receiver;
        let magic = u32::from_be_bytes(bytes_at(&receiver.head, 0));
        let next = match (receiver.want, magic) {
            (MAGIC, REPLY_MAGIC) => SIMPLE_REPLY,
            (MAGIC, STRUCTURED_MAGIC) if self.structured => CHUNK_HEADER,
            (MAGIC, _) => return Err(NbdViolation::Magic(magic).into()),
            (SIMPLE_REPLY, _) => {
                let reply = SimpleReply::parse(&receiver.head);
                (receiver.have, receiver.want) = (0, MAGIC);
                return self.simple_reply(reply);
            }
            (want, _) => {
                let chunk = Chunk::parse(&receiver.head);
                let head = chunk.payload_head();
                let head = head.ok_or(NbdViolation::Length {
                    kind: chunk.kind,
                    len: chunk.len,
                })?;
                if want == CHUNK_HEADER + head {
                    (receiver.have, receiver.want) = (0, MAGIC);
                    return self.chunk(chunk);
                }
                CHUNK_HEADER + head
            }
        };
        receiver.want = next;
        Ok(())
    }

    #[inline]
    fn simple_reply(&mut self, reply: SimpleReply) -> Result<(), Fault> {
        let slot = self.find(reply.cookie)?;
        let structured = self.structured;
        let entry = self.entry(slot);
        if reply.error != ErrorCode::NONE {
            entry.note_error(reply.error);
            return self.answered(slot);
        }
        if entry.work.kind != CommandKind::Read {
            return self.answered(slot);
        }
        if structured || entry.state != EntryState::Sent {
            return Err(NbdViolation::SimpleRead.into());
        }
        let left = entry.work.len;
        entry.note_data(0, left)?;
        entry.segments.rewind();
        self.receiver.body = Some(Body {
            slot,
            left,
            data: true,
            done: true,
        });
        Ok(())
    }

    fn chunk(&mut self, chunk: Chunk) -> Result<(), Fault> {
        let slot = self.find(chunk.cookie)?;
        let head = self.receiver.head;
        let payload = &head[CHUNK_HEADER..];
        let mut left = 0;
        let entry = self.entry(slot);
        match chunk.kind {
            ChunkKind::None if chunk.done => {}
            ChunkKind::None | ChunkKind::Other(_) => {
                return Err(NbdViolation::Kind(chunk.kind).into());
            }
            ChunkKind::Data | ChunkKind::Hole => {
                let offset = u64::from_be_bytes(bytes_at(payload, 0));
                let len = match chunk.kind {
                    ChunkKind::Data => u64::from(chunk.len - 8),
                    _ => u32::from_be_bytes(bytes_at(payload, 8)).into(),
                };
                let start = offset.checked_sub(entry.work.offset);
                let start = start.filter(|start| {
                    let end = start.checked_add(len);
                    end.is_some_and(|end| end <= entry.work.len)
                });
                let reads = entry.work.kind == CommandKind::Read && entry.state == EntryState::Sent;
                let start = start.filter(|_| reads && len > 0);
                let start = start.ok_or(NbdViolation::Range { offset, len })?;
                entry.note_data(start, len)?;
                entry.segments.seek(start as usize);
                match chunk.kind {
                    ChunkKind::Data => left = len,
                    _ => entry.segments.zero(len as usize),
                }
            }
            ChunkKind::Error | ChunkKind::ErrorAt | ChunkKind::OtherError => {
                let error = ErrorCode(u32::from_be_bytes(bytes_at(payload, 0)));
                let text = u16::from_be_bytes(bytes_at(payload, 4));
                left = u64::from(chunk.len - 6);
                if error == ErrorCode::NONE || u64::from(text) > left {
                    return Err(NbdViolation::Error.into());
                }
                if !entry.note_error(error) {
                    return Err(NbdViolation::Endless.into());
                }
            }
        }
        if left > 0 {
            self.receiver.body = Some(Body {
                slot,
                left,
                data: chunk.kind == ChunkKind::Data,
                done: chunk.done,
            });
        } else if chunk.done {
            self.answered(slot)?;
        }
        Ok(())
    }

    /// Finds the request that a reply is to.
    #[inline]
    fn find(&mut self, cookie: u64) -> Result<Slot, NbdViolation> {
        let (slot, generation) = Slot::of_cookie(cookie);
        let known = self
            .get(slot)
            .is_some_and(|entry| entry.expects(generation));
        match known {
            true => Ok(slot),
            false => Err(NbdViolation::Cookie(cookie)),
        }
    }

    /// Notes that a reply is complete.
    #[inline]
    fn answered(&mut self, slot: Slot) -> Result<(), Fault> {
        let entry = self.entry(slot);
        if !entry.is_whole() {
            return Err(NbdViolation::TooLittle.into());
        }
        if entry.is_refused_for_now() {
            return Err(Fault::ShuttingDown);
        }
        if entry.state == EntryState::IsSent {
            // What is left of its data is sent all the same: the server looks for the next command behind it.
            return match entry.answered_early() {
                true => Ok(()),
                false => Err(NbdViolation::Early.into()),
            };
        }
        self.settle(slot);
        Ok(())
    }
}
