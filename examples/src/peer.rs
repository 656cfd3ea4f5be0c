//! The nodes by which the two domains find each other: below `data` of each, readable for the other.

use crate::Failure;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use bulkhead_xen::DomId;
use bulkhead_xenbus::peer_node;
use bulkhead_xenstore_client::{Client, Error, NodeAccess, Permission};
use core::cell::Cell;

/// The node by which the operator names the other domain.
const PEER: &str = "data/peer";

/// The other domain, and access to its nodes. It counts the requests to xenstore.
pub struct Peer {
    store: Client,
    domain: DomId,
    /// The other domain's own directory.
    path: String,
    writes: Cell<u32>,
    reads: Cell<u32>,
}

/// The requests to xenstore.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreCounts {
    /// Nodes written and permissions set.
    pub writes: u32,
    /// Nodes read.
    pub reads: u32,
}

impl Peer {
    /// Waits until the operator has named the other domain.
    pub async fn find(store: &Client) -> Result<Peer, Failure> {
        let mut watch = store.watch(PEER).await?;
        let domain = loop {
            watch.next().await?;
            if let Some(number) = store.read_number_optional(PEER).await? {
                break DomId(number);
            }
        };
        let path = store.domain_path(domain).await?;
        Ok(Peer {
            store: store.clone(),
            domain,
            path: path.as_str().into(),
            writes: Cell::new(0),
            reads: Cell::new(0),
        })
    }

    /// Returns the other domain's number.
    pub fn domain(&self) -> DomId {
        self.domain
    }

    /// Returns the requests to xenstore so far.
    pub fn counts(&self) -> StoreCounts {
        StoreCounts {
            writes: self.writes.get(),
            reads: self.reads.get(),
        }
    }

    /// Makes a directory below `data` in which nodes can be read by the other domain: they have the permissions
    /// of the directory.
    pub async fn open(&self, name: &str) -> Result<(), Error> {
        // The owner comes first; what it says of others is for everyone who is not named.
        let owner = self.store.permissions("data").await?;
        let nobody = owner.into_iter().take(1).map(|entry| Permission {
            access: NodeAccess::None,
            ..entry
        });
        let reader = Permission {
            domain: self.domain,
            access: NodeAccess::Read,
        };
        let permissions: Vec<Permission> = nobody.chain([reader]).collect();
        let path = format!("data/{name}");
        self.count_writes(2);
        self.store.mkdir(&path).await?;
        self.store.set_permissions(&path, &permissions).await
    }

    /// Writes a node for the other domain, into a directory that was [opened](Self::open).
    pub async fn publish(&self, node: &str, value: impl core::fmt::Display) -> Result<(), Error> {
        self.count_writes(1);
        let value = format!("{value}");
        self.store.write(format!("data/{node}"), value).await
    }

    /// Removes a node, or a directory.
    pub async fn withdraw(&self, node: &str) -> Result<(), Error> {
        self.count_writes(1);
        self.store.remove(format!("data/{node}")).await
    }

    /// Reads a node of the other domain.
    pub async fn read(&self, node: &str) -> Result<Option<String>, Error> {
        self.reads.set(self.reads.get() + 1);
        peer_node(&self.store, format!("{}/data/{node}", self.path)).await
    }

    /// Waits until a node of the other domain is there, this domain may read it, and `look` finds a value in it.
    pub async fn wait_for<T>(
        &self,
        node: &str,
        look: impl Fn(&str) -> Option<T>,
    ) -> Result<T, Error> {
        let path = format!("{}/data/{node}", self.path);
        let mut watch = self.store.watch(path).await?;
        loop {
            watch.next().await?;
            let value = self.read(node).await?;
            if let Some(found) = value.as_deref().and_then(&look) {
                return Ok(found);
            }
        }
    }

    /// Waits for a node of the other domain that is a number.
    pub async fn wait_number(&self, node: &str) -> Result<u32, Failure> {
        let value = self
            .wait_for(node, |value| Some(String::from(value)))
            .await?;
        let number = value.parse();
        number.map_err(|_| Failure(format!("{node} is {value:?}, which is not a number")))
    }

    fn count_writes(&self, writes: u32) {
        self.writes.set(self.writes.get() + writes);
    }
}
