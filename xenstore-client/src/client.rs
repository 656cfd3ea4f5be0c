//! The client: a handle that every task may hold a clone of.

use crate::connection::Connection;
use crate::error::{Error, Fault};
use crate::nodes::Nodes;
use crate::path::Path;
use crate::pending::Pending;
use crate::resumption::Resumable;
use crate::ring::Ring;
use crate::shared::Handle;
use crate::transaction::{Outcome, Transaction};
use crate::watch::Watch;
use crate::wire::{self, Request, TransactionId};
use bulkhead_executor as executor;
use bulkhead_xen::{DomId, Hypervisor, Port};
use core::ops::Deref;

/// The number of times that a transaction is tried before its conflicts are an error.
const ATTEMPTS: u32 = 100;

/// Asks xenstored. Cloning gives another handle on the same connection; all stay on one vCPU.
///
/// The operations on nodes are those of [`Nodes`], which this dereferences to. A client does each at once;
/// a [`Transaction`] does all of them or none.
#[derive(Clone, Debug)]
pub struct Client {
    nodes: Nodes,
}

impl Client {
    pub(crate) fn new(shared: Handle) -> Client {
        Client {
            nodes: Nodes::new(shared, TransactionId::NONE),
        }
    }

    /// Connects over the ring: a task of this vCPU moves the bytes from here on.
    pub fn start<H: Hypervisor>(handle: &executor::Handle<H>, ring: Ring<H>) -> Client {
        let channel = handle.event_channel(ring.port());
        let (client, connection) = Connection::new(ring);
        handle.spawn(async move {
            let breakdown = connection.run(async || channel.notified().await).await;
            log::error!("xenstore: {breakdown}");
        });
        client
    }

    /// Connects over a ring on which an earlier user may have asked for things that are not answered yet. `earlier`
    /// is the number of such users: each has request numbers of its own, so that no answer is taken for another.
    /// [`reset_watches`](Self::reset_watches) is to be the first request.
    pub fn resume<H: Hypervisor>(
        handle: &executor::Handle<H>,
        ring: Resumable<H>,
        port: Port,
        earlier: u32,
    ) -> Client {
        let channel = handle.event_channel(port);
        let (client, connection) = Connection::new(ring);
        client.number_from(earlier << 24);
        handle.spawn(async move {
            let breakdown = connection.run(async || channel.notified().await).await;
            log::error!("xenstore: {breakdown}");
        });
        client
    }

    /// Numbers the next request by `start` and one.
    pub(crate) fn number_from(&self, start: u32) {
        self.nodes.shared().borrow_mut().number_from(start);
    }

    /// Watches a node and everything below; see [`Watch`]. A path that begins with `@` names a
    /// special event, such as `@releaseDomain`.
    pub async fn watch(&self, path: impl AsRef<str>) -> Result<Watch, Error> {
        Watch::set(self.nodes.shared().clone(), Path::new(path.as_ref())?).await
    }

    /// Runs `body` in a transaction and commits it. Both are repeated until no other change conflicts. If
    /// `body` fails, the transaction is discarded and the error returned.
    ///
    /// A hundred conflicts in a row are an error: then something changes the same nodes all the
    /// time.
    pub async fn transaction<T>(
        &self,
        body: impl AsyncFn(&Transaction) -> Result<T, Error>,
    ) -> Result<T, Error> {
        for _ in 0..ATTEMPTS {
            let transaction = self.begin().await?;
            let result = body(&transaction).await?;
            if transaction.commit().await? == Outcome::Committed {
                return Ok(result);
            }
        }
        Err(Fault::Conflicts { attempts: ATTEMPTS }.into())
    }

    /// Opens a transaction, after waiting until fewer than eight of this client are open (an
    /// unprivileged domain may have ten). Dropped without [`commit`](Transaction::commit), it is
    /// discarded.
    pub async fn begin(&self) -> Result<Transaction, Error> {
        Transaction::begin(self.nodes.shared()).await
    }

    /// Asks for the directory of a domain.
    pub async fn domain_path(&self, domain: DomId) -> Result<Path, Error> {
        self.nodes
            .ask(Request::DomainPath(domain))?
            .parsed(wire::parse_path)
            .await
    }

    /// Makes xenstored forget all watches and transactions of this domain, for instance those of
    /// a system that ran in it before. Do this before setting any.
    pub async fn reset_watches(&self) -> Result<(), Error> {
        Pending::ask(
            self.nodes.shared(),
            Request::ResetWatches,
            TransactionId::NONE,
        )?
        .parsed(wire::parse_okay)
        .await
    }
}

impl Deref for Client {
    type Target = Nodes;

    fn deref(&self) -> &Nodes {
        &self.nodes
    }
}
