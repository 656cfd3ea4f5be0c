//! The domain's xenstore.

use crate::Machine;
use bulkhead_xenstore_client::{Client, Ring};

impl Machine {
    /// Starts a client of the domain's xenstore.
    ///
    /// # Panics
    /// If there is one already.
    pub fn xenstore(&self) -> Client {
        assert!(!self.has_store.replace(true), "the ring has one user");
        // SAFETY: the domain's xenstore ring, used here alone, as just checked.
        let ring = unsafe { Ring::new(self.domain.hypervisor(), self.domain.store_ring()) };
        Client::start(&self.handle(), ring)
    }
}
