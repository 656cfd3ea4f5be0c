//! The rings and grants that a boot before this one of the same domain left with a backend when it crashed.

use super::{DiskTask, LONG_LOOK, LOOK_AGAIN};
use crate::connection::Leftover;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use bulkhead_executor::Signal;
use bulkhead_xen::{DomId, GrantRef, Hypervisor, Instant};
use bulkhead_xenbus::XenbusState;
use bulkhead_xenbus::frontend::Phase;
use bulkhead_xenstore_client::Error;
use core::pin::pin;
use core::time::Duration;
use futures_util::future::{Either, select};

/// The longest pause between two checks whether the backend still uses them.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// The time for which the backend is waited for to close as well.
const CLOSES: Duration = Duration::from_secs(1);

/// What is known of the boot before, if there was one.
pub(super) struct EarlierBoot<H: Hypervisor> {
    /// The grants of the disk's rings, once they were read.
    rings: Option<Vec<GrantRef>>,
    /// It may have left rings that can be used on, and this has not been tried yet.
    pub(super) may_go_on: bool,
    /// Rings that could not be used on, and that the backend may still have mapped.
    pub(super) leftover: Option<Leftover<H>>,
    /// The pause before the next check.
    pause: Duration,
    /// The time of the first check, if the backend still used them.
    waited_since: Option<Instant>,
}

impl<H: Hypervisor> EarlierBoot<H> {
    /// Returns what is known at first. `was_left` says whether there was such a boot.
    pub(super) fn new(was_left: bool) -> Self {
        EarlierBoot {
            rings: None,
            may_go_on: was_left,
            leftover: None,
            pause: LOOK_AGAIN,
            waited_since: None,
        }
    }
}

impl<H: Hypervisor> DiskTask<'_, H> {
    /// Returns whether the backend's domain may still execute requests of a boot before this one, which must not be
    /// executed after those of this boot. Waits a while if it may.
    ///
    /// A backend unmaps a ring only when the requests from it have ended (xen-blkback, QEMU, this project's), so the
    /// disk's rings alone are waited for, or all pages that the domain has mapped if the rings are not known. Other
    /// pages stay unused here for as long as the backend keeps them.
    pub(super) async fn outwait_earlier_boot(&mut self, backend: DomId) -> Result<bool, Error> {
        if !self.frontends.was_left() {
            return Ok(false);
        }
        self.note_rings_of_before().await?;
        let tried = self.before.leftover.as_mut();
        let keeps_tried = tried.is_some_and(|rings| !rings.take_back(&self.disk));
        let grants = self.disk.grants();
        let in_use = keeps_tried
            || match self.before.rings.as_deref().unwrap_or_default() {
                // A backend in that domain stayed connected to the rings of another disk, and which of the domain's
                // pages are that disk's is not known.
                [] if self.frontends.has_gone_on(backend) => false,
                [] => grants.end_left(Some(backend)) > 0,
                rings => grants.is_left(backend, rings),
            };
        if !in_use {
            self.before.leftover = None;
            return Ok(false);
        }
        let (pause, now) = (self.before.pause, self.frontends.handle().now());
        let since = *self.before.waited_since.get_or_insert(now);
        if now.since(since) > LONG_LOOK {
            self.tell(format!(
                "domain {backend} does not let go of memory from before the crash: it is waited for"
            ));
        }
        self.frontends.handle().sleep(pause).await;
        self.before.pause = (pause * 2).min(LONGEST_PAUSE);
        Ok(true)
    }

    /// Closes once more, and waits until the backend has closed, too. Linux's backend checks when its frontend closes
    /// whether its requests have ended, and keeps the rings if they have not (`xen_blkif_disconnect`); it does not
    /// check again by itself.
    pub(super) async fn close_again(&mut self, changed: &Signal) -> Result<(), Error> {
        self.phase = Phase::Closed;
        self.write(Vec::new(), XenbusState::Closed).await?;
        let over = self.frontends.handle().sleep(CLOSES);
        let closed = async {
            while self.observe().await?.backend == XenbusState::InitWait {
                self.wait(changed).await?;
            }
            Ok(())
        };
        match select(pin!(closed), pin!(over)).await {
            Either::Left((closed, _)) => closed,
            Either::Right(_) => Ok(()),
        }
    }

    /// Reads which rings a boot before this one has published, if there was one. Must be called before new ones are.
    pub(super) async fn note_rings_of_before(&mut self) -> Result<(), Error> {
        if self.frontends.was_left() && self.before.rings.is_none() {
            self.before.rings = Some(self.published_rings().await?);
        }
        Ok(())
    }

    /// Returns the grants of the rings that the disk's nodes name, and perhaps of some that they named before.
    async fn published_rings(&self) -> Result<Vec<GrantRef>, Error> {
        let (store, mut paths) = (self.frontends.store(), Vec::new());
        let mut directories = Vec::from([String::from(self.nodes.path())]);
        while let Some(directory) = directories.pop() {
            for name in store.directory_or_empty(&directory).await? {
                let path = format!("{directory}/{name}");
                if name.starts_with("queue-") {
                    directories.push(path);
                } else if name.starts_with("ring-ref") {
                    paths.push(path);
                }
            }
        }
        let values = store.read_each(&paths).await?;
        let numbers = values.into_iter().flatten();
        Ok(numbers
            .filter_map(|number| number.parse().ok())
            .map(GrantRef)
            .collect())
    }
}
