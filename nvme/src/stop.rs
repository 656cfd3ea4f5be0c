//! Stopping a controller when the domain ends.

use crate::registers::{disable, status};
use alloc::sync::Arc;
use bulkhead_xen::{Registers, StopDevice};

/// Stops a controller without its task, when the domain shuts down or crashes.
pub struct Stop(pub Arc<dyn Registers>);

impl StopDevice for Stop {
    fn begin_stop(&self) {
        disable(&*self.0);
    }

    fn has_stopped(&self) -> bool {
        let status = status(&*self.0);
        status.is_gone() || !status.is_ready()
    }
}
