//! Going on with a connection whose user has started again: the streams of bytes of a domain's one ring have no
//! beginning that could be found in them, so the place within a message is kept where it survives the restart.

use crate::connection::Transport;
use crate::error::Breakdown;
use crate::wire::PAYLOAD_MAX;
use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};

/// The memory that survives: two numbers for each direction. All are 0 at the beginning.
pub type Positions = [AtomicU32; 4];

/// Bytes of a message's header, and the place of the length in it.
const HEADER: u32 = 16;
const LENGTH: core::ops::Range<u32> = 12..16;

/// The reason why a connection cannot be gone on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotResumed {
    /// A request was sent in part, and its rest is lost.
    CutOff,
    /// The numbers are none that a connection leaves.
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

/// The place in one of the streams.
#[derive(Clone, Copy, Debug)]
struct Position {
    /// Bytes of the present message that have passed; 0 between messages.
    passed: &'static AtomicU32,
    /// The length of its payload, as far as that has passed.
    length: &'static AtomicU32,
}

impl Position {
    fn new(passed: &'static AtomicU32, length: &'static AtomicU32) -> Result<Self, NotResumed> {
        let limit = PAYLOAD_MAX as u32;
        let possible = passed.load(Ordering::Relaxed) <= HEADER + limit
            && length.load(Ordering::Relaxed) <= limit;
        possible
            .then_some(Position { passed, length })
            .ok_or(NotResumed::Damaged)
    }

    fn is_between_messages(self) -> bool {
        self.passed.load(Ordering::Relaxed) == 0
    }

    fn pass(self, byte: u8) {
        let mut passed = self.passed.load(Ordering::Relaxed);
        let mut length = self.length.load(Ordering::Relaxed);
        if LENGTH.contains(&passed) {
            length |= u32::from(byte) << ((passed - LENGTH.start) * 8);
        }
        passed += 1;
        // A longer one ends the connection anyway.
        if passed >= HEADER && passed - HEADER >= length.min(PAYLOAD_MAX as u32) {
            (passed, length) = (0, 0);
        }
        self.length.store(length, Ordering::Relaxed);
        self.passed.store(passed, Ordering::Relaxed);
    }
}

/// A transport that can be gone on with after a restart.
#[derive(Debug)]
pub struct Resumable<T> {
    inner: T,
    sent: Position,
    received: Position,
    /// True while bytes arrive of a message whose beginning is lost.
    skipping: bool,
}

impl<T: Transport> Resumable<T> {
    /// Goes on where the positions say, with a message that nothing was read or written of.
    pub fn new(inner: T, positions: &'static Positions) -> Result<Self, NotResumed> {
        let [sent, sent_length, received, received_length] = positions;
        let sent = Position::new(sent, sent_length)?;
        let received = Position::new(received, received_length)?;
        if !sent.is_between_messages() {
            return Err(NotResumed::CutOff);
        }
        Ok(Resumable {
            inner,
            sent,
            received,
            skipping: !received.is_between_messages(),
        })
    }

    /// Takes the rest of a message whose beginning is lost off the bytes that have arrived; returns its length.
    fn skip(&mut self, arrived: &[u8]) -> usize {
        let mut skipped = 0;
        for &byte in arrived {
            self.received.pass(byte);
            if self.skipping {
                skipped += 1;
                self.skipping = !self.received.is_between_messages();
            }
        }
        skipped
    }
}

impl<T: Transport> Transport for Resumable<T> {
    fn send(&mut self, bytes: &[u8]) -> Result<usize, Breakdown> {
        let count = self.inner.send(bytes)?;
        bytes[..count].iter().for_each(|&byte| self.sent.pass(byte));
        Ok(count)
    }

    fn receive(&mut self, buffer: &mut [u8]) -> Result<usize, Breakdown> {
        loop {
            let count = self.inner.receive(buffer)?;
            let skipped = self.skip(&buffer[..count]);
            if skipped > 0 {
                // There is room for more, of which nothing else would tell.
                self.inner.notify();
            }
            if skipped < count || count == 0 {
                buffer.copy_within(skipped..count, 0);
                return Ok(count - skipped);
            }
        }
    }

    fn notify(&mut self) {
        self.inner.notify();
    }
}
