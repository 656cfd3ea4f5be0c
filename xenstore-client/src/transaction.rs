//! Transactions: all of their changes are made, or none.

use crate::error::Error;
use crate::nodes::Nodes;
use crate::pending::Pending;
use crate::shared::Handle;
use crate::wire::{self, Refusal, Request, TransactionId};
use core::ops::Deref;

/// The outcome of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All changes were made.
    Committed,
    /// Another domain or task changed a node that the transaction had touched: no change was made.
    Conflict,
}

/// An open transaction. Changes through its [`Nodes`] are not visible outside until it is committed. If it is
/// dropped before, it is discarded.
#[derive(Debug)]
pub struct Transaction {
    nodes: Nodes,
    ended: bool,
    _permit: Permit,
}

/// A place among those for open transactions.
#[derive(Debug)]
struct Permit(Handle);

impl Permit {
    async fn take(shared: &Handle) -> Permit {
        core::future::poll_fn(|context| {
            match shared.borrow_mut().take_transaction_place(context.waker()) {
                true => core::task::Poll::Ready(()),
                false => core::task::Poll::Pending,
            }
        })
        .await;
        Permit(shared.clone())
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.borrow_mut().free_transaction_place();
    }
}

impl Transaction {
    pub(crate) async fn begin(shared: &Handle) -> Result<Transaction, Error> {
        let permit = Permit::take(shared).await;
        let id = Pending::ask(shared, Request::TransactionStart, TransactionId::NONE)?
            .parsed(wire::parse_transaction)
            .await?;
        Ok(Transaction {
            nodes: Nodes::new(shared.clone(), id),
            ended: false,
            _permit: permit,
        })
    }

    /// Commits the transaction. If the future is dropped early, the commit may happen nevertheless.
    pub async fn commit(mut self) -> Result<Outcome, Error> {
        let shared = self.nodes.shared();
        let end = Pending::ask(shared, Request::TransactionEnd(true), self.nodes.id())?;
        self.ended = true;
        match end.parsed(wire::parse_okay).await {
            Ok(()) => Ok(Outcome::Committed),
            Err(error) if error.refusal() == Some(Refusal::Again) => Ok(Outcome::Conflict),
            Err(error) => Err(error),
        }
    }
}

impl Deref for Transaction {
    type Target = Nodes;

    fn deref(&self) -> &Nodes {
        &self.nodes
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if !self.ended {
            let shared = self.nodes.shared();
            shared
                .borrow_mut()
                .tell(&Request::TransactionEnd(false), self.nodes.id());
        }
    }
}
