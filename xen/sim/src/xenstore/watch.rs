//! Watches: the changes that reach a watcher, and the paths under which it sees them.

use super::tree::is_below;

/// The watches that a change reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// Watches on the node itself: for nodes that vanish along with a parent.
    Exact,
    /// Watches on the node and on every node above it.
    Subtree,
}

/// One watch of one domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Watch {
    /// The absolute path, or a special name.
    pub path: String,
    pub token: Vec<u8>,
    /// The number of bytes that are left out of an absolute path for this watcher: the domain's own
    /// directory, if it set the watch with a relative path.
    pub skip: usize,
}

impl Watch {
    pub fn is_of(&self, path: &str, reach: Reach) -> bool {
        match reach {
            Reach::Exact => path == self.path,
            Reach::Subtree => is_below(path, &self.path),
        }
    }

    /// The payload of the event for a change of `path`.
    pub fn event(&self, path: &str) -> Vec<u8> {
        let mut payload = path.as_bytes()[self.skip..].to_vec();
        payload.push(0);
        payload.extend_from_slice(&self.token);
        payload.push(0);
        payload
    }
}
