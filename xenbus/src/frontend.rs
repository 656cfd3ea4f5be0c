//! The parts that frontends of all devices share: the nodes of both ends, the steps from one state to the next, and the
//! pauses between attempts to connect.

mod nodes;
mod retries;
mod state_machine;

pub use nodes::{FrontendDirectory, FrontendNodes, Peer, write_nodes};
pub use retries::{LONGEST_RETRY, Retries};
pub use state_machine::{Observed, Phase, Step, decide, is_left};
