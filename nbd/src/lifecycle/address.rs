//! The address of an export's server. All lines are connected to the same one: a server says of its own connections
//! alone that a flush on one covers the writes on another (`CAN_MULTI_CONN`), and a name may have the addresses of
//! several servers.

use alloc::string::ToString;
use bulkhead_stream::{AddressChoice, Endpoint};
use core::cell::Cell;
use core::net::IpAddr;

/// The address, as the lines of an export share it: the first line chooses it, and the others follow.
#[derive(Default)]
pub struct ServerAddress {
    /// The first line's choice.
    pub choice: AddressChoice,
    used: Cell<Option<IpAddr>>,
    /// The number of other lines that are connected to it, and of those that still are to the one of before.
    others: Cell<usize>,
    leaving: Cell<usize>,
}

impl ServerAddress {
    /// Returns the server at the address that the first line has chosen.
    pub fn server(&self, named: &Endpoint) -> Endpoint {
        let host = self.used.get().map(|address| address.to_string());
        Endpoint {
            host: host.unwrap_or_else(|| named.host.clone()),
            port: named.port,
        }
    }

    /// Notes that the server is of use at the address to which the first line has connected. The other lines end their
    /// connections to any other address.
    pub fn choose(&self) {
        self.choice.keep();
        if !self.is_used(self.choice.last()) {
            self.used.set(self.choice.last());
            self.leaving.set(self.others.take());
        }
    }

    /// Returns whether all lines are to be connected to that address.
    pub fn is_used(&self, address: Option<IpAddr>) -> bool {
        self.used.get() == address
    }

    /// Notes that another line than the first is connected to the address.
    pub fn joined(&self) {
        self.others.set(self.others.get() + 1);
    }

    /// Notes that a line that has joined is connected no longer; `address` is where it was.
    pub fn left(&self, address: Option<IpAddr>) {
        let count = match self.is_used(address) {
            true => &self.others,
            false => &self.leaving,
        };
        count.set(count.get() - 1);
    }

    /// Returns whether no line is connected to any other address.
    pub fn is_left_by_all(&self) -> bool {
        self.leaving.get() == 0
    }
}
