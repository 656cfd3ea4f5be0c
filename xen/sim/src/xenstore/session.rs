//! The operations on nodes, done with the rights of one domain.

use super::transaction::{Change, Transaction, View};
use super::tree::{self, DOM0, Need, Node, Rights};
use super::watch::{Reach, Watch};
use super::{Program, Server, domain_path};
use bulkhead_xen::DomId;
use bulkhead_xen::abi::xs_wire::{ABS_PATH_MAX, Permission, REL_PATH_MAX, Refusal, TransactionId};

/// A domain's access to the store, outside of transactions or in one. Paths that do not start
/// with a slash are relative to the domain's own directory.
#[derive(Debug)]
pub struct Session<'a> {
    server: &'a mut Server,
    domain: DomId,
    transaction: TransactionId,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        server: &'a mut Server,
        domain: DomId,
        transaction: TransactionId,
    ) -> Session<'a> {
        Session {
            server,
            domain,
            transaction,
        }
    }

    fn unprivileged(&self) -> bool {
        self.domain != DOM0
    }

    /// The absolute path, and how much of it a relative path left out.
    fn canonical(&self, path: &str, special: bool) -> Result<(String, usize), Refusal> {
        let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"-/_@".contains(&byte);
        if !path.bytes().all(valid) || path.is_empty() || path.starts_with('@') && !special {
            return Err(Refusal::Invalid);
        }
        let own = domain_path(self.domain) + "/";
        let (absolute, skip) = if path.starts_with(['/', '@']) {
            (path.to_string(), 0)
        } else {
            (own.clone() + path, own.len())
        };
        // The part below any domain's directory must be short enough to be named relatively.
        let local = absolute
            .strip_prefix("/local/domain/")
            .and_then(|rest| rest.split_once('/'))
            .map_or(absolute.len(), |(_, below)| below.len());
        if absolute.len() > 1 && absolute.ends_with('/')
            || absolute.contains("//")
            || absolute.len() > ABS_PATH_MAX
            || local > REL_PATH_MAX
        {
            return Err(Refusal::Invalid);
        }
        Ok((absolute, skip))
    }

    fn view(&mut self) -> Result<View<'_>, Refusal> {
        let transaction = match self.transaction {
            TransactionId::NONE => None,
            id => Some(
                self.server
                    .connections
                    .get_mut(&self.domain)
                    .and_then(|connection| connection.transactions.get_mut(&id))
                    .ok_or(Refusal::NotFound)?,
            ),
        };
        Ok(View {
            tree: &mut self.server.tree,
            transaction,
        })
    }

    /// Looks a node up for a use that needs a right. A domain that could not use the closest node above
    /// either is not told that there is none.
    fn find(
        &mut self,
        path: &str,
        need: Need,
        special: bool,
    ) -> Result<(String, Option<Node>), Refusal> {
        let (path, _) = self.canonical(path, special)?;
        let domain = self.domain;
        let mut view = self.view()?;
        let mut at = path.as_str();
        loop {
            if let Some(node) = view.get(at) {
                if !Rights::of(domain, &node.permissions).cover(need) {
                    return Err(Refusal::AccessDenied);
                }
                let found = (at == path).then(|| node.clone());
                return Ok((path, found));
            }
            at = tree::parent(at).ok_or(Refusal::NotFound)?;
        }
    }

    fn existing(
        &mut self,
        path: &str,
        need: Need,
        special: bool,
    ) -> Result<(String, Node), Refusal> {
        let (path, node) = self.find(path, need, special)?;
        Ok((path, node.ok_or(Refusal::NotFound)?))
    }

    fn changed(&mut self, change: Change) -> Result<(), Refusal> {
        let mut now = Vec::new();
        self.view()?.changed(change, &mut now);
        for change in &now {
            self.server.fire(change);
        }
        Ok(())
    }

    fn check_size(&self, node: &Node) -> Result<(), Refusal> {
        if self.server.program == Program::Oxenstored {
            return match self.unprivileged() && node.value.len() > self.server.quotas.node_size {
                true => Err(Refusal::TooBig),
                false => Ok(()),
            };
        }
        const HEADER: usize = 24;
        const PERMISSION: usize = 8;
        let size = HEADER
            + node.permissions.len() * PERMISSION
            + node.value.len()
            + node.child_list().len();
        if self.unprivileged() && size >= self.server.quotas.node_size {
            return Err(Refusal::QuotaExceeded);
        }
        Ok(())
    }

    /// Makes a node and those missing above it. They inherit the permissions of the node above;
    /// what an unprivileged domain makes is its own.
    fn create(&mut self, path: &str, value: &[u8]) -> Result<(), Refusal> {
        let mut missing = vec![path];
        let mut above = loop {
            let parent = tree::parent(missing[missing.len() - 1]).ok_or(Refusal::NotFound)?;
            match self.view()?.get(parent) {
                Some(node) => break (parent, node.clone()),
                None => missing.push(parent),
            }
        };
        if self.unprivileged()
            && self.server.tree.owned_by(self.domain) + missing.len() > self.server.quotas.nodes
        {
            return Err(Refusal::QuotaExceeded);
        }
        let mut writes = Vec::new();
        for path in missing.into_iter().rev() {
            let (parent, mut node) = above;
            node.children.push(tree::leaf(path).into());
            let mut made = Node::new(node.permissions.clone());
            if self.unprivileged() {
                made.permissions[0].domain = self.domain;
            }
            writes.push((parent, node));
            above = (path, made);
        }
        above.1.value = value.into();
        writes.push(above);
        for (_, node) in &writes {
            self.check_size(node)?;
        }
        let mut view = self.view()?;
        for (path, node) in writes {
            view.put(path, node);
        }
        self.changed(Change {
            path: path.into(),
            reach: Reach::Subtree,
            before: None,
        })
    }

    /// A node's value.
    pub fn read(&mut self, path: &str) -> Result<Vec<u8>, Refusal> {
        Ok(self.existing(path, Need::Read, false)?.1.value)
    }

    /// Sets a node's value, making the node and those above it where they are missing.
    pub fn write(&mut self, path: &str, value: impl AsRef<[u8]>) -> Result<(), Refusal> {
        let value = value.as_ref();
        match self.find(path, Need::Write, false)? {
            (path, None) => self.create(&path, value),
            (path, Some(mut node)) => {
                node.value = value.into();
                self.check_size(&node)?;
                let before = Some(node.permissions.clone());
                self.view()?.put(&path, node);
                self.changed(Change {
                    path,
                    reach: Reach::Subtree,
                    before,
                })
            }
        }
    }

    /// Makes sure that a node exists.
    pub fn mkdir(&mut self, path: &str) -> Result<(), Refusal> {
        match self.find(path, Need::Write, false)? {
            (path, None) => self.create(&path, b""),
            (_, Some(_)) => Ok(()),
        }
    }

    /// Removes a node and everything below. It is fine if there is none, but there must be a
    /// node above.
    pub fn remove(&mut self, path: &str) -> Result<(), Refusal> {
        let (path, node) = self.find(path, Need::Write, false)?;
        let above = tree::parent(&path).ok_or(Refusal::Invalid)?;
        let mut parent = self.view()?.get(above).cloned().ok_or(Refusal::NotFound)?;
        if node.is_none() {
            return Ok(());
        }
        self.remove_below(&path, Reach::Subtree)?;
        parent.children.retain(|name| name != tree::leaf(&path));
        self.view()?.put(above, parent);
        Ok(())
    }

    /// From the leaves up, each with its own event, while the nodes above can still be asked who
    /// may hear of it.
    fn remove_below(&mut self, path: &str, reach: Reach) -> Result<(), Refusal> {
        let Some(node) = self.view()?.get(path).cloned() else {
            return Ok(());
        };
        for name in &node.children {
            self.remove_below(&tree::child(path, name), Reach::Exact)?;
        }
        self.changed(Change {
            path: path.into(),
            reach,
            before: Some(node.permissions),
        })?;
        self.view()?.delete(path);
        Ok(())
    }

    /// The names of a node's children.
    pub fn list(&mut self, path: &str) -> Result<Vec<String>, Refusal> {
        Ok(self.existing(path, Need::Read, false)?.1.children)
    }

    /// The children as bytes, and the node's generation.
    pub(super) fn child_list(&mut self, path: &str) -> Result<(Vec<u8>, u64), Refusal> {
        let node = self.existing(path, Need::Read, false)?.1;
        Ok((node.child_list(), node.generation))
    }

    /// A node's permissions.
    pub fn permissions(&mut self, path: &str) -> Result<Vec<Permission>, Refusal> {
        Ok(self.existing(path, Need::Read, true)?.1.permissions)
    }

    /// Sets a node's permissions. Only its owner may, and only dom0 may name another owner.
    pub fn set_permissions(
        &mut self,
        path: &str,
        permissions: &[Permission],
    ) -> Result<(), Refusal> {
        let first = permissions.first().ok_or(Refusal::Invalid)?;
        if self.unprivileged() && permissions.len() > self.server.quotas.permissions {
            return Err(Refusal::QuotaExceeded);
        }
        let (path, mut node) = self.existing(path, Need::Own, true)?;
        if self.unprivileged() && first.domain != node.owner() {
            return Err(Refusal::NotPermitted);
        }
        let before = core::mem::replace(&mut node.permissions, permissions.into());
        self.check_size(&node)?;
        self.view()?.put(&path, node);
        self.changed(Change {
            path,
            reach: Reach::Subtree,
            before: Some(before),
        })
    }

    /// Sets a watch, and returns the event that is due at once.
    pub(super) fn watch(&mut self, path: &str, token: &[u8]) -> Result<Vec<u8>, Refusal> {
        let (path, skip) = self.canonical(path, true)?;
        let watch = Watch {
            path,
            token: token.into(),
            skip,
        };
        let quota = self.server.quotas.watches;
        let unprivileged = self.unprivileged();
        let watches = &mut self.connection()?.watches;
        if watches
            .iter()
            .any(|other| other.path == watch.path && other.token == watch.token)
        {
            return Err(Refusal::Exists);
        }
        if unprivileged && watches.len() >= quota {
            return Err(Refusal::QuotaExceeded);
        }
        let event = watch.event(&watch.path);
        watches.push(watch);
        Ok(event)
    }

    pub(super) fn unwatch(&mut self, path: &str, token: &[u8]) -> Result<(), Refusal> {
        let (path, _) = self.canonical(path, true)?;
        let watches = &mut self.connection()?.watches;
        let at = watches
            .iter()
            .position(|watch| watch.path == path && watch.token == token)
            .ok_or(Refusal::NotFound)?;
        watches.remove(at);
        Ok(())
    }

    fn connection(&mut self) -> Result<&mut super::Connection, Refusal> {
        self.server
            .connections
            .get_mut(&self.domain)
            .ok_or(Refusal::NotFound)
    }

    pub(super) fn reset(&mut self) -> Result<(), Refusal> {
        let connection = self.connection()?;
        connection.watches.clear();
        connection.transactions.clear();
        Ok(())
    }

    /// Opens a transaction of this domain.
    pub(super) fn begin(&mut self) -> Result<TransactionId, Refusal> {
        if self.transaction != TransactionId::NONE {
            return Err(Refusal::Busy);
        }
        let quota = self.server.quotas.transactions;
        let unprivileged = self.unprivileged();
        let connection = self.connection()?;
        if unprivileged && connection.transactions.len() >= quota {
            return Err(Refusal::QuotaExceeded);
        }
        connection.last_transaction += 1;
        let id = TransactionId(connection.last_transaction);
        connection.transactions.insert(id, Transaction::default());
        Ok(id)
    }

    /// Ends this session's transaction.
    pub(super) fn end(&mut self, commit: bool) -> Result<(), Refusal> {
        if commit && self.unprivileged() && self.server.faults.conflicts > 0 {
            self.take_transaction()?;
            self.server.faults.conflicts -= 1;
            return Err(Refusal::Again);
        }
        if commit {
            self.commit_undisturbed()
        } else {
            self.take_transaction().map(drop)
        }
    }

    pub(super) fn commit_undisturbed(&mut self) -> Result<(), Refusal> {
        let changes = self
            .take_transaction()?
            .commit(&mut self.server.tree)
            .ok_or(Refusal::Again)?;
        for change in &changes {
            self.server.fire(change);
        }
        Ok(())
    }

    fn take_transaction(&mut self) -> Result<Transaction, Refusal> {
        let id = self.transaction;
        self.connection()?
            .transactions
            .remove(&id)
            .ok_or(Refusal::NotFound)
    }
}
