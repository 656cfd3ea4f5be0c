//! Going on with a connection whose user has started again: the streams of bytes of a domain's one ring have no
//! beginning that could be found in them, so the place within a message is kept where it survives the restart.
//!
//! The user may be gone after any instruction. So where a stream is to be is noted before the ring's index says so, beside
//! the note for the index that the ring has: the index itself, which changes in one step, then tells which of the two counts.

use crate::connection::Transport;
use crate::error::ConnectionFault;
use crate::ring::Ring;
use crate::wire::PAYLOAD_MAX;
use bulkhead_xen::Hypervisor;
use bulkhead_xen::abi::xs_wire::RING_SIZE;
use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering, compiler_fence};

/// The memory that survives: two notes for each direction. All are 0 at the beginning.
pub type Positions = [AtomicU32; 4];

/// Bytes of a message's header, and the place of the length in it.
const HEADER: u32 = 16;
const LENGTH: core::ops::Range<u32> = 12..16;

/// The reason why a connection cannot be gone on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotResumed {
    /// A request that is longer than the ring was sent in part, and its rest is lost.
    CutOff,
    /// The notes are none that a connection leaves.
    Damaged,
}

impl fmt::Display for NotResumed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NotResumed::CutOff => "a request to xenstored was cut off",
            NotResumed::Damaged => "the place in the stream from xenstored is damaged",
        })
    }
}

/// A place in a stream of messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct StreamPosition {
    /// Bytes of the present message's header that have passed; 0 between messages.
    header: u32,
    /// Within the header: the length of the payload, as far as it has passed. Behind it: the bytes that are to come.
    payload: u32,
}

/// The layout of a note: the place, then the lowest bits of the index of the stream's next byte, then a bit that tells a
/// note from none.
const PAYLOAD_BITS: u32 = 13;
const HEADER_BITS: u32 = 5;
const INDEX_BITS: u32 = 12;
const NOTED: u32 = 1 << 31;

const _: () = assert!(PAYLOAD_BITS + HEADER_BITS + INDEX_BITS == 30);
/// The indexes that are noted together differ by the ring's length at most.
const _: () = assert!((RING_SIZE as u32) < 1 << INDEX_BITS);

/// The largest length that a note has room for. A message that is longer than [`PAYLOAD_MAX`] ends the connection anyway.
const MOST: u32 = (1 << PAYLOAD_BITS) - 1;

impl StreamPosition {
    fn is_between_messages(self) -> bool {
        self.header == 0
    }

    /// Returns the place behind another byte.
    fn pass(self, byte: u8) -> StreamPosition {
        let StreamPosition {
            mut header,
            mut payload,
        } = self;
        if header == HEADER {
            payload -= 1;
        } else {
            if LENGTH.contains(&header) {
                payload |= u32::from(byte) << ((header - LENGTH.start) * 8);
                payload = payload.min(MOST);
            }
            header += 1;
            if header == HEADER {
                payload = payload.min(PAYLOAD_MAX as u32);
            }
        }
        match (header, payload) {
            (HEADER, 0) => StreamPosition::default(),
            _ => StreamPosition { header, payload },
        }
    }

    /// Returns the place behind more bytes.
    fn pass_all(self, bytes: &[u8]) -> StreamPosition {
        bytes.iter().fold(self, |place, byte| place.pass(*byte))
    }

    /// Returns the note of this place, for a stream whose next byte has that index.
    fn note(self, index: u32) -> u32 {
        let index = index & ((1 << INDEX_BITS) - 1);
        NOTED | (index << HEADER_BITS | self.header) << PAYLOAD_BITS | self.payload
    }

    /// Returns the place that a note has for a stream whose next byte has that index.
    fn noted(note: u32, index: u32) -> Option<StreamPosition> {
        let place = StreamPosition {
            header: note >> PAYLOAD_BITS & ((1 << HEADER_BITS) - 1),
            payload: note & MOST,
        };
        let possible = match place.header {
            0..=12 => place.payload == 0,
            13..16 => true,
            HEADER => (1..=PAYLOAD_MAX as u32).contains(&place.payload),
            _ => false,
        };
        (possible && place.note(index) == note).then_some(place)
    }
}

/// Returns whether a request was sent in part, so that no other user could go on with the connection. It may be one that
/// was sent in full since, if no other has followed.
pub fn is_within_request(positions: &Positions) -> bool {
    let [one, other, ..] = positions;
    [one, other].iter().any(|note| {
        let header = note.load(Ordering::Relaxed) >> PAYLOAD_BITS & ((1 << HEADER_BITS) - 1);
        header != 0
    })
}

/// A stream of the connection, in one direction.
#[derive(Debug)]
struct Stream {
    notes: [&'static AtomicU32; 2],
    /// The note that counts.
    current: usize,
    place: StreamPosition,
}

impl Stream {
    /// Returns the stream whose next byte has that index, as the notes say.
    fn find(notes: [&'static AtomicU32; 2], index: u32) -> Result<Stream, NotResumed> {
        let noted = notes.map(|note| note.load(Ordering::Relaxed));
        if noted == [0, 0] {
            let (current, place) = (0, StreamPosition::default());
            notes[current].store(place.note(index), Ordering::Relaxed);
            return Ok(Stream {
                notes,
                current,
                place,
            });
        }
        let places = noted.map(|note| StreamPosition::noted(note, index));
        let (current, place) = match places {
            [Some(place), None] => (0, place),
            [None, Some(place)] => (1, place),
            _ => return Err(NotResumed::Damaged),
        };
        Ok(Stream {
            notes,
            current,
            place,
        })
    }

    /// Notes where the stream is to be once its next byte has that index. Nothing tells which note counts but the ring's
    /// index, which is to be stored next, as a release.
    fn note(&mut self, place: StreamPosition, index: u32) {
        // The other note has counted until the index was last stored, and is written over after that.
        compiler_fence(Ordering::SeqCst);
        self.current = 1 - self.current;
        self.place = place;
        self.notes[self.current].store(place.note(index), Ordering::Relaxed);
    }
}

/// The ring, as a transport that can be gone on with after a restart.
#[derive(Debug)]
pub struct Resumable<H: Hypervisor> {
    ring: Ring<H>,
    sent: Stream,
    received: Stream,
    /// True while bytes arrive of a message whose beginning is lost.
    skipping: bool,
}

impl<H: Hypervisor> Resumable<H> {
    /// Goes on where the positions say, with a message that nothing was read or written of.
    pub fn new(ring: Ring<H>, positions: &'static Positions) -> Result<Self, NotResumed> {
        let [one, other, received_one, received_other] = positions;
        let sent = Stream::find([one, other], ring.sent())?;
        let received = Stream::find([received_one, received_other], ring.taken())?;
        if !sent.place.is_between_messages() {
            return Err(NotResumed::CutOff);
        }
        let skipping = !received.place.is_between_messages();
        Ok(Resumable {
            ring,
            sent,
            received,
            skipping,
        })
    }

    /// Returns how many of the bytes are to be sent now: whole messages, but of one that is longer than the ring.
    fn whole(&self, bytes: &[u8], room: usize) -> usize {
        let most = room.min(bytes.len());
        match self.sent.place.header {
            0 => {}
            HEADER => return most.min(self.sent.place.payload as usize),
            _ => return most,
        }
        let mut whole = 0;
        while let Some(length) = message_length(&bytes[whole..]) {
            if whole == 0 && length > RING_SIZE {
                return if room < HEADER as usize { 0 } else { most };
            }
            if length > most - whole {
                break;
            }
            whole += length;
        }
        whole
    }
}

/// Returns the length of the message at the beginning of the bytes, if they have its header.
fn message_length(bytes: &[u8]) -> Option<usize> {
    let length = bytes.get(LENGTH.start as usize..LENGTH.end as usize)?;
    let length = u32::from_le_bytes(length.try_into().ok()?);
    Some((HEADER.saturating_add(length)) as usize)
}

impl<H: Hypervisor> Transport for Resumable<H> {
    fn send(&mut self, bytes: &[u8]) -> Result<usize, ConnectionFault> {
        let (producer, room) = self.ring.room()?;
        let count = self.whole(bytes, room);
        if count > 0 {
            let (bytes, end) = (&bytes[..count], producer.wrapping_add(count as u32));
            self.ring.write(producer, bytes);
            self.sent.note(self.sent.place.pass_all(bytes), end);
            self.ring.publish(end);
        }
        Ok(count)
    }

    fn receive(&mut self, buffer: &mut [u8]) -> Result<usize, ConnectionFault> {
        loop {
            let (consumer, count) = self.ring.read(buffer)?;
            if count == 0 {
                return Ok(0);
            }
            // The rest of a message whose beginning is lost.
            let (mut place, mut skipped) = (self.received.place, 0);
            while self.skipping && skipped < count {
                place = place.pass(buffer[skipped]);
                skipped += 1;
                self.skipping = !place.is_between_messages();
            }
            let end = consumer.wrapping_add(count as u32);
            let place = place.pass_all(&buffer[skipped..count]);
            self.received.note(place, end);
            self.ring.take(end);
            if skipped > 0 {
                // There is room for more, of which nothing else would tell.
                self.ring.notify();
            }
            if skipped < count {
                buffer.copy_within(skipped..count, 0);
                return Ok(count - skipped);
            }
        }
    }

    fn notify(&mut self) {
        self.ring.notify();
    }
}
