//! The server's state, and its connections.

use crate::commands::{Fate, Seen};
use bulkhead_stream::{ConnectError, Ended};
use std::collections::VecDeque;
use std::task::Waker;

/// What becomes of an attempt to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// It is connected.
    Connects,
    /// It fails.
    Fails(ConnectError),
    /// Nothing ever comes back.
    Hangs,
}

/// What the server does about TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsMode {
    /// It has none.
    Absent,
    /// It has it.
    Offered,
    /// Nothing goes without it.
    Required,
}

/// An export.
#[derive(Clone, Debug)]
pub struct FakeExport {
    /// Its name.
    pub name: String,
    /// What it says that it is called.
    pub canonical: Option<String>,
    /// Its data.
    pub bytes: Vec<u8>,
    /// What it can do, as on the wire.
    pub flags: u16,
    /// The sizes of its requests, as on the wire.
    pub sizes: Option<[u32; 3]>,
}

impl FakeExport {
    /// Returns an export that can do everything but serve several connections.
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

/// What the server is like.
#[derive(Clone, Debug)]
pub struct Config {
    /// What it has.
    pub exports: Vec<FakeExport>,
    /// It knows structured replies.
    pub structured: bool,
    /// It sends zeros as holes.
    pub holes: bool,
    /// It tells what exports there are.
    pub lists: bool,
    /// It knows the option that asks for an export.
    pub goes: bool,
    /// What it does about TLS.
    pub tls: TlsMode,
    /// Whether it can be connected to.
    pub reach: Reach,
    /// The most connections at a time; further ones hang.
    pub most_connections: usize,
    /// The most bytes that the network lends at a time.
    pub piece: usize,
    /// The bytes that the network takes before the server reads them.
    pub room: usize,
    /// It answers each write with that error before it has the data.
    pub refuses_writes_early: Option<u32>,
    /// It reads nothing.
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

/// The most bytes that the network lends for sending.
const MOST_LENT: usize = 64 << 10;

/// Where a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The server has to greet.
    New,
    /// The client's flags are to come.
    Flags,
    /// Options are to come.
    Options,
    /// Commands for the export of that number are to come.
    Commands(usize),
    /// Nothing is done any more.
    Over,
}

/// A connection.
pub struct Connection {
    pub to_client: VecDeque<u8>,
    /// The room that the network lends.
    pub lent: Vec<u8>,
    /// What the network has taken, and what the server has read of it.
    pub from_client: Vec<u8>,
    pub read: Vec<u8>,
    pub phase: Phase,
    /// What the export can do, as the client was told, which a test may have changed since or forged.
    pub told: u16,
    pub structured: bool,
    pub tls: bool,
    pub no_zeroes: bool,
    /// The messages of the handshake that were sent.
    pub messages: usize,
    pub ended: Option<Ended>,
    /// The client has let go of it.
    pub dropped: bool,
    pub waker: Option<Waker>,
    /// Bytes to the client, and from it, until it ends.
    pub cuts: [Option<usize>; 2],
    /// A write was refused whose data is still to come.
    pub refused: bool,
}

impl Connection {
    /// The client has let go of it: nothing of it is read any more, on either side.
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

    /// Takes a message of that many bytes, if it is there.
    pub fn take(&mut self, len: usize) -> Option<Vec<u8>> {
        (self.read.len() >= len).then(|| self.read.drain(..len).collect())
    }
}

/// What makes a message of the handshake another one.
type Forge = Box<dyn FnMut(usize, &mut Vec<u8>)>;

/// The server.
pub struct Server {
    pub config: Config,
    pub connections: Vec<Connection>,
    pub fate: Box<dyn FnMut(&Seen) -> Fate>,
    pub forge: Forge,
    pub seen: Vec<Seen>,
    pub held: Vec<(usize, Seen)>,
    pub cuts: [Option<usize>; 2],
    pub farewells: usize,
}

impl Server {
    pub fn new(config: Config) -> Server {
        Server {
            config,
            connections: Vec::new(),
            fate: Box::new(|_| Fate::Done),
            forge: Box::new(|_, _| {}),
            seen: Vec::new(),
            held: Vec::new(),
            cuts: [None, None],
            farewells: 0,
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
