//! A store of disks and of the volumes on them, for every kind of disk alike.

use crate::name::{NameError, VolumeName};
use crate::state::Source;
use crate::volumes::{Opening, Volumes};
use alloc::boxed::Box;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use bulkhead_images::target::{Target, TargetOptions};
use bulkhead_images::{Access, BlockDevice, OpenDevice, OpenError, Owner, RescanFuture, Store};
use bulkhead_xen::{DomId, VcpuId};
use core::any::Any;
use core::cell::RefCell;
use core::future::{Future, poll_fn};
use core::pin::{Pin, pin};
use core::task::Poll;
use core::time::Duration;

/// The time in which one of our disks has to be there and its tables have to be read, for a guest's disk on it: less
/// than the ten seconds for which libxl waits for the guest's disk to be offered.
pub const ANSWERS: Duration = Duration::from_secs(7);

/// The vCPU of the control plane, which reads the tables of disks.
const CONTROL: VcpuId = VcpuId(0);

/// What a kind of disks does that waits.
pub type Waiting<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// One of the disks of a kind.
pub struct KnownDisk {
    /// Its name, as targets have it.
    pub name: String,
    /// Distinguishes it from the disks that have that name before or after it.
    pub identity: Arc<dyn Any + Send + Sync>,
}

/// The disks of one kind that the driver domain has of its own.
pub trait Disks {
    /// Returns what targets begin with that name them, before the colon.
    fn scheme(&self) -> &'static str;

    /// Returns what is common to the schemes of all kinds that have the same disks: one of these schemes.
    fn family(&self) -> &'static str {
        self.scheme()
    }

    /// Returns how a disk of this kind is named, as an example.
    fn example(&self) -> &'static str;

    /// Returns how targets of this kind are written, for messages.
    fn expected(&self) -> &'static str;

    /// Takes apart what follows the colon of a target.
    fn parse(&self, value: &str) -> Result<VolumeName, NameError> {
        value.parse()
    }

    /// Waits until a disk can be opened, and returns the name that [`list`](Self::list) has for it. The error is a
    /// sentence for the operator.
    fn ready<'a>(&'a self, name: &'a str) -> Waiting<'a, Result<String, String>>;

    /// Returns the reason why a disk is not there yet.
    fn missing(&self, name: &str) -> String;

    /// Waits for a span of time.
    fn pause(&self, span: Duration) -> Waiting<'_, ()>;

    /// Starts a task.
    fn spawn(&self, task: Waiting<'static, ()>);

    /// Returns all disks.
    fn list(&self) -> Vec<KnownDisk>;

    /// Returns whether two disks, by their identities, are the same one, which is reached in two ways.
    fn are_same(&self, one: &dyn Any, other: &dyn Any) -> bool {
        let _ = (one, other);
        false
    }

    /// Returns lines about each disk, for the operator.
    fn lines(&self) -> Vec<String>;

    /// Opens a disk for all who have something of it, to be written to if it can be. What they share is for the
    /// volumes to say. The error is a sentence about the disk, without its subject.
    fn open(&self, name: &str) -> Result<Arc<dyn BlockDevice>, String>;
}

/// The store that serves disks of one kind, and volumes on them.
pub struct DiskStore {
    disks: Rc<dyn Disks>,
    volumes: Volumes,
    /// The disks that the volumes know, by their names there.
    shown: Rc<RefCell<Vec<Shown>>>,
}

/// A disk's name among the volumes, and its identity.
type Shown = (String, Weak<dyn Any + Send + Sync>);

impl DiskStore {
    /// Returns the store of these disks.
    pub fn new(disks: Rc<dyn Disks>) -> Self {
        let (spawner, clock) = (disks.clone(), disks.clone());
        let pause = move |span| -> Waiting<'static, ()> {
            let clock = clock.clone();
            Box::pin(async move { clock.pause(span).await })
        };
        let shown = Rc::<RefCell<Vec<Shown>>>::default();
        let (kind, known) = (disks.clone(), shown.clone());
        let volumes = Volumes::new(move |task| spawner.spawn(task), pause);
        DiskStore {
            disks,
            volumes: volumes
                .with_same(move |name| names_of_the_same(&*kind, &known.borrow(), name)),
            shown,
        }
    }

    /// Returns the name of a disk among those of the volumes.
    fn volumes_name(&self, disk: &str) -> String {
        format!("{}:{disk}", self.disks.scheme())
    }

    /// Waits until a disk can be opened, or the time is `over`. Returns its name among the volumes' disks.
    async fn ready(&self, name: &str, over: &mut Waiting<'_, ()>) -> Result<String, String> {
        match within(self.disks.ready(name), over).await {
            Some(Ok(disk)) => {
                self.show_disks();
                Ok(self.volumes_name(&disk))
            }
            Some(Err(reason)) => Err(reason),
            None => Err(self.disks.missing(name)),
        }
    }

    /// Tells the volumes which disks there are: a volume group may lie on several.
    fn show_disks(&self) {
        let disks = self.disks.list();
        let mut shown = self.shown.borrow_mut();
        let now = |known: &Weak<dyn Any + Send + Sync>| {
            let mut disks = disks.iter();
            disks.find(|disk| core::ptr::addr_eq(Arc::as_ptr(&disk.identity), known.as_ptr()))
        };
        // What was given up is another disk than the one in its place, however long guests have it.
        shown.retain(|(name, known)| {
            let there = now(known).is_some();
            if !there {
                self.volumes.remove(name);
            }
            there
        });
        // One that is called otherwise now is the same disk, and what guests have of it is theirs.
        self.volumes.rename(|name| {
            let (_, known) = shown.iter().find(|(other, _)| other == name)?;
            let own = &now(known)?.name;
            let now = self.volumes_name(own);
            (now != name).then(|| (now, self.source(own)))
        });
        for (name, known) in shown.iter_mut() {
            if let Some(disk) = now(known) {
                *name = self.volumes_name(&disk.name);
            }
        }
        for KnownDisk {
            name: own,
            identity,
        } in &disks
        {
            let name = self.volumes_name(own);
            if !shown.iter().any(|(other, _)| *other == name) {
                let source = self.source(own);
                self.volumes.add(&name, move || source());
                shown.push((name, Arc::downgrade(identity)));
            }
        }
        drop(shown);
        self.volumes.join_names();
    }

    /// Returns what opens a disk.
    fn source(&self, own: &str) -> Rc<Source> {
        let (disks, own) = (self.disks.clone(), own.to_string());
        Rc::new(move || disks.open(&own))
    }

    async fn open_volume(
        &self,
        name: VolumeName,
        opening: Opening<'_>,
    ) -> Result<Arc<dyn BlockDevice>, String> {
        let mut over = self.disks.pause(ANSWERS);
        let disk = self.ready(&name.disk, &mut over).await?;
        let own = name.disk;
        let name = VolumeName {
            disk,
            part: name.part,
        };
        let opened = self.volumes.open(CONTROL, &name, opening);
        match within(opened, &mut over).await {
            Some(opened) => opened.map_err(|error| error.to_string()),
            None => Err(silent(&own)),
        }
    }

    fn lines(&self) -> Vec<String> {
        let (mut lines, mut users) = (self.disks.lines(), Vec::new());
        for disk in self.volumes.disks() {
            let volumes = disk.volumes.iter();
            lines
                .extend(volumes.map(|(name, sectors)| format!("volume {name}, {sectors} sectors")));
            // A volume on several disks is one of each.
            for user in disk.users {
                if !users.contains(&user) {
                    users.push(user);
                }
            }
        }
        let line = |(name, owner, access)| format!("{name} is open for {access} by {owner}");
        lines.extend(users.into_iter().map(line));
        lines
    }

    async fn read_again(&self, device: &str) -> Result<Vec<String>, String> {
        let name = self
            .disks
            .parse(device)
            .map_err(|error| error.to_string())?;
        let mut over = self.disks.pause(ANSWERS);
        let disk = self.ready(&name.disk, &mut over).await?;
        match within(self.volumes.rescan(CONTROL, &disk), &mut over).await {
            Some(Ok(rescan)) => {
                let changes = rescan.changes.iter().map(ToString::to_string);
                Ok([rescan.to_string()].into_iter().chain(changes).collect())
            }
            Some(Err(error)) => Err(error.to_string()),
            None => Err(silent(&name.disk)),
        }
    }

    async fn open_target(
        &self,
        target: Target<'_>,
        access: Access,
        owner: Owner<'_>,
    ) -> Result<Arc<dyn BlockDevice>, OpenError> {
        let scheme = self.disks.scheme();
        let name = self.disks.parse(target.value).map_err(|error| {
            OpenError::Store(match error {
                NameError::NoDisk => format!(
                    "'{scheme}:' names no disk, expected {scheme}:{}",
                    self.disks.example()
                ),
                error => error.to_string(),
            })
        })?;
        let options = TargetOptions::parse(target.options)?;
        let physical = options.physical_sector_size.is_some();
        for (option, given) in [
            ("sector-size", options.sector_size.is_some()),
            ("physical-sector-size", physical),
            ("discard", options.discard.is_some()),
        ] {
            if given {
                let reason =
                    format!("{scheme}: shows a disk as it is, expected it without {option}=");
                return Err(OpenError::Store(reason));
            }
        }
        let opening = Opening {
            access,
            shared: options.shared.unwrap_or(false),
            owner: owner.name,
            administrator: owner.domain == DomId::DOM0,
        };
        let opened = self.open_volume(name, opening).await;
        opened.map_err(OpenError::Store)
    }
}

impl Store for DiskStore {
    fn scheme(&self) -> &'static str {
        self.disks.scheme()
    }

    fn family(&self) -> &'static str {
        self.disks.family()
    }

    fn expected(&self) -> &'static str {
        self.disks.expected()
    }

    fn lines(&self) -> Vec<String> {
        DiskStore::lines(self)
    }

    fn rescan<'a>(&'a self, device: &'a str) -> RescanFuture<'a> {
        Box::pin(self.read_again(device))
    }

    fn open<'a>(&'a self, target: Target<'a>, access: Access, owner: Owner<'a>) -> OpenDevice<'a> {
        Box::pin(self.open_target(target, access, owner))
    }
}

/// Returns the other names of a disk.
fn names_of_the_same(disks: &dyn Disks, shown: &[Shown], name: &str) -> Vec<String> {
    let mut all = shown.iter().filter(|(other, _)| other == name);
    let Some(disk) = all.next().and_then(|(_, known)| known.upgrade()) else {
        return Vec::new();
    };
    let others = shown.iter().filter(|(other, _)| other != name);
    let same = others.filter(|(_, known)| {
        let known = known.upgrade();
        known.is_some_and(|known| disks.are_same(&*disk, &*known))
    });
    same.map(|(other, _)| other.clone()).collect()
}

/// Waits for something until the time is `over`; `None` if it takes longer.
async fn within<T>(waiting: impl Future<Output = T>, over: &mut Waiting<'_, ()>) -> Option<T> {
    let mut waiting = pin!(waiting);
    poll_fn(|context| {
        if let Poll::Ready(output) = waiting.as_mut().poll(context) {
            return Poll::Ready(Some(output));
        }
        over.as_mut().poll(context).map(|()| None)
    })
    .await
}

/// What is said of a disk that does not answer.
fn silent(disk: &str) -> String {
    format!("the driver domain's disk {disk} does not answer")
}
