//! Watches over the guests' sides of the disks: one xenstore watch for each guest, however many
//! disks it has, because a domain may only set 128 of them (xenstored's default quota).
//!
//! All disks share one connection to xenstored, which serves an unprivileged domain some hundreds of
//! requests a second. The requests that a guest causes are charged to the guest, and while it is in debt its
//! changes wait: a guest that changes its nodes without end does not keep others from attaching.

use crate::bucket::{Bucket, Size};
use crate::changes::{Changes, Stale};
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use bulkhead_executor::{Handle, Task};
use bulkhead_xen::{Hypervisor, Instant};
use bulkhead_xenstore_client::{Client, Error};
use core::cell::RefCell;
use core::time::Duration;
use litemap::LiteMap;

/// The time after a failure until a watch is set again.
const RETRY: Duration = Duration::from_secs(5);

/// The messages to xenstored that a guest may cause at once after it was quiet, and how many more in a
/// second. The debt is short: libxl waits ten seconds for a disk to close.
const MESSAGES: Size = Size {
    most: 1000,
    debt: 60,
    one_more: Duration::from_millis(50),
};

/// Every guest that has a disk of ours.
#[derive(Clone, Default)]
pub struct GuestFrontends(Rc<RefCell<LiteMap<String, Guest>>>);

/// The directory of one guest's disks (`/local/domain/<guest>/device/vbd`).
struct Guest {
    /// The task that watches it. It is stopped with the last disk, which drops the watch.
    watching: Task,
    disks: Vec<(String, Changes)>,
    messages: Bucket,
}

impl GuestFrontends {
    /// Raises `changed` whenever something in the frontend directory `path` may have changed,
    /// at least once, until the value returned is dropped.
    pub fn follow<H: Hypervisor>(
        &self,
        handle: &Handle<H>,
        store: &Client,
        path: &str,
        changed: &Changes,
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
            changed.raise_for(Stale::FRONTEND);
        } else {
            let (frontends, store, watched) = (self.clone(), store.clone(), guest.clone());
            let retry = handle.clone();
            let watching = handle.spawn(async move {
                // xenstored may have no watch left for us (its quota); until it has, the guest's disks wait.
                let mut told = false;
                while let Err(error) = frontends.watch(&retry, &store, &watched).await
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
                    messages: Bucket::new(MESSAGES, handle.now()),
                },
            );
        }
        Following {
            frontends: self.clone(),
            guest,
            path: path.to_string(),
        }
    }

    async fn watch<H: Hypervisor>(
        &self,
        handle: &Handle<H>,
        store: &Client,
        guest: &str,
    ) -> Result<(), Error> {
        let mut watch = store.watch(guest).await?;
        loop {
            let event = watch.next().await?;
            if !self.concerns_a_disk(guest, event.as_str()) {
                continue;
            }
            // Meanwhile, equal events become one.
            while let Some(end) = self.in_debt_until(guest, handle.now()) {
                handle.sleep_until(end).await;
            }
            self.tell(guest, event.as_str());
        }
    }

    fn concerns_a_disk(&self, guest: &str, event: &str) -> bool {
        let guests = self.0.borrow();
        let mut disks = guests.get(guest).into_iter().flat_map(|guest| &guest.disks);
        disks.any(|(path, _)| stale_by(event, path) != Stale::NONE)
    }

    fn in_debt_until(&self, guest: &str, now: Instant) -> Option<Instant> {
        let mut guests = self.0.borrow_mut();
        guests.get_mut(guest)?.messages.in_debt_until(now)
    }

    fn tell(&self, guest: &str, event: &str) {
        if let Some(guest) = self.0.borrow().get(guest) {
            for (path, changed) in &guest.disks {
                changed.raise_for(stale_by(event, path));
            }
        }
    }
}

/// Returns what an event makes stale of the frontend with this directory.
fn stale_by(event: &str, directory: &str) -> Stale {
    match event.strip_prefix(directory) {
        Some(rest) => Stale::in_frontend(rest),
        None if is_within(directory, event) => Stale::FRONTEND,
        None => Stale::NONE,
    }
}

/// Returns whether `path` is `directory` or below it.
pub fn is_within(path: &str, directory: &str) -> bool {
    path.strip_prefix(directory)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// A followed frontend. Dropping this ends the following.
pub struct Following {
    frontends: GuestFrontends,
    guest: String,
    path: String,
}

impl Following {
    /// Charges the guest with messages that it has brought about.
    pub fn charge(&self, now: Instant, messages: usize) {
        if let Some(guest) = self.frontends.0.borrow_mut().get_mut(&self.guest) {
            guest.messages.charge(now, messages);
        }
    }
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
    use super::*;

    #[test]
    fn an_event_concerns_a_directory_and_what_is_in_it() {
        assert!(is_within("/a/51712/state", "/a/51712"));
        assert!(is_within("/a/51712", "/a/51712"));
        assert!(!is_within("/a/517123", "/a/51712"));
        assert!(!is_within("/a", "/a/51712"));
    }

    #[test]
    fn an_event_is_about_a_disks_state_or_about_nothing() {
        let stale = |event| stale_by(event, "/a/51712");
        for event in ["/a/51712/state", "/a/51712", "/a"] {
            assert_eq!(stale(event), Stale::FRONTEND, "{event}");
        }
        for event in [
            "/a/51712/ring-ref",
            "/a/517123/state",
            "/a/51728/state",
            "/b",
        ] {
            assert_eq!(stale(event), Stale::NONE, "{event}");
        }
    }
}
