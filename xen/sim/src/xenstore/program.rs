//! The two programs that keep a xenstore on Xen, and where they answer differently.

use super::{Quotas, Server};
use bulkhead_xen::abi::xs_wire::{MessageType, PAYLOAD_MAX, Refusal};

/// The program that the server behaves like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Program {
    /// The one in C.
    #[default]
    Xenstored,
    /// The one in OCaml.
    Oxenstored,
}

impl Program {
    /// Returns this program's refusal where the one in C would refuse with `refusal`.
    pub(super) fn word(self, refusal: Refusal) -> Refusal {
        match (self, refusal) {
            (Program::Oxenstored, Refusal::QuotaExceeded) => Refusal::OverQuota,
            (_, refusal) => refusal,
        }
    }

    /// The longest answer.
    pub(super) fn longest_answer(self) -> usize {
        match self {
            Program::Xenstored => PAYLOAD_MAX,
            Program::Oxenstored => PAYLOAD_MAX - 1,
        }
    }

    /// Returns whether it has such a request.
    pub(super) fn knows(self, message_type: MessageType) -> bool {
        self == Program::Xenstored || message_type != MessageType::DIRECTORY_PART
    }
}

impl Server {
    /// From here on behaves as oxenstored 4.17 does, with its quotas by default.
    pub fn become_oxenstored(&mut self) {
        self.program = Program::Oxenstored;
        self.quotas = Quotas {
            // It refuses what comes after one too many.
            watches: 101,
            transactions: 11,
            permissions: usize::MAX,
            ..Quotas::default()
        };
    }
}
