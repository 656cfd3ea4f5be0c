//! The nodes of a frontend's directory, and those of the backend that the toolstack names there.

use crate::{XenbusState, own_node, peer_node};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use bulkhead_executor::{Handle, RateLimit};
use bulkhead_xen::{DomId, Hypervisor};
use bulkhead_xenstore_client::{Client, Error, Transaction, Watch};
use core::task::{Context, Poll, ready};
use core::time::Duration;

/// The limit on reading a backend's nodes because it has changed them: 64 times at once, and once more each second.
/// Each time is several messages to xenstored.
const LOOKS: RateLimit = RateLimit::new(64, Duration::from_secs(1));

/// The backend of a device, as the toolstack names it.
pub struct Peer {
    /// Its directory.
    pub path: String,
    /// The domain that it is in.
    pub id: DomId,
    watch: Watch,
}

/// The contents of a frontend's directory that every device has.
pub struct FrontendDirectory {
    /// This end's `state` node.
    pub own: XenbusState,
    /// The backend's directory and domain; `None` if the toolstack has removed the device.
    pub backend: Option<(String, DomId)>,
}

/// The nodes of one device of this domain.
pub struct FrontendNodes {
    path: String,
    /// Nodes of this end that not every connection has.
    optional: &'static [&'static str],
    peer: Option<Peer>,
    /// The nodes and the state of this end that are still to be written to xenstore.
    unsaid: Option<(Vec<(String, String)>, XenbusState)>,
    looks: RateLimit,
}

impl FrontendNodes {
    /// Returns the nodes of the device whose directory is `path`. Those of `optional` are removed when nodes are
    /// written without them: ones of earlier rings would mislead the backend.
    pub fn new(path: String, optional: &'static [&'static str]) -> Self {
        FrontendNodes {
            path,
            optional,
            peer: None,
            unsaid: None,
            looks: LOOKS,
        }
    }

    /// Returns this end's directory.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Returns the backend that is followed.
    pub fn peer(&self) -> Option<&Peer> {
        self.peer.as_ref()
    }

    /// Reads this end's directory.
    pub async fn read(&self, store: &Client) -> Result<FrontendDirectory, Error> {
        let own = own_node(store, format!("{}/state", self.path)).await?;
        let path = own_node(store, format!("{}/backend", self.path)).await?;
        let id = own_node(store, format!("{}/backend-id", self.path)).await?;
        let id = id.and_then(|id| id.trim().parse().ok()).map(DomId);
        Ok(FrontendDirectory {
            backend: own.as_ref().and(path.zip(id)),
            own: XenbusState::parse(own.as_deref()),
        })
    }

    /// Returns whether this backend is followed already.
    pub fn follows(&self, (path, id): &(String, DomId)) -> bool {
        let same = |peer: &Peer| peer.path == *path && peer.id == *id;
        self.peer.as_ref().is_some_and(same)
    }

    /// Follows a backend in place of the one before. What was not written yet was meant for that one.
    pub async fn follow(
        &mut self,
        store: &Client,
        (path, id): (String, DomId),
    ) -> Result<(), Error> {
        self.unsaid = None;
        let watch = store.watch(&path).await?;
        self.peer = Some(Peer { path, id, watch });
        Ok(())
    }

    /// Follows no backend: the toolstack has removed the device.
    pub fn forget(&mut self) {
        self.unsaid = None;
        self.peer = None;
    }

    /// Reads the backend's `state`, unknown if it is gone, and whether the toolstack wants the device to exist: its
    /// `online` node.
    pub async fn backend(&self, store: &Client) -> Result<(XenbusState, bool), Error> {
        let Some(peer) = &self.peer else {
            return Ok((XenbusState::Unknown, false));
        };
        let state = peer_node(store, format!("{}/state", peer.path)).await?;
        let online = peer_node(store, format!("{}/online", peer.path)).await?;
        let is_online = online.as_deref().map(str::trim) != Some("0");
        Ok((XenbusState::parse(state.as_deref()), is_online))
    }

    /// Polls for a change of the backend's nodes. If the backend is not trusted, [`Self::paced`] is due before they are read
    /// because of it.
    pub fn poll_backend(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let Some(peer) = &mut self.peer else {
            return Poll::Pending;
        };
        let event = ready!(peer.watch.poll_next(context));
        // All events until now need the nodes to be read only once.
        while let Poll::Ready(Ok(_)) = peer.watch.poll_next(context) {}
        Poll::Ready(event.map(drop))
    }

    /// Waits until a backend that changes its nodes all the time may be looked at again.
    pub async fn paced<H: Hypervisor>(&mut self, handle: &Handle<H>) {
        self.looks.taken(handle).await;
    }

    /// Writes nodes and this end's state, if the directory is there. Nodes that xenstored refuses are
    /// [written later](Self::write_again).
    pub async fn write(
        &mut self,
        store: &Client,
        nodes: Vec<(String, String)>,
        state: XenbusState,
    ) -> Result<(), Error> {
        self.unsaid = Some((nodes, state));
        self.write_again(store).await
    }

    /// Writes the nodes that xenstored has not taken yet.
    pub async fn write_again(&mut self, store: &Client) -> Result<(), Error> {
        let Some((nodes, state)) = &self.unsaid else {
            return Ok(());
        };
        write_nodes(store, &self.path, nodes, self.optional, *state).await?;
        self.unsaid = None;
        Ok(())
    }
}

/// Writes nodes and the state of a frontend into its directory `path`, if that is there. If there are nodes, those of
/// `optional` that are not among them are removed.
pub async fn write_nodes(
    store: &Client,
    path: &str,
    nodes: &[(impl AsRef<str>, String)],
    optional: &[&str],
    state: XenbusState,
) -> Result<(), Error> {
    let write = async |tx: &Transaction| {
        if !tx.exists(format!("{path}/state")).await? {
            return Ok(());
        }
        for name in optional {
            let stale = !nodes.is_empty() && nodes.iter().all(|(other, _)| other.as_ref() != *name);
            if stale && tx.exists(format!("{path}/{name}")).await? {
                tx.remove(format!("{path}/{name}")).await?;
            }
        }
        for (name, value) in nodes {
            tx.write(format!("{path}/{}", name.as_ref()), value).await?;
        }
        tx.write(format!("{path}/state"), state.to_string()).await
    };
    store.transaction(write).await
}
