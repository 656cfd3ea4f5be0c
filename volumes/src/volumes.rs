//! The disks of the driver domain, what is on them, and what of it is open.

use crate::claims::{Claims, DiskId, DiskRange, SectorsClaim, Who};
use crate::content::{Content, ContentError};
use crate::error::VolumeError;
use crate::name::{VolumeName, VolumePart};
use crate::open::{Open, ranges};
use crate::rescan::{Rescan, VolumeChange};
use crate::resolve::{self, Known, Resolved};
use crate::state::{Disk, DiskState, Source, VolumesState};
use crate::store::Waiting;
use alloc::boxed::Box;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_images::{
    Access, BlockDevice, DeviceReader, MappedDevice, Sector, SharedDevice, WeakSharedDevice,
};
use bulkhead_xen::VcpuId;
use core::future::{Future, poll_fn};
use core::task::{Context, Poll, Waker};
use core::time::Duration;
use spin::Mutex;

/// All disks whose volumes can be served, of whatever kind.
///
/// A disk is known by the name that targets begin with, and is open as long as something of it is, or it is read. What is on it is read when something of it is opened, so
/// that a volume which was made meanwhile is found; [`rescan`](Self::rescan) is for those that are open.
pub struct Volumes {
    state: Mutex<VolumesState>,
    claims: Arc<Claims>,
    spawn: Box<Spawn>,
    pause: Box<Pause>,
    same: Box<Same>,
}

/// Starts a task.
pub type Spawn = dyn Fn(Waiting<'static, ()>);

/// Waits for a span of time.
pub type Pause = dyn Fn(Duration) -> Waiting<'static, ()>;

/// Returns the names of the other disks that are the same one as a disk.
pub type Same = dyn Fn(&str) -> Vec<String>;

/// The time that disks have to answer of which it is not known whether they are needed.
const OTHERS_ANSWER: Duration = Duration::from_secs(2);

impl Default for Volumes {
    /// Has no tasks and no time: all disks are waited for, and one for whose answer nobody waits any more is not read
    /// again.
    fn default() -> Self {
        Volumes::new(core::mem::forget, |_| Box::pin(core::future::pending()))
    }
}

/// The owner that opens a volume, and what for.
#[derive(Clone, Copy, Debug)]
pub struct Opening<'o> {
    /// To read, or to write too.
    pub access: Access,
    /// Others may have it too, if they say so as well.
    pub shared: bool,
    /// Told to those who come later and cannot have it.
    pub owner: &'o str,
    /// It is the operator's domain, and no guest: what it writes may describe others' volumes.
    pub administrator: bool,
}

impl Volumes {
    /// Returns no disks yet. `spawn` starts the tasks that wait for the disks whose readers were given up; `pause` waits for
    /// a span of time.
    pub fn new(
        spawn: impl Fn(Waiting<'static, ()>) + 'static,
        pause: impl Fn(Duration) -> Waiting<'static, ()> + 'static,
    ) -> Self {
        Volumes {
            state: Mutex::default(),
            claims: Arc::default(),
            spawn: Box::new(spawn),
            pause: Box::new(pause),
            same: Box::new(|_| Vec::new()),
        }
    }

    /// Has a disk be used through one of its names at a time, if it has several: `same` returns the other ones.
    #[must_use]
    pub(crate) fn with_same(self, same: impl Fn(&str) -> Vec<String> + 'static) -> Self {
        Volumes {
            same: Box::new(same),
            ..self
        }
    }

    /// Adds a disk, which `source` opens. False if there is one of that name.
    pub fn add(
        &self,
        name: &str,
        source: impl Fn() -> Result<Arc<dyn BlockDevice>, String> + 'static,
    ) -> bool {
        let mut state = self.state.lock();
        if state.disks.iter().any(|disk| disk.name == name) {
            return false;
        }
        state.next += 1;
        let id = DiskId(state.next);
        state.disks.push(Disk {
            id,
            name: name.to_string(),
            source: Rc::new(source),
            device: WeakSharedDevice::default(),
            sectors: Sector(0),
            content: None,
        });
        true
    }

    /// Gives disks other names, which `renamed` returns for them with what opens them by those. What is open stays so, and
    /// is not given to others because of that.
    pub(crate) fn rename(&self, renamed: impl Fn(&str) -> Option<(String, Rc<Source>)>) {
        // All at once: one may get the name that another one had.
        for disk in &mut self.state.lock().disks {
            if let Some((name, source)) = renamed(&disk.name) {
                (disk.name, disk.source) = (name, source);
            }
        }
    }

    /// Removes a disk: nothing of it is opened any more. What is open stays. False if there is none.
    pub fn remove(&self, name: &str) -> bool {
        let mut state = self.state.lock();
        let before = state.disks.len();
        state.disks.retain(|disk| disk.name != name);
        state.disks.len() < before
    }

    /// Opens a volume, on the vCPU that calls this. It is free again when the device and all its queues are
    /// dropped.
    ///
    /// It waits for the disks as long as that takes: who has waited enough drops the future.
    pub async fn open(
        &self,
        vcpu: VcpuId,
        name: &VolumeName,
        opening: Opening<'_>,
    ) -> Result<Arc<dyn BlockDevice>, VolumeError> {
        let disk = self.find(&name.disk)?;
        let text = name.to_string();
        let Opening { access, .. } = opening;
        let refused = |read_only: bool| match read_only && access == Access::ReadWrite {
            true => Err(VolumeError::ReadOnly { name: text.clone() }),
            false => Ok(()),
        };
        if name.part == VolumePart::Whole {
            let device = self.device(disk, &name.disk)?;
            refused(device.device().geometry().read_only)?;
            let claim = self.claim(&text, opening, alloc::vec![DiskRange::all_of(disk)])?;
            return Ok(device.user(access, Arc::new(claim)));
        }
        let resolved = self.resolve(vcpu, disk, name, &text).await;
        if let Some(overlap) = self.claims.owner_of(disk) {
            // What the disk says is that one's word.
            return Err(VolumeError::InUse {
                name: text,
                overlap,
            });
        }
        let resolved = resolved?;
        refused(resolved.read_only)?;
        if resolved.for_lvm && access == Access::ReadWrite && !opening.administrator {
            return Err(VolumeError::ForLvm { name: text });
        }
        let mut below = Vec::new();
        for disk in &resolved.disks {
            let device = self.device(*disk, &name.disk)?;
            refused(device.device().geometry().read_only)?;
            below.push(device);
        }
        let ranges = ranges(&resolved.map, &resolved.disks);
        let claim = Arc::new(self.claim(&text, opening, ranges)?);
        let mapped = MappedDevice::new(&below, resolved.map, access, claim.clone());
        let mapped = mapped.map_err(|error| VolumeError::Mapping {
            name: text.clone(),
            error,
        })?;
        let mut state = self.state.lock();
        state.forget_closed();
        state.open.push(Open {
            name: text,
            identity: resolved.identity,
            disks: resolved.disks,
            device: mapped.downgrade(),
            claim: Arc::downgrade(&claim),
        });
        Ok(Arc::new(mapped))
    }

    /// Reads the tables of a disk again, because somebody has changed them. Volumes that are open and have
    /// grown are larger now, and their users are told. Those that have vanished, or lie elsewhere, stay as
    /// they were.
    ///
    /// What guests that are gone have left on the disk counts from now on: the operator has changed it, or
    /// has seen it.
    pub async fn rescan(&self, vcpu: VcpuId, name: &str) -> Result<Rescan, VolumeError> {
        let disk = self.find(name)?;
        let names = self.names_of(disk, &self.state.lock());
        names.iter().for_each(|disk| self.claims.trust(*disk));
        self.join_names();
        self.read(vcpu, disk, name).await?;
        // Groups on it may have gone on to disks that nobody has looked at.
        self.read_others(vcpu, self.unread(), |_| false).await;
        let mut state = self.state.lock();
        state.forget_closed();
        let contents = state.contents(&self.claims);
        let mut changes = Vec::new();
        for open in &state.open {
            if !open.disks.contains(&disk) && open.identity.disk() != disk {
                continue;
            }
            if let Some(outcome) = open.compare(&contents) {
                changes.push(VolumeChange {
                    name: open.name.clone(),
                    owner: open
                        .claim
                        .upgrade()
                        .map_or_else(String::new, |it| it.owner()),
                    outcome,
                });
            }
        }
        let found = state.disk_state(disk, &self.claims);
        drop(state);
        // Volumes have grown.
        self.join_names();
        Ok(Rescan {
            disk: name.to_string(),
            volumes: found.map_or(0, |found| found.volumes.len()),
            changes,
        })
    }

    /// Returns all disks, for statistics.
    pub fn disks(&self) -> Vec<DiskState> {
        let state = self.state.lock();
        let ids = state.disks.iter().map(|disk| disk.id);
        ids.filter_map(|id| state.disk_state(id, &self.claims))
            .collect()
    }

    fn find(&self, name: &str) -> Result<DiskId, VolumeError> {
        let state = self.state.lock();
        let disk = state.disks.iter().find(|disk| disk.name == name);
        disk.map(|disk| disk.id).ok_or_else(|| VolumeError::NoDisk {
            name: crate::lvm::shown(name),
            disks: state.disks.iter().map(|disk| disk.name.clone()).collect(),
        })
    }

    fn disk_name(&self, id: DiskId) -> String {
        let state = self.state.lock();
        let disk = state.disks.iter().find(|disk| disk.id == id);
        disk.map(|disk| disk.name.clone()).unwrap_or_default()
    }

    /// Returns a disk, and the others that are the same one.
    fn names_of(&self, disk: DiskId, state: &VolumesState) -> Vec<DiskId> {
        let known = |name: &str| state.disks.iter().find(|known| known.name == name);
        let disks = state.disks.iter().find(|known| known.id == disk);
        let others = disks.map_or_else(Vec::new, |disk| (self.same)(&disk.name));
        let others = others.iter().filter_map(|name| Some(known(name)?.id));
        [disk].into_iter().chain(others).collect()
    }

    /// Has what guests could write to by one name of a disk count by all of them. Called when that changes, and when there
    /// is another disk: a name may be gone later, and what was written by it is still on the disk.
    pub(crate) fn join_names(&self) {
        let state = self.state.lock();
        for disk in &state.disks {
            let names = self.names_of(disk.id, &state);
            if names.len() > 1 {
                self.claims.join(&names);
            }
        }
    }

    /// Refuses a disk of which somebody has something open by another name. Its tables are not read either: they may be
    /// that one's. Whoever reads them has nothing of it open.
    fn check_other_names(&self, state: &VolumesState, disk: &str) -> Result<(), VolumeError> {
        let used = |other: &String| {
            let mut disks = state.disks.iter();
            let known = disks.find(|known| known.name == *other);
            known.is_some_and(|known| !self.claims.users(known.id).is_empty())
        };
        match (self.same)(disk).into_iter().find(used) {
            None => Ok(()),
            Some(other) => Err(VolumeError::Disk {
                disk: disk.to_string(),
                reason: format!("it is in use as {other}"),
            }),
        }
    }

    /// Returns a disk's device, which is opened if nobody uses it.
    fn device(&self, id: DiskId, name: &str) -> Result<SharedDevice, VolumeError> {
        let mut state = self.state.lock();
        let Some(at) = state.disks.iter().position(|disk| disk.id == id) else {
            return Err(VolumeError::NoDisk {
                name: name.to_string(),
                disks: state.disks.iter().map(|disk| disk.name.clone()).collect(),
            });
        };
        self.check_other_names(&state, &state.disks[at].name)?;
        let disk = &mut state.disks[at];
        if let Some(device) = disk.device.upgrade() {
            return Ok(device);
        }
        let opened = (disk.source)().map_err(|reason| VolumeError::Disk {
            disk: disk.name.clone(),
            reason,
        })?;
        disk.sectors = opened.geometry().sectors;
        let device = SharedDevice::new(opened);
        disk.device = device.downgrade();
        Ok(device)
    }

    fn claim(
        &self,
        name: &str,
        opening: Opening<'_>,
        ranges: Vec<DiskRange>,
    ) -> Result<SectorsClaim, VolumeError> {
        let who = Who {
            name: name.to_string(),
            owner: opening.owner.to_string(),
            access: opening.access,
            shared: opening.shared,
            administrator: opening.administrator,
        };
        let claim = self.claims.take(who, ranges);
        self.join_names();
        claim.map_err(|overlap| VolumeError::InUse {
            name: name.to_string(),
            overlap,
        })
    }

    /// Reads what is on a disk.
    async fn read(&self, vcpu: VcpuId, id: DiskId, name: &str) -> Result<(), VolumeError> {
        if !self.is_readable(id) {
            return Err(VolumeError::Disk {
                disk: name.to_string(),
                reason: "it has not answered what it was asked before".to_string(),
            });
        }
        let device = self.device(id, name)?;
        let content = self.read_content(vcpu, id, &**device.device()).await;
        let content = content.map_err(|error: ContentError| VolumeError::Content {
            disk: name.to_string(),
            error,
        });
        let mut state = self.state.lock();
        let Some(at) = state.disks.iter().position(|disk| disk.id == id) else {
            return Ok(());
        };
        // Somebody may have it by now, and have written what was read.
        self.check_other_names(&state, &state.disks[at].name)?;
        let disk = &mut state.disks[at];
        let known = disk.content.as_ref().map(|content| &content.notes);
        match content {
            Ok(content) => {
                if known != Some(&content.notes) {
                    for note in &content.notes {
                        log::warn!("{name}: {note}");
                    }
                }
                disk.content = Some(Arc::new(content));
                Ok(())
            }
            Err(error) => {
                // What was there before may be there no longer.
                disk.content = None;
                Err(error)
            }
        }
    }

    async fn read_content(
        &self,
        vcpu: VcpuId,
        id: DiskId,
        device: &dyn BlockDevice,
    ) -> Result<Content, ContentError> {
        let written = self.claims.written(id);
        let reader = DeviceReader::open(device, vcpu).await;
        let mut reading = Reading {
            volumes: self,
            id,
            reader: Some(reader.map_err(ContentError::Open)?),
        };
        let Some(reader) = &mut reading.reader else {
            return Ok(Content::default());
        };
        let content = Content::read(reader, &written).await;
        poll_fn(|context| reader.poll_close(context)).await;
        content
    }

    /// Returns whether a disk has let go of all readers that were given up: each of them keeps memory, so one more is
    /// not begun before.
    fn is_readable(&self, id: DiskId) -> bool {
        let mut state = self.state.lock();
        let given_up = &mut state.given_up;
        given_up.retain(|(_, waiting)| waiting.strong_count() > 0);
        given_up.iter().all(|(disk, _)| *disk != id)
    }

    /// The disks of which nothing is known.
    fn unread(&self) -> Vec<DiskId> {
        let state = self.state.lock();
        let unread = state.disks.iter().filter(|disk| disk.content.is_none());
        unread.map(|disk| disk.id).collect()
    }

    /// Finds a volume, in what its disks say now. Disks that have no part of it are not waited for, unless
    /// a part of it is not found.
    async fn resolve(
        &self,
        vcpu: VcpuId,
        disk: DiskId,
        name: &VolumeName,
        text: &str,
    ) -> Result<Resolved, VolumeError> {
        self.read(vcpu, disk, &name.disk).await?;
        let (mut read, mut tried) = (alloc::vec![disk], alloc::vec![disk]);
        loop {
            let contents = self.state.lock().contents(&self.claims);
            let resolved = look_up(&contents, disk, name, text);
            match &resolved {
                Ok(found) => {
                    let needed = found.disks.iter().copied();
                    let unread: Vec<DiskId> = needed.filter(|id| !read.contains(id)).collect();
                    if unread.is_empty() {
                        return resolved;
                    }
                    for id in unread {
                        read.push(id);
                        let other = self.disk_name(id);
                        if let Err(error) = self.read(vcpu, id, &other).await {
                            log::warn!("{error}");
                        }
                    }
                }
                Err(VolumeError::Missing { .. }) => {
                    let others = contents.iter().map(|known| known.disk);
                    let untried: Vec<DiskId> = others.filter(|id| !tried.contains(id)).collect();
                    if untried.is_empty() {
                        return resolved;
                    }
                    tried.extend_from_slice(&untried);
                    let is_found = |done: &[DiskId]| {
                        let contents = self.state.lock().contents(&self.claims);
                        let found = look_up(&contents, disk, name, text);
                        let is_read = |id: &DiskId| read.contains(id) || done.contains(id);
                        found.is_ok_and(|found| found.disks.iter().all(is_read))
                    };
                    let done = self.read_others(vcpu, untried, is_found).await;
                    read.extend_from_slice(&done);
                }
                Err(_) => return resolved,
            }
        }
    }

    /// Reads what is on disks, at the same time, until that is `enough`; those that do not answer in time are left. Returns
    /// the others.
    async fn read_others(
        &self,
        vcpu: VcpuId,
        disks: Vec<DiskId>,
        enough: impl Fn(&[DiskId]) -> bool,
    ) -> Vec<DiskId> {
        let names: Vec<String> = disks.iter().map(|id| self.disk_name(*id)).collect();
        let named = disks.iter().zip(&names);
        let begun = named.map(|(id, name)| (*id, name, Box::pin(self.read(vcpu, *id, name))));
        let mut reads: Vec<_> = begun.collect();
        let (mut done, mut over) = (Vec::new(), (self.pause)(OTHERS_ANSWER));
        let in_time = poll_fn(|context| {
            let before = done.len();
            reads.retain_mut(|(id, _, read)| {
                let Poll::Ready(outcome) = read.as_mut().poll(context) else {
                    return true;
                };
                if let Err(error) = outcome {
                    log::warn!("{error}");
                }
                done.push(*id);
                false
            });
            if reads.is_empty() || (done.len() > before && enough(&done)) {
                return Poll::Ready(true);
            }
            over.as_mut().poll(context).map(|()| false)
        });
        if !in_time.await {
            for (_, name, _) in &reads {
                log::warn!("disk {name} does not answer: what is on it is not looked at");
            }
        }
        drop(reads);
        done
    }
}

/// Finds a volume, in what is known of the disks.
fn look_up(
    contents: &[Known],
    disk: DiskId,
    name: &VolumeName,
    text: &str,
) -> Result<Resolved, VolumeError> {
    match &name.part {
        VolumePart::Label(label) => {
            resolve::partition(contents, disk, text, &|it| it.label == *label)
        }
        VolumePart::Guid(guid) => resolve::partition(contents, disk, text, &|it| it.id == *guid),
        VolumePart::Logical { group, volume } => resolve::logical(
            contents,
            disk,
            text,
            &|it| it.name == *group,
            &|it| it.name == *volume,
            &[],
        ),
        VolumePart::Whole => Err(VolumeError::NoTable { name: text.into() }),
    }
}

/// A reader of a disk. If it is given up before its disk has let go of it, a task waits for that: the disk is in use
/// until then.
struct Reading<'v> {
    volumes: &'v Volumes,
    id: DiskId,
    reader: Option<DeviceReader>,
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let mut context = Context::from_waker(Waker::noop());
        if let Some(mut reader) = self.reader.take()
            && reader.poll_close(&mut context).is_pending()
        {
            let waiting = Rc::new(());
            let waits = (self.id, Rc::downgrade(&waiting));
            self.volumes.state.lock().given_up.push(waits);
            (self.volumes.spawn)(Box::pin(async move {
                reader.close().await;
                drop(waiting);
            }));
        }
    }
}
