//! Finding the namespaces of a controller: when it starts, and when they have changed.

use super::ControllerTask;
use crate::admin::AdminError;
use crate::command::admin::{self, Identify};
use crate::command::{
    ControllerData, NamespaceData, NamespaceError, NamespaceId, PAGE, active_namespaces,
};
use crate::namespace::Namespace;
use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_xen::{Hypervisor, Instant};
use core::time::Duration;
use log::Level;

/// The most namespaces of a controller that are served.
const MOST_NAMESPACES: usize = 128;

/// The pause before namespaces are read again that a controller could not describe for the moment.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// The time that a controller has after a reset to describe the namespaces that it had before, and the pause before it
/// is asked again. All of its requests wait meanwhile.
const DESCRIBES: Duration = Duration::from_secs(10);
const DESCRIBES_PAUSE: Duration = Duration::from_millis(100);

impl<H: Hypervisor> ControllerTask<'_, H> {
    /// Finds the namespaces that a controller has which has started, for the first time or after a reset. Others may be in
    /// the place of those that it had before: none is kept that it does not describe.
    pub(super) async fn find_namespaces_anew(&mut self) -> Result<(), AdminError> {
        let over = self.handle.now() + DESCRIBES;
        self.find_namespaces(Some(over)).await
    }

    /// Reads which namespaces there are now, and what each is. One that was removed or replaced is not served any more.
    /// One that is known, and not described for the moment, is kept; if there is a point in time, the controller is asked
    /// again until then, and it is not kept after that.
    pub(super) async fn find_namespaces(
        &mut self,
        over: Option<Instant>,
    ) -> Result<(), AdminError> {
        let Some(data) = self.controller.data().cloned() else {
            return Ok(());
        };
        self.look_again = None;
        let mut namespaces = Vec::new();
        let mut refused = Vec::new();
        for id in self.active_namespaces(&data).await? {
            let found = match self.describe(id, over).await {
                Ok(bytes) => NamespaceData::parse(&bytes).map_err(|error| error.to_string()),
                Err(AdminError::Refused { status, .. }) => {
                    if status.may_be_retried() {
                        self.look_again = Some(self.handle.now() + LOOK_AGAIN);
                        // The controller has not said that the namespace is gone: it is kept.
                        if over.is_none()
                            && let Some(known) = self.controller.namespace(id)
                        {
                            namespaces.push(known);
                            continue;
                        }
                    }
                    Err(status.to_string())
                }
                Err(error) => return Err(error),
            };
            match found {
                Ok(found) => namespaces.push(self.known_or_new(id, found, &data)),
                // A controller without a list of namespaces was asked for every number that it may have.
                Err(reason) if reason == NamespaceError::Missing.to_string() => {}
                Err(reason) => {
                    if self.controller.refused(id).as_ref() != Some(&reason) {
                        let line = format_args!("/n{id}: it is not served: {reason}");
                        self.tell(Level::Warn, line);
                    }
                    refused.push((id, reason));
                }
            }
        }
        for before in self.controller.namespaces() {
            if !namespaces.iter().any(|now| Arc::ptr_eq(now, &before)) {
                let reason = "it was removed, is another namespace now, or is not described";
                let line = format_args!("/n{}: {reason}", before.id());
                self.tell(Level::Warn, line);
                before.fail(reason);
                for pair in self.controller.pairs() {
                    pair.lock().fail_namespace(before.id());
                }
            }
        }
        self.controller.set_namespaces(namespaces, refused);
        Ok(())
    }

    /// Asks what a namespace is; if it is known, again until that point in time, as long as that is not said for the
    /// moment.
    async fn describe(
        &mut self,
        id: NamespaceId,
        over: Option<Instant>,
    ) -> Result<[u8; PAGE], AdminError> {
        let known = self.controller.namespace(id).is_some();
        loop {
            let identify = admin::identify(Identify::Namespace(id));
            let described = self.admin.read(identify).await;
            let again = over.is_some_and(|over| known && self.handle.now() < over);
            match described {
                Err(AdminError::Refused { status, .. }) if again && status.may_be_retried() => {
                    self.handle.sleep(DESCRIBES_PAUSE).await;
                }
                described => return described,
            }
        }
    }

    /// Returns the namespace that is known by that number, or a new one.
    fn known_or_new(
        &mut self,
        id: NamespaceId,
        found: NamespaceData,
        data: &ControllerData,
    ) -> Arc<Namespace> {
        if let Some(known) = self.controller.namespace(id) {
            let before = known.sectors();
            if known.update(&found) {
                let sectors = known.sectors();
                if sectors != before {
                    let line = format_args!("/n{id}: now {sectors} sectors");
                    self.tell(Level::Info, line);
                }
                return known;
            }
        }
        Arc::new(Namespace::new(id, found, data))
    }

    /// Returns the numbers of the namespaces. One list names more of them than are served.
    async fn active_namespaces(
        &mut self,
        data: &ControllerData,
    ) -> Result<Vec<NamespaceId>, AdminError> {
        const { assert!(MOST_NAMESPACES < PAGE / 4) };
        let all = Identify::NamespacesAfter(NamespaceId::default());
        let list: [u8; PAGE] = match self.admin.read(admin::identify(all)).await {
            Ok(list) => list,
            // Before NVMe 1.1 there was no list: numbers from 1 to NN may be namespaces.
            Err(AdminError::Refused { .. }) => {
                let most = data.namespaces.min(MOST_NAMESPACES as u32);
                return Ok((1..=most).map(NamespaceId).collect());
            }
            Err(error) => return Err(error),
        };
        let mut listed = active_namespaces(&list);
        let served = listed.by_ref().take(MOST_NAMESPACES).collect();
        if listed.next().is_some() {
            let line = format_args!(": more than {MOST_NAMESPACES} namespaces are not looked at");
            self.tell(Level::Warn, line);
        }
        Ok(served)
    }
}
