//! A stream over a stream, once both ends know each other.

use crate::client::Asked;
use crate::error::TlsError;
use crate::records::{Progress, Records};
use alloc::sync::Arc;
use bulkhead_stream::{Ended, Stream};
use core::task::Waker;

/// A connection with TLS.
///
/// What is written is encrypted when a record is full, or when the batch ends. What cannot be sent at once is sent by
/// whichever call comes next.
pub struct TlsStream {
    records: Records,
    /// What was filled is to go out, also if no record is full.
    pushed: bool,
    /// There is no more to be written, and the server is to know.
    closes: bool,
    ended: Option<Ended>,
    /// What the server asked for, as long as it has not said anything.
    asked: Option<Arc<Asked>>,
}

impl TlsStream {
    /// Returns a connection after its handshake.
    pub fn new(records: Records) -> TlsStream {
        TlsStream {
            records,
            pushed: false,
            closes: false,
            ended: None,
            asked: None,
        }
    }

    /// Returns the connection, whose end before the server says anything may be for want of what it asked for.
    pub fn or_for_want_of(self, asked: Arc<Asked>) -> TlsStream {
        TlsStream {
            asked: Some(asked),
            ..self
        }
    }

    /// Notes why the connection is over.
    fn end(&mut self, error: &TlsError) -> Ended {
        let ended = match error {
            TlsError::Ended(ended) => *ended,
            _ => Ended::Forged,
        };
        let ended = match &self.asked {
            Some(asked) => asked.judge(ended),
            None => ended,
        };
        if self.ended.is_none() {
            self.ended = Some(ended);
            self.records.give_up();
        }
        ended
    }

    /// Encrypts what is ready, and sends what the stream beneath takes.
    fn go_on(&mut self) -> Result<(), TlsError> {
        loop {
            if !self.records.send_out()? {
                return Ok(());
            }
            if self.records.filled.is_full() || self.pushed && !self.records.filled.is_empty() {
                self.records.seal()?;
                continue;
            }
            self.pushed = false;
            if self.closes {
                self.closes = false;
                self.records.send_close_notify()?;
                let sent = self.records.send_out();
                self.records.stream.push();
                self.records.stream.close();
                sent?;
            }
            return Ok(());
        }
    }
}

impl Stream for TlsStream {
    fn receive(&mut self, take: &mut dyn FnMut(&mut [u8]) -> usize) -> Result<usize, Ended> {
        // Whoever waits for an answer calls nothing else: what was left to send goes now.
        if self.ended.is_none() && self.pushed {
            match self.go_on() {
                Ok(()) => self.records.stream.push(),
                Err(error) => {
                    self.end(&error);
                }
            }
        }
        loop {
            if !self.records.received.is_empty() {
                self.asked = None;
                let taken = take(self.records.received.filled());
                self.records.received.take(taken);
                return Ok(taken);
            }
            if let Some(ended) = self.ended {
                return Err(ended);
            }
            let done = match self.records.process() {
                Ok(Progress::Some) => Ok(true),
                Ok(Progress::Open | Progress::Shaking) => self.records.take_in(),
                Err(error) => Err(error),
            };
            match done {
                Ok(true) => {}
                Ok(false) => return Ok(0),
                Err(error) => {
                    self.end(&error);
                }
            }
        }
    }

    fn send(&mut self, fill: &mut dyn FnMut(&mut [u8]) -> usize) -> Result<usize, Ended> {
        if let Some(ended) = self.ended {
            return Err(ended);
        }
        if self.records.filled.is_full() {
            if let Err(error) = self.go_on() {
                return Err(self.end(&error));
            }
            if self.records.filled.is_full() {
                return Ok(0);
            }
        }
        let filled = fill(self.records.filled.room());
        self.records.filled.fill(filled);
        Ok(filled)
    }

    fn push(&mut self) {
        if self.ended.is_none() {
            self.pushed |= !self.records.filled.is_empty();
            if let Err(error) = self.go_on() {
                self.end(&error);
            }
        }
        self.records.stream.push();
    }

    fn wake_with(&mut self, waker: &Waker) {
        self.records.stream.wake_with(waker);
    }

    fn close(&mut self) {
        self.closes = true;
        self.pushed = true;
        self.push();
    }
}
