//! Limits and faults of the server: quotas as xenstored sets them, and faults that tests ask for.

use bulkhead_xen::DomId;
use bulkhead_xen::abi::xs_wire::{MessageType, Refusal};
use std::fmt;

/// The quotas of one unprivileged domain: xenstored's defaults.
#[derive(Clone, Debug)]
pub struct Quotas {
    /// Nodes that it owns.
    pub nodes: usize,
    /// Watches.
    pub watches: usize,
    /// Open transactions.
    pub transactions: usize,
    /// Bytes in a node: value, children's names and permissions together.
    pub node_size: usize,
    /// Permissions of a node.
    pub permissions: usize,
    /// Replies that it has not taken yet, beyond which its requests have to wait.
    pub outstanding: usize,
}

impl Default for Quotas {
    fn default() -> Self {
        Quotas {
            nodes: 1000,
            watches: 128,
            transactions: 10,
            node_size: 2048,
            permissions: 5,
            outstanding: 20,
        }
    }
}

/// Changes an outgoing message: the domain it goes to, and its bytes with the header.
pub type Mangle = Box<dyn FnMut(DomId, &mut Vec<u8>) + Send>;

/// Decides whether a request of an unprivileged domain is refused: the domain, the kind of request and
/// the path that it names (as the domain wrote it; empty if it names none).
pub type Refuse = Box<dyn FnMut(DomId, MessageType, &str) -> Option<Refusal> + Send>;

/// The server's misbehaviour.
#[derive(Default)]
pub struct Faults {
    /// A slow store: the most requests that one step serves.
    pub requests_per_step: Option<usize>,
    /// A stalled store: requests are taken but not served.
    pub stalled: bool,
    /// The number of the next commits of unprivileged domains that are answered EAGAIN.
    pub conflicts: u32,
    /// Replies of one step leave in reverse order, as the protocol allows.
    pub reverse_replies: bool,
    /// Changes messages on their way out.
    pub mangle: Option<Mangle>,
    /// Refuses requests, as a server does that is out of memory or damaged.
    pub refuse: Option<Refuse>,
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faults")
            .field("requests_per_step", &self.requests_per_step)
            .field("stalled", &self.stalled)
            .field("conflicts", &self.conflicts)
            .field("reverse_replies", &self.reverse_replies)
            .field("mangle", &self.mangle.is_some())
            .field("refuse", &self.refuse.is_some())
            .finish()
    }
}
