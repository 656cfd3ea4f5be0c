//! The error nodes, where an operator reads what is wrong with a disk.

use super::identity::{ERROR_ROOT, VbdId};
use alloc::collections::VecDeque;
use alloc::format;
use bulkhead_xen::DomId;
use bulkhead_xenstore_client::{Client, Error};
use core::cell::RefCell;

/// Of how many guests errors are kept. Guests' numbers are never used again, and xenstored lets a
/// domain own only so many nodes: without an end, errors of yesterday would keep disks away.
const GUESTS: usize = 32;

/// The guests that have error nodes, the oldest first.
#[derive(Default)]
pub struct ErrorNodes(RefCell<VecDeque<DomId>>);

impl ErrorNodes {
    /// Writes the error of a disk, and forgets those of the guest that has had one for longest if
    /// there are too many.
    pub async fn write(&self, store: &Client, id: VbdId, text: &str) -> Result<(), Error> {
        let forgotten = {
            let mut guests = self.0.borrow_mut();
            guests.retain(|guest| *guest != id.frontend);
            guests.push_back(id.frontend);
            match guests.len() > GUESTS {
                true => guests.pop_front(),
                false => None,
            }
        };
        if let Some(guest) = forgotten {
            store.remove(format!("{ERROR_ROOT}/{guest}")).await?;
        }
        store.write(id.error_path(), text).await
    }
}
