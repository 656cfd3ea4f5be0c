//! Writing into the backend's directory of a disk. The toolstack may remove it or make it anew at any
//! time, and a write would make it again, or answer for another disk: so each is a transaction that
//! looks first.

use super::config::CONFIG_NODES;
use super::features::NodeValues;
use alloc::format;
use alloc::string::{String, ToString};
use bulkhead_xenbus::NodeMap;
use bulkhead_xenbus::XenbusState;
use bulkhead_xenbus::read_nodes;
use bulkhead_xenstore_client::{Client, Error, Transaction};

/// A change of a directory, made only if the directory is as it was when the change was decided.
pub struct DirectoryChange<'a> {
    /// Returns whether a directory in this state may still be changed.
    pub from: &'a dyn Fn(XenbusState) -> bool,
    /// The nodes that must still describe the disk, if that matters.
    pub described: Option<&'a NodeMap>,
    /// The change itself.
    pub act: Act<'a>,
}

/// A kind of change.
pub enum Act<'a> {
    /// Writes these nodes: name and value.
    Write(&'a [(&'static str, String)]),
    /// Removes it.
    Remove,
}

impl DirectoryChange<'_> {
    /// Makes the change. Returns false if the directory is gone, or is not what it was: the toolstack
    /// wants the device back, or has made the directory anew for another one. The disk's task then reads it again.
    pub async fn make(&self, store: &Client, path: &str) -> Result<bool, Error> {
        store
            .transaction(async |tx: &Transaction| self.within(tx, path).await)
            .await
    }

    async fn within(&self, tx: &Transaction, path: &str) -> Result<bool, Error> {
        let own = tx.read_optional(format!("{path}/state")).await?;
        if own.is_none() || !(self.from)(XenbusState::parse(own.as_deref())) {
            return Ok(false);
        }
        if let Some(nodes) = self.described
            && !describes(tx, path, nodes).await?
        {
            return Ok(false);
        }
        match self.act {
            Act::Remove => tx.remove(path).await?,
            Act::Write(nodes) => {
                for (name, value) in nodes {
                    tx.write(format!("{path}/{name}"), value).await?;
                }
            }
        }
        Ok(true)
    }
}

/// Writes this end's state. Returns false if the toolstack has removed the directory, or has made it anew
/// for the next disk.
pub async fn set_state(store: &Client, path: &str, state: XenbusState) -> Result<bool, Error> {
    write_if_there(store, path, "state", &state.to_string()).await
}

/// Writes one node of a directory that is there and is not yet the next disk's.
pub async fn write_if_there(
    store: &Client,
    path: &str,
    node: &'static str,
    value: &str,
) -> Result<bool, Error> {
    let change = DirectoryChange {
        from: &|own| own != XenbusState::Initialising,
        described: None,
        act: Act::Write(&[(node, value.into())]),
    };
    change.make(store, path).await
}

/// Writes nodes and the state that they belong to, all at once: from one state to another. Does nothing
/// and returns false if the directory is not what it was, or is not that of the disk that `described` is
/// about. The toolstack sets the state of a new directory to 1, so the nodes are compared in that state
/// alone.
pub async fn publish(
    store: &Client,
    path: &str,
    described: &NodeMap,
    nodes: &NodeValues,
    (from, to): (XenbusState, XenbusState),
) -> Result<bool, Error> {
    let mut nodes = nodes.clone();
    nodes.push(("state", to.to_string()));
    let change = DirectoryChange {
        from: &|own| own == from,
        described: (from == XenbusState::Initialising).then_some(described),
        act: Act::Write(&nodes),
    };
    change.make(store, path).await
}

/// Returns whether the directory still describes the disk that it described when `nodes` were read.
async fn describes(tx: &Transaction, path: &str, nodes: &NodeMap) -> Result<bool, Error> {
    let mut now = NodeMap::new();
    read_nodes(&mut now, tx, path, &CONFIG_NODES).await?;
    Ok(now == *nodes)
}
