//! The error nodes, where an operator reads what is wrong with a device. They are bounded, and leave
//! with their guest: xenstored limits the nodes that a domain may own, and disks need most of them.

use crate::device::DeviceId;
use alloc::string::String;
use alloc::vec::Vec;
use bulkhead_executor::{Handle, Signal};
use bulkhead_xen::{DomId, Hypervisor};
use bulkhead_xenstore_client::{Client, Error, Refusal};
use core::cell::RefCell;
use core::time::Duration;

/// The most nodes that errors take together, those above them included: as many as two disks and a
/// half, of the 36 that xenstored's default quota has room for.
const MOST_NODES: usize = 64;

/// The time between two looks whether the guests are still there, while there are errors. xenstored tells
/// an unprivileged domain neither that a domain has ended, nor that a directory is gone which it may
/// not see any more.
const LOOK: Duration = Duration::from_secs(30);

/// The looks in a row that find a frontend gone before its error is removed: an operator whose guest failed
/// has at least half a minute to read why.
const LOOKS: u8 = 2;

/// The error nodes that there are.
#[derive(Default)]
pub struct ErrorNodes {
    /// The oldest first.
    kept: RefCell<Vec<Kept>>,
    added: Signal,
}

struct Kept {
    device: DeviceId,
    /// The frontend's directory, with which the error leaves.
    frontend_path: String,
    /// The looks in a row that have found it gone.
    gone: u8,
    /// The number of times that this error was written.
    written: u32,
}

impl ErrorNodes {
    /// Writes the error of a device, and removes the oldest of the guest with the most errors where
    /// there are too many.
    pub async fn write(
        &self,
        store: &Client,
        device: &DeviceId,
        frontend_path: &str,
        text: &str,
    ) -> Result<(), Error> {
        self.keep(device, frontend_path);
        while let Some(oldest) = self.one_too_many(device) {
            self.remove(store, &oldest).await?;
        }
        store.write(device.error_path(), text).await
    }

    /// Removes the errors of devices whose frontends are gone, as long as there is a xenstore.
    pub async fn follow_guests<H: Hypervisor>(&self, handle: &Handle<H>, store: &Client) {
        loop {
            while self.kept.borrow().is_empty() {
                self.added.raised().await;
            }
            handle.sleep(LOOK).await;
            let devices: Vec<DeviceId> = {
                let kept = self.kept.borrow();
                kept.iter().map(|one| one.device.clone()).collect()
            };
            for device in devices {
                match self.look_at(store, &device).await {
                    Err(error) if error.is_disconnected() => return,
                    // The next look tells.
                    Err(error) => log::debug!("error node of {device}: {error}"),
                    Ok(()) => {}
                }
            }
        }
    }

    async fn look_at(&self, store: &Client, device: &DeviceId) -> Result<(), Error> {
        let Some(path) = self.with(device, |one| one.frontend_path.clone()) else {
            return Ok(());
        };
        let there = match store.exists(path).await {
            // Closed to this domain, as the directories are that held a removed guest's.
            Err(error) if error.refusal() == Some(Refusal::AccessDenied) => false,
            there => there?,
        };
        let gone = self.with(device, |one| {
            one.gone = if there { 0 } else { one.gone + 1 };
            one.gone
        });
        match gone {
            Some(LOOKS..) => self.remove(store, device).await,
            _ => Ok(()),
        }
    }

    fn keep(&self, device: &DeviceId, frontend_path: &str) {
        let mut kept = self.kept.borrow_mut();
        let known = kept.iter().position(|one| one.device == *device);
        let written = known.map_or(0, |at| kept.remove(at).written);
        kept.push(Kept {
            device: device.clone(),
            frontend_path: frontend_path.into(),
            gone: 0,
            written: written.wrapping_add(1),
        });
        self.added.raise();
    }

    fn with<T>(&self, device: &DeviceId, look: impl FnOnce(&mut Kept) -> T) -> Option<T> {
        let mut kept = self.kept.borrow_mut();
        kept.iter_mut().find(|one| one.device == *device).map(look)
    }

    /// Returns the error that has to go, though not that of `newest`.
    fn one_too_many(&self, newest: &DeviceId) -> Option<DeviceId> {
        let kept = self.kept.borrow();
        if nodes(&kept) <= MOST_NODES {
            return None;
        }
        let of = |guest: DomId| {
            kept.iter()
                .filter(|one| one.device.frontend == guest)
                .count()
        };
        let most = kept.iter().map(|one| of(one.device.frontend)).max()?;
        let others = kept.iter().filter(|one| one.device != *newest);
        let mut oldest = others.filter(|one| of(one.device.frontend) == most);
        Some(oldest.next()?.device.clone())
    }

    /// Removes an error, and the guest's directory of errors with its last one.
    async fn remove(&self, store: &Client, device: &DeviceId) -> Result<(), Error> {
        let Some(written) = self.with(device, |one| one.written) else {
            return Ok(());
        };
        let is_alone = {
            let kept = self.kept.borrow();
            let of_guest = |one: &&Kept| {
                one.device.kind == device.kind && one.device.frontend == device.frontend
            };
            kept.iter().filter(of_guest).count() == 1
        };
        let directory = match is_alone {
            true => device.guests_error_path(),
            false => device.error_directory(),
        };
        match store.remove(directory).await {
            Err(error) if !error.is_not_found() => return Err(error),
            _ => {}
        }
        // Unless it was written again meanwhile, which comes after the removal.
        let mut kept = self.kept.borrow_mut();
        kept.retain(|one| one.device != *device || one.written != written);
        Ok(())
    }
}

/// Returns the number of nodes that these errors take: each has its directory and itself, and there is one more for each
/// guest, for each kind of device and for all of them.
fn nodes(kept: &[Kept]) -> usize {
    let same_kind = |one: &Kept, other: &Kept| one.device.kind == other.device.kind;
    let same_guest = |one: &Kept, other: &Kept| {
        same_kind(one, other) && one.device.frontend == other.device.frontend
    };
    // Each is counted where it comes first.
    let mut count = 1 + 2 * kept.len();
    for (number, one) in kept.iter().enumerate() {
        let before = &kept[..number];
        count += usize::from(!before.iter().any(|other| same_kind(one, other)));
        count += usize::from(!before.iter().any(|other| same_guest(one, other)));
    }
    count
}
