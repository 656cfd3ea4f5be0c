//! An NBD server in memory, and the network to it.
//!
//! The server does nothing by itself: each [`step`](FakeServer::step) has it look at what has arrived. A test can
//! change the treatment of a command: the server may answer late, out of order, twice, with an error, in parts, or
//! never, or answer what was not asked. Every message of its handshake can be forged, and each connection can end
//! behind any byte.
//!
//! Read next: [`FakeServer`], a test's handle; [`Treatment`], the treatment of a command; [`world`], a machine with a
//! client.

#![deny(unsafe_code)]

mod commands;
mod handshake;
mod server;
mod stream;
#[allow(unsafe_code, reason = "names pages of the domain for the client")]
pub mod world;

pub use commands::{Part, Seen, Treatment};
pub use server::{Config, FakeExport, Reach, TlsMode};
pub use stream::{FakeNetwork, FakeTls};

use bulkhead_stream::Ended;
use server::Server;
use std::cell::RefCell;
use std::rc::Rc;

/// A test's handle on a server. Clones are handles on the same one.
#[derive(Clone)]
pub struct FakeServer(Rc<RefCell<Server>>);

impl FakeServer {
    /// Returns a server without a connection.
    pub fn new(config: Config) -> FakeServer {
        FakeServer(Rc::new(RefCell::new(Server::new(config))))
    }

    /// Has the server do its work. Returns whether there was any.
    pub fn step(&self) -> bool {
        self.0.borrow_mut().step()
    }

    /// Changes the server's configuration.
    pub fn change(&self, change: impl FnOnce(&mut Config)) {
        change(&mut self.0.borrow_mut().config);
    }

    /// Has `treatment` decide on the treatment of commands from now on.
    pub fn decide(&self, treatment: impl FnMut(&Seen) -> Treatment + 'static) {
        self.0.borrow_mut().treatment = Box::new(treatment);
    }

    /// Has `forge` change each message of the handshake from now on. It gets the message's number, counted on its
    /// connection.
    pub fn forge(&self, forge: impl FnMut(usize, &mut Vec<u8>) + 'static) {
        self.0.borrow_mut().forge = Box::new(forge);
    }

    /// Returns all commands that the server was ever given, in their order.
    pub fn seen(&self) -> Vec<Seen> {
        self.0.borrow().seen.clone()
    }

    /// Returns the commands that were held back.
    pub fn held(&self) -> Vec<Seen> {
        let server = self.0.borrow();
        server.held.iter().map(|(_, seen)| *seen).collect()
    }

    /// Does one of the commands that were held back, and answers it.
    pub fn finish(&self, index: usize) {
        self.0.borrow_mut().finish(index);
    }

    /// Does all commands that were held back, the last one first.
    pub fn finish_reversed(&self) {
        while let Some(last) = self.held().len().checked_sub(1) {
            self.finish(last);
        }
    }

    /// Returns the bytes of an export.
    ///
    /// # Panics
    /// If there is no such export.
    pub fn bytes(&self, export: &str) -> Vec<u8> {
        let server = self.0.borrow();
        let found = server.config.exports.iter().find(|it| it.name == export);
        found.expect("an export").bytes.clone()
    }

    /// Ends all connections.
    pub fn drop_all(&self, ended: Ended) {
        self.0.borrow_mut().drop_all(ended);
    }

    /// Ends the connection of that number.
    pub fn drop_one(&self, connection: usize, ended: Ended) {
        self.0.borrow_mut().connections[connection].end(ended);
    }

    /// Ends each new connection after that many bytes to the client, or from it.
    pub fn cut_after(&self, to_client: Option<usize>, from_client: Option<usize>) {
        self.0.borrow_mut().cuts = [to_client, from_client];
    }

    /// Sends bytes on all connections, as they are.
    pub fn send(&self, bytes: &[u8]) {
        self.0.borrow_mut().send_all(bytes);
    }

    /// Returns the number of connections that there ever were, and that there are.
    pub fn connections(&self) -> (usize, usize) {
        self.0.borrow().connection_counts()
    }

    /// Takes a connection whose bytes the caller carries. Returns its number.
    pub fn accept(&self) -> usize {
        self.0.borrow_mut().connect()
    }

    /// Brings bytes of the client's, and has the server do its work.
    pub fn deliver(&self, connection: usize, bytes: &[u8]) {
        let mut server = self.0.borrow_mut();
        server.connections[connection].from_client.extend(bytes);
        server.step();
    }

    /// Takes bytes for the client away, as many as there are and at most that many.
    pub fn collect(&self, connection: usize, most: usize) -> Vec<u8> {
        let mut server = self.0.borrow_mut();
        let bytes = &mut server.connections[connection].to_client;
        let count = bytes.len().min(most);
        bytes.drain(..count).collect()
    }

    /// Lets go of a connection whose bytes the caller carries: it has ended.
    pub fn hang_up(&self, connection: usize) {
        self.0.borrow_mut().connections[connection].let_go();
    }

    /// Returns whether there are as many connections as there may be.
    pub fn is_full(&self) -> bool {
        self.connections().1 >= self.0.borrow().config.most_connections
    }

    /// Returns the number of connections that the client has ended in order, by the command for it.
    pub fn disconnects(&self) -> usize {
        self.0.borrow().disconnects
    }
}
