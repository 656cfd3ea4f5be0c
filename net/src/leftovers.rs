//! Memory that backends do not let go of: one hangs, or another domain has a packet of its for long.

use crate::rings::GrantedMemory;
use alloc::rc::Rc;
use alloc::vec::Vec;
use bulkhead_executor::Handle;
use bulkhead_xen::{DomId, Hypervisor};
use core::cell::RefCell;
use core::time::Duration;

/// The most connections whose memory is kept: by one backend, and by all together. There is no further one beside them.
const MOST_OF_ONE: usize = 2;
const MOST: usize = 4;
/// The time between two attempts to take memory back.
const AGAIN: Duration = Duration::from_secs(30);

/// The memory of earlier connections. A backend that still writes to it does no harm: nobody reads it.
pub struct Leftovers<H: Hypervisor> {
    handle: Handle<H>,
    /// The backend of each connection.
    backends: Rc<RefCell<Vec<DomId>>>,
}

impl<H: Hypervisor> Leftovers<H> {
    /// Returns an empty list.
    pub fn new(handle: Handle<H>) -> Self {
        Leftovers {
            handle,
            backends: Rc::default(),
        }
    }

    /// Returns whether there may be a further connection to a backend: each takes memory.
    pub fn allow(&self, backend: DomId) -> bool {
        let backends = self.backends.borrow();
        let of_one = backends.iter().filter(|other| **other == backend).count();
        of_one < MOST_OF_ONE && backends.len() < MOST
    }

    /// Takes memory back once its backend lets go of it.
    pub fn keep(&self, backend: DomId, mut memory: GrantedMemory<H>) {
        let (handle, backends) = (self.handle.clone(), self.backends.clone());
        backends.borrow_mut().push(backend);
        self.handle.spawn(async move {
            while !memory.revoke() {
                handle.sleep(AGAIN).await;
            }
            let mut backends = backends.borrow_mut();
            let place = backends.iter().position(|other| *other == backend);
            place.map(|place| backends.swap_remove(place));
        });
    }
}
