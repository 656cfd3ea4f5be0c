//! A xenstored in memory: what a domain can see of the real one, its refusals included.
//!
//! A [`Server`] keeps the nodes, and one connection per introduced domain. It speaks to domains
//! in bytes, as over their rings ([`receive`](Server::receive), [`step`](Server::step),
//! [`take_outgoing`](Server::take_outgoing); [`ring::ServerEnd`] moves them over a shared page),
//! and to tests by method: the `Server` itself acts as dom0, and [`as_domain`](Server::as_domain)
//! acts with another domain's rights.
//!
//! ```
//! use bulkhead_xen::DomId;
//! use bulkhead_xen::abi::xs_wire::Refusal;
//! use bulkhead_xen_sim::xenstore::Server;
//!
//! let mut store = Server::new();
//! store.introduce(DomId(5));
//! store.write("/local/domain/5/name", "guest");
//! assert_eq!(store.read("/local/domain/5/name").as_deref(), Some("guest"));
//! // What dom0 made in its own directories is not for guests.
//! assert_eq!(
//!     store.as_domain(DomId(5)).read("/local/domain/5/name"),
//!     Err(Refusal::AccessDenied)
//! );
//! ```
//!
//! [`toolstack`] writes what libxl writes when it makes domains and attaches disks.
//!
//! The rules are those of Xen's `docs/misc/xenstore.txt`, and where that is silent, those of xenstored 4.17
//! (or of oxenstored: [`Server::become_oxenstored`]). Left out are its limits on memory, on nodes in one
//! transaction and on the rate of writes. [`Faults`] makes it misbehave.

mod connection;
mod faults;
mod permissions;
mod program;
mod request;
pub mod ring;
mod session;
pub mod toolstack;
mod transaction;
mod tree;
mod watch;

#[cfg(test)]
mod tests;

pub use faults::{Faults, Mangle, Quotas, Refuse};
pub use permissions::owned_by;
pub use program::Program;
pub use session::Session;

use bulkhead_xen::DomId;
use bulkhead_xen::abi::xs_wire::{Permission, Refusal, TransactionId};
use connection::Connection;
use std::collections::{BTreeMap, BTreeSet};
use transaction::Change;
use tree::{DOM0, Rights, Tree};
use watch::Reach;

/// The directory of a domain, which its relative paths start from.
pub fn domain_path(domain: DomId) -> String {
    format!("/local/domain/{domain}")
}

/// The store and its connections.
#[derive(Debug)]
pub struct Server {
    tree: Tree,
    connections: BTreeMap<DomId, Connection>,
    /// The one of Xen's two programs that it behaves like.
    program: Program,
    /// The quota of one domain.
    pub quotas: Quotas,
    /// The server's misbehaviour; by default there is none.
    pub faults: Faults,
}

impl Default for Server {
    fn default() -> Self {
        Server::new()
    }
}

impl Server {
    /// A store as xenstored starts with, with a connection for dom0 alone.
    pub fn new() -> Server {
        Server {
            tree: Tree::new(),
            connections: BTreeMap::from([(DOM0, Connection::default())]),
            program: Program::default(),
            quotas: Quotas::default(),
            faults: Faults::default(),
        }
    }

    /// Makes a domain known: from here on it has a connection.
    pub fn introduce(&mut self, domain: DomId) {
        self.connections.entry(domain).or_default();
        self.fire_special("@introduceDomain");
    }

    /// A domain is gone, and with it its connection, its watches and its transactions.
    pub fn release(&mut self, domain: DomId) {
        self.connections.remove(&domain);
        self.fire_special("@releaseDomain");
    }

    /// Returns whether the domain has a connection.
    pub fn is_introduced(&self, domain: DomId) -> bool {
        self.connections.contains_key(&domain)
    }

    /// Acts with the rights of a domain, outside of transactions. The domain need not be
    /// introduced for that.
    pub fn as_domain(&mut self, domain: DomId) -> Session<'_> {
        Session::new(self, domain, TransactionId::NONE)
    }

    /// Acts as dom0 in one transaction. Nothing can come between, so it never conflicts; watchers
    /// hear of the whole at its end.
    ///
    /// # Panics
    /// If `body` asks for something that even dom0 is refused, such as a malformed path.
    pub fn transaction(&mut self, body: impl FnOnce(&mut Session<'_>) -> Result<(), Refusal>) {
        let id = self
            .as_domain(DOM0)
            .begin()
            .expect("dom0 has no quota of transactions");
        let mut session = Session::new(self, DOM0, id);
        body(&mut session).expect("dom0 asks for nothing that is refused");
        session
            .commit_undisturbed()
            .expect("nothing came between begin and commit");
    }

    /// A node's value, as dom0 reads it. Bytes that are no text are replaced.
    pub fn read(&mut self, path: &str) -> Option<String> {
        let value = self.as_domain(DOM0).read(path).ok()?;
        Some(String::from_utf8_lossy(&value).into_owned())
    }

    /// Returns whether a node exists.
    pub fn exists(&self, path: &str) -> bool {
        self.tree.get(path).is_some()
    }

    /// Sets a node's value as dom0.
    ///
    /// # Panics
    /// If the path is malformed.
    pub fn write(&mut self, path: &str, value: &str) {
        self.as_domain(DOM0)
            .write(path, value.as_bytes())
            .expect("dom0 may write everywhere");
    }

    /// Removes a node and everything below, as dom0. It is fine if there is none.
    pub fn remove(&mut self, path: &str) {
        match self.as_domain(DOM0).remove(path) {
            Ok(()) | Err(Refusal::NotFound) => {}
            Err(refusal) => panic!("dom0 may remove {path:?}: {refusal}"),
        }
    }

    /// The names of a node's children; none if there is no such node.
    pub fn list(&self, path: &str) -> Vec<String> {
        self.tree
            .get(path)
            .map_or(Vec::new(), |node| node.children.clone())
    }

    /// A node's permissions.
    pub fn permissions(&self, path: &str) -> Option<Vec<Permission>> {
        self.tree.get(path).map(|node| node.permissions.clone())
    }

    /// Sets a node's permissions as dom0; for the names of special events too.
    ///
    /// # Panics
    /// If there is no such node.
    pub fn set_permissions(&mut self, path: &str, permissions: &[Permission]) {
        self.as_domain(DOM0)
            .set_permissions(path, permissions)
            .expect("dom0 may set the permissions of every node");
    }

    /// Returns all nodes, one per line with value and permissions, in order of their paths: to compare
    /// the store before and after, or to print it.
    pub fn dump(&self) -> String {
        let mut text = String::new();
        for (path, node) in self.tree.iter() {
            let permissions: Vec<String> = node.permissions.iter().map(|p| p.to_string()).collect();
            text += &format!(
                "{path} = \"{}\" ({})\n",
                node.value.escape_ascii(),
                permissions.join(",")
            );
        }
        text
    }

    /// Returns the number of watches that a domain has set.
    pub fn watch_count(&self, domain: DomId) -> usize {
        self.connections
            .get(&domain)
            .map_or(0, |connection| connection.watches.len())
    }

    /// Returns the number of transactions that a domain has open.
    pub fn transaction_count(&self, domain: DomId) -> usize {
        self.connections
            .get(&domain)
            .map_or(0, |connection| connection.transactions.len())
    }

    /// Returns the number of requests of a domain that were served since it was introduced.
    pub fn request_count(&self, domain: DomId) -> u64 {
        self.connections
            .get(&domain)
            .map_or(0, |connection| connection.served)
    }

    /// The paths that the served requests of a domain named, as they were written.
    pub fn named_paths(&self, domain: DomId) -> BTreeSet<String> {
        let connection = self.connections.get(&domain);
        connection.map_or_else(BTreeSet::new, |connection| connection.named.clone())
    }

    /// Returns the number of nodes that a domain owns.
    pub fn node_count(&self, domain: DomId) -> usize {
        self.tree.owned_by(domain)
    }

    /// Fires every watch of a domain once with its own path, although nothing has changed: the
    /// protocol allows that at any time.
    pub fn fire_spuriously(&mut self, domain: DomId) {
        if let Some(connection) = self.connections.get_mut(&domain) {
            for watch in connection.watches.clone() {
                connection.push_event(watch.event(&watch.path));
            }
        }
    }

    fn fire_special(&mut self, name: &str) {
        self.fire(&Change {
            path: name.into(),
            reach: Reach::Subtree,
            before: None,
        });
    }

    /// Sends the change to every watcher that may read the node.
    fn fire(&mut self, change: &Change) {
        let now = self.tree.get(&change.path).map(|node| &node.permissions);
        let above = tree::parent(&change.path)
            .and_then(|above| self.tree.get(above))
            .map(|node| &node.permissions);
        for (domain, connection) in &mut self.connections {
            // The node itself, before or after the change, or the one above must be readable.
            let mut lists = [change.before.as_ref(), now, above].into_iter().flatten();
            if !lists.any(|list| Rights::of(*domain, list).read) {
                continue;
            }
            let mut events = Vec::new();
            for watch in &connection.watches {
                if watch.is_of(&change.path, change.reach) {
                    events.push(watch.event(&change.path));
                }
            }
            for event in events {
                connection.push_event(event);
            }
        }
    }
}
