//! The server's state, and its connections.

use crate::commands::{Seen, Treatment};
use bulkhead_stream::{ConnectError, Ended};
use std::collections::VecDeque;
use std::task::Waker;

/// The outcome of an attempt to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// The attempt succeeds.
    Connects,
    /// The attempt fails.
    Fails(ConnectError),
    /// The attempt gets no answer.
    Hangs,
}

/// The server's use of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsMode {
    /// The server has no TLS.
    Absent,
    /// The server offers TLS.
    Offered,
    /// The server requires TLS.
    Required,
}

/// An export.
#[derive(Clone, Debug)]
pub struct FakeExport {
    /// Its name.
    pub name: String,
    /// The server's own name for it, if the server tells that.
    pub canonical: Option<String>,
    /// Its data.
    pub bytes: Vec<u8>,
    /// Its transmission flags, as on the wire.
    pub flags: u16,
    /// The sizes of its requests, as on the wire.
    pub sizes: Option<[u32; 3]>,
}

impl FakeExport {
    /// Returns an export that supports everything but several connections.
    pub fn new(name: &str, bytes: usize) -> FakeExport {
        FakeExport {
            name: name.to_string(),
            canonical: None,
            bytes: vec![0; bytes],
            flags: 0b110_1101,
            sizes: None,
        }
    }
}

/// The configuration of the server.
#[derive(Clone, Debug)]
pub struct Config {
    /// The exports.
    pub exports: Vec<FakeExport>,
    /// True if the server knows structured replies.
    pub structured: bool,
    /// True if the server sends zeros as holes.
    pub holes: bool,
    /// True if the server lists its exports.
    pub lists: bool,
    /// True if the server knows the option that asks for an export (`NBD_OPT_GO`).
    pub goes: bool,
    /// The server's use of TLS.
    pub tls: TlsMode,
    /// The outcome of attempts to connect.
    pub reach: Reach,
    /// The most connections at a time; further ones hang.
    pub most_connections: usize,
    /// The most bytes in a buffer that the network passes to a caller.
    pub piece: usize,
    /// The bytes that the network takes before the server reads them.
    pub room: usize,
    /// The error with which the server answers each write before it has the data, if it does so.
    pub refuses_writes_early: Option<u32>,
    /// True if the server reads nothing.
    pub is_deaf: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            exports: vec![FakeExport::new("disk", 1 << 20)],
            structured: true,
            holes: false,
            lists: true,
            goes: true,
            tls: TlsMode::Absent,
            reach: Reach::Connects,
            most_connections: usize::MAX,
            piece: 1 << 20,
            room: 256 << 10,
            refuses_writes_early: None,
            is_deaf: false,
        }
    }
}

/// The most bytes of a buffer for sending that the network passes to a caller.
const MOST_LENT: usize = 64 << 10;

/// The phase of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The server has yet to greet.
    New,
    /// The client's flags are expected.
    Flags,
    /// Options are expected.
    Options,
    /// Commands for the export of that number are expected.
    Commands(usize),
    /// The connection is over.
    Over,
}

/// A connection.
pub struct Connection {
    pub to_client: VecDeque<u8>,
    /// The buffer for sending that the network passes to a caller.
    pub lent: Vec<u8>,
    /// The bytes that the network has taken, less those that the server has read.
    pub from_client: Vec<u8>,
    pub read: Vec<u8>,
    pub phase: Phase,
    /// The export's flags as the client was told them. A test may have changed the flags since, or forged the message.
    pub told: u16,
    pub structured: bool,
    pub tls: bool,
    pub no_zeroes: bool,
    /// The number of messages of the handshake that were sent.
    pub messages: usize,
    pub ended: Option<Ended>,
    /// True if the client has let go of it.
    pub dropped: bool,
    pub waker: Option<Waker>,
    /// The numbers of bytes to the client, and from it, until it ends.
    pub cuts: [Option<usize>; 2],
    /// True if a write was refused whose data is still to come.
    pub refused: bool,
}

impl Connection {
    /// Notes that the client has let go of it: neither side reads anything of it any more.
    pub fn let_go(&mut self) {
        self.dropped = true;
        (self.lent, self.from_client, self.read) = (Vec::new(), Vec::new(), Vec::new());
        self.to_client = VecDeque::new();
    }

    pub fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.to_client.extend(bytes);
        self.wake();
    }

    pub fn end(&mut self, ended: Ended) {
        self.ended.get_or_insert(ended);
        self.phase = Phase::Over;
        self.wake();
    }

    /// Takes a message of `len` bytes, if it has come.
    pub fn take(&mut self, len: usize) -> Option<Vec<u8>> {
        (self.read.len() >= len).then(|| self.read.drain(..len).collect())
    }
}

/// A function that changes a message of the handshake.
type Forge = Box<dyn FnMut(usize, &mut Vec<u8>)>;

/// The server.
pub struct Server {
    pub config: Config,
    pub connections: Vec<Connection>,
    pub treatment: Box<dyn FnMut(&Seen) -> Treatment>,
    pub forge: Forge,
    pub seen: Vec<Seen>,
    pub held: Vec<(usize, Seen)>,
    pub cuts: [Option<usize>; 2],
    pub disconnects: usize,
}

impl Server {
    pub fn new(config: Config) -> Server {
        Server {
            config,
            connections: Vec::new(),
            treatment: Box::new(|_| Treatment::Done),
            forge: Box::new(|_, _| {}),
            seen: Vec::new(),
            held: Vec::new(),
            cuts: [None, None],
            disconnects: 0,
        }
    }

    pub fn connect(&mut self) -> usize {
        self.connections.push(Connection {
            to_client: VecDeque::new(),
            lent: vec![0; MOST_LENT.min(self.config.room)],
            from_client: Vec::with_capacity(MOST_LENT.min(self.config.room)),
            read: Vec::new(),
            phase: Phase::New,
            told: 0,
            structured: false,
            tls: false,
            no_zeroes: false,
            messages: 0,
            ended: None,
            dropped: false,
            waker: None,
            cuts: self.cuts,
            refused: false,
        });
        self.connections.len() - 1
    }

    pub fn step(&mut self) -> bool {
        let mut moved = false;
        for number in 0..self.connections.len() {
            while !self.config.is_deaf && self.step_one(number) {
                moved = true;
            }
        }
        moved
    }

    fn step_one(&mut self, number: usize) -> bool {
        let connection = &mut self.connections[number];
        if connection.dropped || connection.ended.is_some() {
            return false;
        }
        let arrived = !connection.from_client.is_empty();
        connection.read.append(&mut connection.from_client);
        if arrived {
            // There is room again.
            connection.wake();
        }
        let moved = match connection.phase {
            Phase::New | Phase::Flags | Phase::Options => self.step_handshake(number),
            Phase::Commands(export) => self.step_commands(number, export),
            Phase::Over => false,
        };
        moved || arrived
    }

    pub fn drop_all(&mut self, ended: Ended) {
        for connection in &mut self.connections {
            if !connection.dropped {
                connection.end(ended);
            }
        }
        self.held.clear();
    }

    pub fn send_all(&mut self, bytes: &[u8]) {
        for connection in &mut self.connections {
            if !connection.dropped {
                connection.send(bytes);
            }
        }
    }

    pub fn connection_counts(&self) -> (usize, usize) {
        let there = |it: &&Connection| !it.dropped && it.ended.is_none();
        (
            self.connections.len(),
            self.connections.iter().filter(there).count(),
        )
    }
}
