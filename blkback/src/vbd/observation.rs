//! The nodes of a disk on which the state machine decides, as xenstore has them.

use super::state_machine::Observed;
use crate::changes::{Changes, Stale};
use crate::frontends::Following;
use crate::services::Services;
use alloc::format;
use alloc::string::String;
use bulkhead_executor::Handle;
use bulkhead_xen::Hypervisor;
use bulkhead_xenbus::{XenbusState, own_node, peer_node};
use bulkhead_xenstore_client::{Client, Error};
use core::cell::Cell;

/// Reads the states of both ends of a disk. Only what may have changed is read again.
pub struct Observer<H: Hypervisor> {
    handle: Handle<H>,
    store: Client,
    path: String,
    frontend: String,
    changes: Changes,
    following: Following,
    known: Cell<Option<Observed>>,
}

impl<H: Hypervisor> Observer<H> {
    /// Observes the disk whose backend directory is `path` and whose frontend directory is `frontend`.
    pub fn new(services: &Services<H>, path: &str, frontend: &str, changes: &Changes) -> Self {
        let (handle, store) = (&services.handle, &services.store);
        Observer {
            handle: handle.clone(),
            store: store.clone(),
            path: path.into(),
            frontend: frontend.into(),
            changes: changes.clone(),
            following: services.frontends.follow(handle, store, frontend, changes),
            known: Cell::new(None),
        }
    }

    /// Returns the states of both ends. An error says nothing about the disk.
    pub async fn observe(&self) -> Result<Observed, Error> {
        let unread = Unread {
            changes: &self.changes,
            stale: self.changes.take_stale(),
        };
        let seen = self.look(unread.stale).await?;
        self.known.set(Some(seen));
        unread.done();
        Ok(seen)
    }

    async fn look(&self, mut stale: Stale) -> Result<Observed, Error> {
        let known = self.known.get();
        if known.is_none() {
            stale = Stale::ALL;
        }
        let mut seen = known.unwrap_or(Observed {
            own: None,
            online: true,
            frontend: None,
        });
        if stale.own {
            let own = own_node(&self.store, format!("{}/state", self.path)).await?;
            seen.own = own.map(|state| XenbusState::parse(Some(&state)));
            if known.is_none_or(|known| known.own != seen.own) {
                // The toolstack wrote it and waits for this domain: its request comes before the guest's charge.
                stale = Stale::ALL;
            }
        }
        if stale.online {
            let online = own_node(&self.store, format!("{}/online", self.path)).await?;
            seen.online = online.as_deref() != Some("0");
        }
        if stale.frontend {
            self.charge(1);
            let frontend = peer_node(&self.store, format!("{}/state", self.frontend)).await?;
            seen.frontend = frontend.map(|state| XenbusState::parse(Some(&state)));
        }
        Ok(seen)
    }

    /// Notes that this state was written into the backend's directory, or was not, because the directory has changed
    /// meanwhile.
    pub fn wrote(&self, state: XenbusState, written: bool) {
        let known = self.known.get().filter(|_| written);
        self.known.set(known.map(|known| Observed {
            own: Some(state),
            ..known
        }));
    }

    /// Charges the guest with messages that it has caused.
    pub fn charge(&self, messages: usize) {
        self.following.charge(self.handle.now(), messages);
    }

    /// Returns the changes that are reported to the disk's task.
    pub fn changes(&self) -> &Changes {
        &self.changes
    }
}

/// Nodes that count as unread again when this is dropped before [`done`](Self::done): a change must not be
/// lost if the read fails.
struct Unread<'a> {
    changes: &'a Changes,
    stale: Stale,
}

impl Unread<'_> {
    fn done(mut self) {
        self.stale = Stale::NONE;
    }
}

impl Drop for Unread<'_> {
    fn drop(&mut self) {
        self.changes.put_back(self.stale);
    }
}
