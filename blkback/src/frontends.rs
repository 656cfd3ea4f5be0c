//! Watches over the guests' sides of the disks: one xenstore watch for each guest, however many
//! disks it has, because a domain may only set 128 of them (xenstored's default quota).

use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use bulkhead_executor::{Handle, Signal, Task};
use bulkhead_xen::Hypervisor;
use bulkhead_xenstore_client::{Client, Error};
use core::cell::RefCell;
use core::time::Duration;

/// How long after a failure a watch is tried for again.
const RETRY: Duration = Duration::from_secs(5);

/// Every guest that has a disk of ours.
#[derive(Clone, Default)]
pub struct Frontends(Rc<RefCell<BTreeMap<String, Guest>>>);

/// One guest's directory of disks (`/local/domain/<guest>/device/vbd`).
struct Guest {
    /// Stopped with the last disk, which drops the watch.
    watching: Task,
    disks: Vec<(String, Signal)>,
}

impl Frontends {
    /// Raises `changed` whenever something in the frontend directory `path` may have changed,
    /// at least once, until what this returns is dropped.
    pub fn follow<H: Hypervisor>(
        &self,
        handle: &Handle<H>,
        store: &Client,
        path: &str,
        changed: &Signal,
    ) -> Following {
        let guest = path
            .rsplit_once('/')
            .map_or("", |(parent, _)| parent)
            .to_string();
        let disk = (path.to_string(), changed.clone());
        let mut guests = self.0.borrow_mut();
        if let Some(followed) = guests.get_mut(&guest) {
            followed.disks.push(disk);
            // The watch may have fired for the first time before this disk was there.
            changed.raise();
        } else {
            let (frontends, store, watched) = (self.clone(), store.clone(), guest.clone());
            let retry = handle.clone();
            let watching = handle.spawn(async move {
                // xenstored may have no watch left for us (its quota); until it has, the guest's disks wait.
                let mut told = false;
                while let Err(error) = frontends.watch(&store, &watched).await
                    && !error.is_disconnected()
                {
                    if !told {
                        log::error!("watching {watched}, to be tried again: {error}");
                        told = true;
                    }
                    retry.sleep(RETRY).await;
                }
            });
            guests.insert(
                guest.clone(),
                Guest {
                    watching,
                    disks: alloc::vec![disk],
                },
            );
        }
        Following {
            frontends: self.clone(),
            guest,
            path: path.to_string(),
        }
    }

    async fn watch(&self, store: &Client, guest: &str) -> Result<(), Error> {
        let mut watch = store.watch(guest).await?;
        loop {
            let event = watch.next().await?;
            if let Some(guest) = self.0.borrow().get(guest) {
                let event = event.as_str();
                for (path, changed) in &guest.disks {
                    if is_within(event, path) || is_within(path, event) {
                        changed.raise();
                    }
                }
            }
        }
    }
}

/// Whether `path` is `directory` or below it.
pub fn is_within(path: &str, directory: &str) -> bool {
    path.strip_prefix(directory)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// A followed frontend. Dropping it ends that.
pub struct Following {
    frontends: Frontends,
    guest: String,
    path: String,
}

impl Drop for Following {
    fn drop(&mut self) {
        let mut guests = self.frontends.0.borrow_mut();
        let Some(guest) = guests.get_mut(&self.guest) else {
            return;
        };
        guest.disks.retain(|(path, _)| *path != self.path);
        if guest.disks.is_empty() {
            guest.watching.stop();
            guests.remove(&self.guest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::is_within;

    #[test]
    fn an_event_concerns_a_directory_and_what_is_in_it() {
        assert!(is_within("/a/51712/state", "/a/51712"));
        assert!(is_within("/a/51712", "/a/51712"));
        assert!(!is_within("/a/517123", "/a/51712"));
        assert!(!is_within("/a", "/a/51712"));
    }
}
