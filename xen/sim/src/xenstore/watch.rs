//! Watches: which change reaches which watcher, and under which name.

use super::tree::is_below;

/// How far up a change is felt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// By watches on the node itself: nodes that vanish along with a parent.
    Exact,
    /// By watches on the node and on everything above it.
    Subtree,
}

/// One watch of one domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Watch {
    /// The absolute path, or a special name.
    pub path: String,
    pub token: Vec<u8>,
    /// How many bytes of an absolute path this watcher does not want to see: the domain's own
    /// directory, if it asked by a relative path.
    pub skip: usize,
}

impl Watch {
    pub fn feels(&self, path: &str, reach: Reach) -> bool {
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
