//! The nodes: values, permissions, children and the generation that conflicts are found by.

use bulkhead_xen::DomId;
use bulkhead_xen::abi::xs_wire::{NodeAccess, Permission};
use std::collections::BTreeMap;

/// dom0, which may do everything.
pub(super) const DOM0: DomId = DomId(0);

/// One node. Its children are part of it: a transaction that made a node conflicts with a change of the
/// parent's list of children, as in xenstored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub value: Vec<u8>,
    pub permissions: Vec<Permission>,
    pub children: Vec<String>,
    pub generation: u64,
}

impl Node {
    pub fn new(permissions: Vec<Permission>) -> Node {
        Node {
            value: Vec::new(),
            permissions,
            children: Vec::new(),
            generation: 0,
        }
    }

    pub fn owner(&self) -> DomId {
        self.permissions[0].domain
    }

    /// The children as a DIRECTORY message lists them.
    pub fn child_list(&self) -> Vec<u8> {
        let mut list = Vec::new();
        for child in &self.children {
            list.extend_from_slice(child.as_bytes());
            list.push(0);
        }
        list
    }
}

/// The rights of a domain, given a node's list of permissions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rights {
    pub read: bool,
    pub write: bool,
    pub owner: bool,
}

impl Rights {
    pub fn of(domain: DomId, permissions: &[Permission]) -> Rights {
        if domain == DOM0 || permissions[0].domain == domain {
            return Rights {
                read: true,
                write: true,
                owner: true,
            };
        }
        let entry = permissions[1..]
            .iter()
            .find(|entry| entry.domain == domain)
            .unwrap_or(&permissions[0]);
        Rights {
            read: entry.access.reads(),
            write: entry.access.writes(),
            owner: false,
        }
    }

    /// Returns whether these rights are enough for what `need` asks.
    pub fn cover(self, need: Need) -> bool {
        match need {
            Need::Read => self.read,
            Need::Write => self.write,
            Need::Own => self.write && self.owner,
        }
    }
}

/// The right that an operation needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    Read,
    Write,
    Own,
}

/// The whole store.
#[derive(Debug)]
pub(super) struct Tree {
    nodes: BTreeMap<String, Node>,
    generation: u64,
}

impl Tree {
    /// Returns what xenstored starts with.
    pub fn new() -> Tree {
        let mut tree = Tree {
            nodes: BTreeMap::new(),
            generation: 0,
        };
        let dom0_only = vec![Permission {
            domain: DOM0,
            access: NodeAccess::None,
        }];
        let with_child = |child: &str| {
            let mut node = Node::new(dom0_only.clone());
            node.children.push(child.into());
            node
        };
        tree.put("/", with_child("tool"));
        tree.put("/tool", with_child("xenstored"));
        tree.put("/tool/xenstored", Node::new(dom0_only.clone()));
        tree.put("@introduceDomain", Node::new(dom0_only.clone()));
        tree.put("@releaseDomain", Node::new(dom0_only));
        tree
    }

    pub fn get(&self, path: &str) -> Option<&Node> {
        self.nodes.get(path)
    }

    /// A number that no node has as its generation yet.
    pub fn next_generation(&mut self) -> u64 {
        self.generation += 1;
        self.generation
    }

    pub fn put(&mut self, path: &str, mut node: Node) {
        node.generation = self.next_generation();
        self.nodes.insert(path.into(), node);
    }

    pub fn delete(&mut self, path: &str) {
        self.nodes.remove(path);
    }

    /// Returns the number of nodes that a domain owns.
    pub fn owned_by(&self, domain: DomId) -> usize {
        self.nodes
            .values()
            .filter(|node| node.owner() == domain)
            .count()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.nodes.iter().map(|(path, node)| (path.as_str(), node))
    }
}

/// The path above; `None` for the root and for special names.
pub(super) fn parent(path: &str) -> Option<&str> {
    match path.rfind('/')? {
        0 if path.len() == 1 => None,
        0 => Some("/"),
        slash => Some(&path[..slash]),
    }
}

/// The last part of a path.
pub(super) fn leaf(path: &str) -> &str {
    &path[path.rfind('/').map_or(0, |slash| slash + 1)..]
}

/// The path of a child.
pub(super) fn child(path: &str, name: &str) -> String {
    if path == "/" {
        format!("/{name}")
    } else {
        format!("{path}/{name}")
    }
}

/// Returns whether `path` is `top` or lies below it.
pub(super) fn is_below(path: &str, top: &str) -> bool {
    top == "/" && path.starts_with('/')
        || path
            .strip_prefix(top)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
