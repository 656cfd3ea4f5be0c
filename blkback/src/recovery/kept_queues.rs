//! The places of all queues: given to those that connect, and found again after a crash.

use super::place::{KeptQueue, QUEUES};
use super::record::QueueRecord;
use crate::id::VbdId;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_executor::Flag;
use bulkhead_xen::DomId;
use core::cell::{Cell, RefCell};
use spin::Mutex;

/// The places. A queue gives its place back here, from whatever vCPU.
#[derive(Clone, Debug)]
struct SharedPlaces(Arc<Mutex<Places>>);

#[derive(Debug)]
struct Places {
    /// Those that no queue has.
    free: Vec<&'static mut KeptQueue>,
    /// For each of the others, its queue's guest.
    held: Vec<DomId>,
}

impl SharedPlaces {
    /// Takes a place, in which nothing is kept from here on.
    fn add(&self, place: &'static mut KeptQueue) {
        place.clear();
        self.0.lock().free.push(place);
    }

    /// Takes a place back that a queue of this guest had.
    fn take_back(&self, place: &'static mut KeptQueue, guest: DomId) {
        place.clear();
        let mut places = self.0.lock();
        places.free.push(place);
        if let Some(at) = places.held.iter().position(|held| *held == guest) {
            places.held.swap_remove(at);
        }
    }
}

impl Places {
    /// Returns how many places the disks of this guest may have: half of those that they have and of those that are
    /// free, as with the other means that guests share ([`Admission`](crate::admission::Admission)).
    fn share(&self, guest: DomId) -> usize {
        (self.held_by(guest) + self.free.len()).div_ceil(2)
    }

    fn held_by(&self, guest: DomId) -> usize {
        self.held.iter().filter(|held| **held == guest).count()
    }
}

/// A place that a queue has. By default, it has none.
#[derive(Debug, Default)]
pub struct QueuePlace {
    /// The place, while responses are put in the order of the requests: response k for request k.
    pub in_order: Option<&'static mut KeptQueue>,
    /// The place otherwise, but while it is lent.
    pub place: Option<&'static mut KeptQueue>,
    /// Who is to be served; `None` if the place says so already.
    pub record: Option<QueueRecord>,
    /// Where it comes from, and the queue's guest.
    shared: Option<(SharedPlaces, DomId)>,
}

impl QueuePlace {
    /// Returns whether there is a place.
    pub fn is_some(&self) -> bool {
        self.shared.is_some()
    }
}

impl Drop for QueuePlace {
    fn drop(&mut self) {
        let place = self.in_order.take().or(self.place.take());
        if let (Some(place), Some((shared, guest))) = (place, &self.shared) {
            shared.take_back(place, *guest);
        }
    }
}

/// Gives places to queues. By default there is none, and nothing is kept.
#[derive(Default)]
pub struct KeptQueues {
    shared: RefCell<Option<SharedPlaces>>,
    /// The disks that the boot before has served and nobody has taken up yet.
    left: RefCell<Vec<LeftDisk>>,
    /// Those that the boot before has served and whose stores are not there yet.
    away: RefCell<Vec<AbsentDisk>>,
    /// Set when each disk of the boot before is served again, never will be, or is away.
    found: Flag,
    /// Set when there is none of these any more.
    settled: Flag,
    /// Tells whether a crash would end the domain whatever is kept.
    ends_anyway: Cell<Option<fn() -> bool>>,
}

/// A disk whose store is not there yet.
struct AbsentDisk {
    id: VbdId,
    /// The family of its store.
    family: &'static str,
    settled: Flag,
}

/// A disk that the boot before has served.
pub struct LeftDisk {
    /// The disk.
    pub id: VbdId,
    /// Its queues, in their order.
    pub queues: Vec<(QueueRecord, QueuePlace)>,
}

impl LeftDisk {
    /// Adds a queue.
    fn add(&mut self, record: QueueRecord, claim: QueuePlace) {
        let queues = &mut self.queues;
        let at = queues.partition_point(|(before, _)| before.queue < record.queue);
        queues.insert(at, (record, claim));
    }

    /// Returns whether the records of the queues are those of one disk, and of all of its queues.
    fn is_whole(&self) -> bool {
        let [(first, _), ..] = &self.queues[..] else {
            return false;
        };
        let numbered = (0..).zip(&self.queues).all(|(number, (record, _))| {
            let same = QueueRecord {
                queue: first.queue,
                ring: first.ring,
                event_channel: first.event_channel,
                ..*record
            };
            record.queue == number && same == *first
        });
        numbered && self.queues.len() == first.queues as usize
    }
}

impl KeptQueues {
    /// Keeps what is served in these places from now on, and learns what the boot before has left there.
    pub fn start(&self, places: &'static mut [KeptQueue; QUEUES]) {
        let shared = SharedPlaces(Arc::new(Mutex::new(Places {
            free: Vec::with_capacity(QUEUES),
            held: Vec::with_capacity(QUEUES),
        })));
        let mut left: Vec<LeftDisk> = Vec::new();
        for place in places {
            let Some(record) = place.sealed.read() else {
                shared.add(place);
                continue;
            };
            let id = record.disk;
            shared.0.lock().held.push(id.frontend);
            let claim = QueuePlace {
                in_order: None,
                place: Some(place),
                record: None,
                shared: Some((shared.clone(), id.frontend)),
            };
            match left.iter_mut().find(|disk| disk.id == id) {
                Some(disk) => disk.add(record, claim),
                None => left.push(LeftDisk {
                    id,
                    queues: alloc::vec![(record, claim)],
                }),
            }
        }
        left.retain(|disk| {
            let whole = disk.is_whole();
            if !whole {
                log::error!("vbd {}: what was kept of it is not whole", disk.id);
            }
            whole
        });
        self.left.replace(left);
        self.shared.replace(Some(shared));
        self.look();
    }

    /// Keeps nothing more of disks that connect when a crash would end the domain anyway.
    pub fn unless(&self, ends_anyway: fn() -> bool) {
        self.ends_anyway.set(Some(ends_anyway));
    }

    /// Returns whether a crash would find anything that is kept now or was before.
    pub fn is_on(&self) -> bool {
        self.shared.borrow().is_some()
    }

    /// Returns whether disks that connect now are kept.
    pub fn keeps(&self) -> bool {
        self.is_on() && !self.ends_anyway.get().is_some_and(|ends| ends())
    }

    /// Gives places to the queues of a disk that is about to be served: one to each of them, or none to any, as a disk of
    /// which a part is kept ends with a crash all the same. There are none if too few are left, or left to its guest.
    pub fn claim(&self, queues: &[QueueRecord]) -> Option<Vec<QueuePlace>> {
        let shared = self.shared.borrow().clone().filter(|_| self.keeps())?;
        let guest = queues.first()?.disk.frontend;
        let mut claims = Vec::with_capacity(queues.len());
        let mut places = shared.0.lock();
        if places.held_by(guest) + queues.len() > places.share(guest) {
            return None;
        }
        for record in queues {
            places.held.push(guest);
            claims.push(QueuePlace {
                in_order: None,
                place: Some(places.free.pop()?),
                record: Some(*record),
                shared: Some((shared.clone(), guest)),
            });
        }
        Some(claims)
    }

    /// Returns whether the boot before has served this disk, and nobody has taken it up yet.
    pub fn has_left(&self, id: VbdId) -> bool {
        self.left.borrow().iter().any(|disk| disk.id == id)
    }

    /// Returns what the boot before has left of this disk, to be served again.
    pub fn take(&self, id: VbdId) -> Option<LeftDisk> {
        let mut left = self.left.borrow_mut();
        let at = left.iter().position(|disk| disk.id == id)?;
        Some(left.swap_remove(at))
    }

    /// Notes that this disk is served again, or never will be: nothing is left of it.
    pub fn settle(&self, id: VbdId) {
        self.settle_unless(&|other| other != id);
    }

    /// Notes the same of all disks but those that are `wanted`.
    pub fn settle_unless(&self, wanted: &dyn Fn(VbdId) -> bool) {
        self.left.borrow_mut().retain(|disk| wanted(disk.id));
        self.away.borrow_mut().retain(|away| {
            let stays = wanted(away.id);
            if !stays {
                away.settled.set();
            }
            stays
        });
        self.look();
    }

    /// Notes that the store of a disk of the boot before, one of that family, is not there yet.
    pub fn is_away(&self, id: VbdId, family: &'static str) {
        self.away.borrow_mut().push(AbsentDisk {
            id,
            family,
            settled: Flag::default(),
        });
        self.look();
    }

    fn look(&self) {
        let (left, away) = (self.left.borrow(), self.away.borrow());
        let is_away = |disk: &LeftDisk| away.iter().any(|away| away.id == disk.id);
        if self.is_on() && left.iter().all(is_away) {
            self.found.set();
        }
        if self.is_on() && left.is_empty() {
            self.settled.set();
        }
    }

    /// Waits until nothing is left of the boot before: each of its disks is served again, or never will be.
    pub async fn settled(&self) {
        if self.is_on() {
            self.settled.wait().await;
        }
    }

    /// Waits until each disk of the boot before is served again, never will be, or is away.
    pub async fn found(&self) {
        if self.is_on() {
            self.found.wait().await;
        }
    }

    /// Waits until it is this disk's turn: those that were served before the crash have theirs first, so that nobody
    /// else gets their images. Those that are away are a matter of [`turn_on`](Self::turn_on).
    pub async fn turn(&self, id: VbdId) {
        if !self.has_left(id) {
            self.found().await;
        }
    }

    /// Waits until it is this disk's turn on the stores of that family.
    pub async fn turn_on(&self, id: VbdId, family: &str) {
        loop {
            let first = {
                let away = self.away.borrow();
                if self.has_left(id) || away.iter().any(|away| away.id == id) {
                    return;
                }
                let first = away.iter().find(|away| away.family == family);
                first.map(|away| away.settled.clone())
            };
            match first {
                Some(settled) => settled.wait().await,
                None => return,
            }
        }
    }
}
