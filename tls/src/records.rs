//! A connection's records: bytes in and out, and what rustls makes of them.

use crate::buffer::Buffer;
use crate::error::TlsError;
use alloc::boxed::Box;
use bulkhead_stream::{Ended, Stream};
use rustls::client::UnbufferedClientConnection;
use rustls::unbuffered::{ConnectionState, EncryptError, UnbufferedStatus};

/// Records that have arrived: more than the longest one, and more than a chain of certificates that makes sense. No
/// message of a handshake may be longer, however many records it comes in.
const ARRIVED: usize = 32 << 10;

/// The data of one record.
const RECORD: usize = 1 << 14;

/// The longest record, with its header, a tag, and what else there is around data.
const LONGEST: usize = RECORD + 1024;

/// The records that are to be sent: one with data, and as much again for messages of TLS itself. Data is only encrypted
/// if there is nothing; rustls never has more than one of these messages after the handshake.
const TO_SEND: usize = 2 * LONGEST;

/// The bytes that a server may send without any data in them. A handshake has less, and so has what comes between data.
const MOST_WITHOUT_DATA: usize = 128 << 10;

/// The records without data that a server may send after the handshake, as those that renew keys: each one costs a
/// hundred times what its bytes say. There may be one more after each [`DATA_FOR_ONE`] bytes of data.
const MOST_EMPTY: usize = 128;
const DATA_FOR_ONE: usize = 16 << 10;

/// The bytes of a record without data that count as one more: it may have many session tickets, of 18 bytes, and each
/// one costs as much as new keys. Two of a good server have a few KiB.
const BYTES_OF_ONE: usize = 128;

/// The header of a record, and the offset of its length (RFC 8446, 5.1).
const HEADER: usize = 5;
const LENGTH: usize = 3;

/// Returns the bytes of the record at the beginning of `bytes`, if it is there as a whole.
fn whole_record(bytes: &[u8]) -> Option<usize> {
    let header = bytes.get(..HEADER)?;
    let len = u16::from_be_bytes([header[LENGTH], header[LENGTH + 1]]);
    let all = HEADER + usize::from(len);
    (all <= bytes.len()).then_some(all)
}

/// The records at the front of what has arrived that rustls was given: one at a time, since it takes all that have no data in
/// one step.
///
/// rustls decrypts them where they are, and moves the parts of a message together, over the headers between them; until the
/// message is whole, it wants to see all of them again. So no header is read once rustls was given its record, and
/// rustls is never given less than before.
#[derive(Default)]
struct Given {
    bytes: usize,
    /// The bytes of the last one, as long as it is not known whether it has data. There is no next one before that.
    unknown: Option<usize>,
}

/// Returns what the end of the stream beneath is for TLS. Only TLS itself can say that no more comes: anybody on the way
/// can close a connection.
fn cut_off(ended: Ended) -> Ended {
    match ended {
        Ended::Closed => Ended::Truncated,
        other => other,
    }
}

/// The outcome of [`Records::process`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// A step was done; there may be more to do.
    Some,
    /// Nothing more can be done before more has arrived. The handshake is over, and data can be sent.
    Open,
    /// Nothing more can be done before more has arrived, because of the handshake.
    Shaking,
}

/// What is done once data can be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Nothing,
    Seal,
    Close,
}

/// A connection, and what is on its way through it.
pub struct Records {
    connection: UnbufferedClientConnection,
    pub stream: Box<dyn Stream>,
    arrived: Buffer,
    given: Given,
    /// Data that has arrived. There is room for all that is in `arrived`, because nothing more arrives while there is
    /// data.
    pub received: Buffer,
    /// Data that is to be sent.
    pub filled: Buffer,
    to_send: Buffer,
    without_data: usize,
    /// The records without data that the server may still send, once the handshake is over, and the data of which the next
    /// one is earned.
    empty_left: Option<usize>,
    data: usize,
    /// The server has said that no more data comes.
    is_over: bool,
}

impl Records {
    /// Takes the memory of a connection.
    pub fn new(
        stream: Box<dyn Stream>,
        connection: UnbufferedClientConnection,
    ) -> Result<Records, TlsError> {
        Ok(Records {
            connection,
            stream,
            arrived: Buffer::new(ARRIVED)?,
            given: Given::default(),
            received: Buffer::new(ARRIVED)?,
            filled: Buffer::new(RECORD)?,
            to_send: Buffer::new(TO_SEND)?,
            without_data: 0,
            empty_left: None,
            data: 0,
            is_over: false,
        })
    }

    /// Takes what has arrived from the stream. Returns whether anything has.
    pub fn take_in(&mut self) -> Result<bool, TlsError> {
        debug_assert!(self.received.is_empty());
        if self.is_over {
            return Err(TlsError::Ended(Ended::Closed));
        }
        // A whole record, or a whole message of the handshake, would have been taken out.
        if self.arrived.is_full() || self.without_data > MOST_WITHOUT_DATA {
            return Err(TlsError::TooLong);
        }
        let room = self.arrived.room();
        let mut some = |bytes: &mut [u8]| {
            let part = bytes.len().min(room.len());
            room[..part].copy_from_slice(&bytes[..part]);
            part
        };
        match self.stream.receive(&mut some) {
            Ok(bytes) => {
                self.arrived.fill(bytes);
                self.without_data += bytes;
                Ok(bytes > 0)
            }
            Err(ended) => Err(TlsError::Ended(cut_off(ended))),
        }
    }

    /// Sends what the stream takes. Returns whether that was everything.
    pub fn send_out(&mut self) -> Result<bool, Ended> {
        while !self.to_send.is_empty() {
            let waiting = self.to_send.filled();
            let mut some = |room: &mut [u8]| {
                let part = room.len().min(waiting.len());
                room[..part].copy_from_slice(&waiting[..part]);
                part
            };
            match self.stream.send(&mut some) {
                Ok(0) => return Ok(false),
                Ok(sent) => self.to_send.take(sent),
                Err(ended) => return Err(cut_off(ended)),
            }
        }
        Ok(true)
    }

    /// Has rustls go on with what has arrived, by one step.
    pub fn process(&mut self) -> Result<Progress, TlsError> {
        self.step(Then::Nothing)
    }

    /// Encrypts the data that is to be sent, unless what was encrypted before has to go first. Data that has arrived is
    /// decrypted on the way.
    pub fn seal(&mut self) -> Result<(), TlsError> {
        while self.to_send.is_empty() && !self.filled.is_empty() {
            if self.step(Then::Seal)? == Progress::Shaking {
                break;
            }
        }
        Ok(())
    }

    /// Encrypts that nothing more comes.
    pub fn send_close_notify(&mut self) -> Result<(), TlsError> {
        while self.step(Then::Close)? == Progress::Some {}
        Ok(())
    }

    /// Tells the server by an alert why rustls gives up, and ends the connection.
    pub fn give_up(&mut self) {
        // If there is an alert, it is the next that rustls has. After that, it must not be asked for anything more.
        let _ = self.process();
        let _ = self.send_out();
        self.stream.push();
        self.stream.close();
    }

    fn step(&mut self, then: Then) -> Result<Progress, TlsError> {
        let Records {
            connection,
            arrived,
            given,
            received,
            filled,
            to_send,
            without_data,
            data: data_before,
            is_over,
            ..
        } = self;
        let all = arrived.filled().len();
        if given.unknown.is_none() {
            given.unknown = whole_record(&arrived.filled()[given.bytes..]);
            given.bytes += given.unknown.unwrap_or(0);
        }
        let is_more = whole_record(&arrived.filled()[given.bytes..]).is_some();
        // A part of a record is shown, too: its header may be wrong.
        let shown = if is_more { given.bytes } else { all };
        let UnbufferedStatus { mut discard, state } =
            connection.process_tls_records(&mut arrived.filled()[..shown]);
        let progress = match state {
            Err(error) => Err(error.into()),
            Ok(ConnectionState::ReadTraffic(mut data)) => {
                let mut whole = Ok(Progress::Some);
                while let Some(Ok(record)) = data.next_record() {
                    discard += record.discard;
                    match received.room().get_mut(..record.payload.len()) {
                        Some(room) => room.copy_from_slice(record.payload),
                        // There is room for more than has arrived.
                        None => {
                            whole = Err(TlsError::TooLong);
                            break;
                        }
                    }
                    received.fill(record.payload.len());
                    // A server may send application data of no bytes at all.
                    if !record.payload.is_empty() {
                        *without_data = 0;
                        given.unknown = None;
                        *data_before += record.payload.len();
                    }
                }
                whole
            }
            Ok(ConnectionState::EncodeTlsData(mut message)) => match message.encode(to_send.room())
            {
                Ok(bytes) => {
                    to_send.fill(bytes);
                    Ok(Progress::Some)
                }
                // It is lost; so is the connection.
                Err(_) => Err(TlsError::TooLong),
            },
            Ok(ConnectionState::TransmitTlsData(sending)) => {
                // All that is encoded is sent in its order.
                sending.done();
                Ok(Progress::Some)
            }
            Ok(ConnectionState::BlockedHandshake) => Ok(Progress::Shaking),
            Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                let written = match then {
                    Then::Nothing => Ok(0),
                    Then::Seal => traffic.encrypt(filled.filled(), to_send.room()),
                    Then::Close => traffic.queue_close_notify(to_send.room()),
                };
                match written {
                    Ok(bytes) => {
                        to_send.fill(bytes);
                        if then == Then::Seal {
                            let all = filled.filled().len();
                            filled.take(all);
                        }
                        Ok(Progress::Open)
                    }
                    Err(EncryptError::InsufficientSize(_)) => Err(TlsError::TooLong),
                    Err(EncryptError::EncryptExhausted) => Err(TlsError::Ended(Ended::KeysUsedUp)),
                }
            }
            Ok(ConnectionState::PeerClosed) => {
                *is_over = true;
                // What follows means nothing.
                discard = all;
                given.unknown = None;
                Ok(Progress::Some)
            }
            Ok(ConnectionState::Closed) => Ok(Progress::Open),
            // A client never comes to any other state.
            Ok(_) => Err(TlsError::TooLong),
        };
        arrived.take(discard);
        given.bytes = given.bytes.saturating_sub(discard);
        let is_open = match progress {
            Ok(Progress::Open) => true,
            Ok(Progress::Shaking) => false,
            _ => return progress,
        };
        self.count_empty(is_open)?;
        match is_more && !(is_open && then != Then::Nothing) {
            true => Ok(Progress::Some),
            false => progress,
        }
    }

    /// Counts the record that rustls was given last, if that had no data: rustls is done with it.
    fn count_empty(&mut self, is_open: bool) -> Result<(), TlsError> {
        let earned = self.data / DATA_FOR_ONE;
        self.data %= DATA_FOR_ONE;
        let count = self
            .given
            .unknown
            .map_or(0, |bytes| 1 + bytes / BYTES_OF_ONE);
        match &mut self.empty_left {
            Some(left) => {
                let all = (*left + earned).min(MOST_EMPTY);
                // No other record is given then: its data would follow the end.
                *left = all.checked_sub(count).ok_or(TlsError::TooLong)?;
            }
            // Those of the handshake do not count.
            none => *none = is_open.then_some(MOST_EMPTY),
        }
        self.given.unknown = None;
        Ok(())
    }
}
