//! Transactions: what one has read and written, and whether it may still be committed.

use super::tree::{Node, Tree};
use super::watch::Reach;
use bulkhead_xen::abi::xs_wire::Permission;

/// One node that a transaction has touched.
#[derive(Debug)]
struct Touched {
    path: String,
    /// The generation it had when it was first touched; `None` if it did not exist.
    base: Option<u64>,
    /// The node as the transaction sees it now.
    node: Option<Node>,
    modified: bool,
    /// Permissions when first touched: watchers that could read it then hear of the change.
    before: Option<Vec<Permission>>,
    fire: Option<Reach>,
}

/// A watch event that is due, with the permissions that the node had before the change.
#[derive(Debug)]
pub(super) struct Change {
    pub path: String,
    pub reach: Reach,
    pub before: Option<Vec<Permission>>,
}

/// An open transaction.
#[derive(Debug, Default)]
pub(super) struct Transaction {
    touched: Vec<Touched>,
}

impl Transaction {
    fn touch<'a>(&'a mut self, tree: &Tree, path: &str) -> &'a mut Touched {
        let at = match self.touched.iter().position(|entry| entry.path == path) {
            Some(at) => at,
            None => {
                let node = tree.get(path).cloned();
                self.touched.push(Touched {
                    path: path.into(),
                    base: node.as_ref().map(|node| node.generation),
                    before: node.as_ref().map(|node| node.permissions.clone()),
                    node,
                    modified: false,
                    fire: None,
                });
                self.touched.len() - 1
            }
        };
        &mut self.touched[at]
    }

    fn conflicts(&self, tree: &Tree) -> bool {
        self.touched
            .iter()
            .any(|entry| tree.get(&entry.path).map(|node| node.generation) != entry.base)
    }

    /// Writes everything to the store, unless a node that this transaction has touched was changed
    /// meanwhile. Returns what changed.
    pub fn commit(self, tree: &mut Tree) -> Option<Vec<Change>> {
        if self.conflicts(tree) {
            return None;
        }
        let mut changes = Vec::new();
        for entry in self.touched {
            if entry.modified {
                match entry.node {
                    Some(node) => tree.put(&entry.path, node),
                    None => tree.delete(&entry.path),
                }
            }
            if let Some(reach) = entry.fire {
                changes.push(Change {
                    path: entry.path,
                    reach,
                    before: entry.before,
                });
            }
        }
        Some(changes)
    }
}

/// The store as one request sees it: directly, or through its transaction.
pub(super) struct View<'a> {
    pub tree: &'a mut Tree,
    pub transaction: Option<&'a mut Transaction>,
}

impl View<'_> {
    pub fn get(&mut self, path: &str) -> Option<&Node> {
        match &mut self.transaction {
            Some(transaction) => transaction.touch(self.tree, path).node.as_ref(),
            None => self.tree.get(path),
        }
    }

    pub fn put(&mut self, path: &str, mut node: Node) {
        match &mut self.transaction {
            Some(transaction) => {
                node.generation = self.tree.next_generation();
                let entry = transaction.touch(self.tree, path);
                entry.node = Some(node);
                entry.modified = true;
            }
            None => self.tree.put(path, node),
        }
    }

    pub fn delete(&mut self, path: &str) {
        match &mut self.transaction {
            Some(transaction) => {
                let entry = transaction.touch(self.tree, path);
                entry.node = None;
                entry.modified = true;
            }
            None => self.tree.delete(path),
        }
    }

    /// Notes that watches are to fire: in a transaction when it is committed, else the change is
    /// added to `now`.
    pub fn changed(&mut self, change: Change, now: &mut Vec<Change>) {
        match &mut self.transaction {
            Some(transaction) => {
                let entry = transaction.touch(self.tree, &change.path);
                if entry.fire != Some(Reach::Subtree) {
                    entry.fire = Some(change.reach);
                }
            }
            None => now.push(change),
        }
    }
}
