//! Writing into the backend's directory of a disk. The toolstack may remove it or make it anew at any
//! time, and a write would make it again, or answer for another disk: so each is a transaction that
//! looks first.

use super::config::CONFIG_NODES;
use super::connection::read_into;
use super::features::NodeValues;
use super::published::Nodes;
use super::state::XenbusState;
use alloc::format;
use alloc::string::ToString;
use bulkhead_xenstore_client::{Client, Error, Transaction};

/// Says where we are, unless the toolstack has removed the directory, or has made it anew, which
/// is the next disk's to answer.
pub async fn set_state(store: &Client, path: &str, state: XenbusState) -> Result<(), Error> {
    write_if_there(store, path, "state", &state.to_string()).await
}

/// Writes one node of a directory that is there and is not yet the next disk's.
pub async fn write_if_there(
    store: &Client,
    path: &str,
    node: &str,
    value: &str,
) -> Result<(), Error> {
    let state = format!("{path}/state");
    store
        .transaction(async |tx: &Transaction| {
            let own = tx.read_optional(&state).await?;
            if own.is_some() && XenbusState::parse(own.as_deref()) != XenbusState::Initialising {
                tx.write(format!("{path}/{node}"), value).await?;
            }
            Ok(())
        })
        .await
}

/// Writes nodes and the state that they belong to, all at once: from one state to another. Does
/// nothing, and answers false, if the directory is not what it was when this was decided: the
/// toolstack wants the disk back, or has made the directory anew for another one than that which
/// `described` tells of. The next look tells.
pub async fn publish(
    store: &Client,
    path: &str,
    described: &Nodes,
    nodes: &NodeValues,
    (from, to): (XenbusState, XenbusState),
) -> Result<bool, Error> {
    store
        .transaction(async |tx: &Transaction| {
            let own = tx.read_optional(format!("{path}/state")).await?;
            if own.is_none()
                || XenbusState::parse(own.as_deref()) != from
                || !describes(tx, path, described).await?
            {
                return Ok(false);
            }
            for (name, value) in nodes {
                tx.write(format!("{path}/{name}"), value).await?;
            }
            tx.write(format!("{path}/state"), to.to_string()).await?;
            Ok(true)
        })
        .await
}

/// Whether the directory still describes the disk that it described when `nodes` were read.
pub async fn describes(tx: &Transaction, path: &str, nodes: &Nodes) -> Result<bool, Error> {
    let mut now = Nodes::new();
    read_into(&mut now, tx, path, CONFIG_NODES).await?;
    Ok(now == *nodes)
}
