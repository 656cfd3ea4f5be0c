//! What xenstore says about a disk: the nodes that the state machine goes by.

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

/// Knows where both ends of a disk say they are. Only what may have changed is read again.
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
    /// Observes the disk with that directory of ours and that one of the frontend's.
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

    /// Where both ends say they are. An error says nothing about the disk.
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
                // The toolstack has spoken: it waits for us, whoever else has to.
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

    /// This state was written into the directory of ours, or could not be, because the directory is not
    /// what it was.
    pub fn wrote(&self, state: XenbusState, written: bool) {
        let known = self.known.get().filter(|_| written);
        self.known.set(known.map(|known| Observed {
            own: Some(state),
            ..known
        }));
    }

    /// Charges the guest with messages that it has brought about.
    pub fn charge(&self, messages: usize) {
        self.following.charge(self.handle.now(), messages);
    }

    /// Tells of changes.
    pub fn changes(&self) -> &Changes {
        &self.changes
    }
}

/// What has to be read again, unless it is said to have been read: nobody may go on waiting for that.
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
