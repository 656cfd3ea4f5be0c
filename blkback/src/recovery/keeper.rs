//! The places of all queues: given to those that connect, and found again after a crash.

use super::place::{Place, QUEUES};
use super::record::Record;
use crate::id::VbdId;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_executor::Flag;
use core::cell::{Cell, RefCell};
use spin::Mutex;

/// The places that no queue has. A queue gives its place back here, from whatever vCPU.
#[derive(Clone, Debug)]
pub struct Home(Arc<Mutex<Vec<&'static mut Place>>>);

impl Home {
    /// Takes a place back, in which nothing is kept from here on.
    pub fn take_back(&self, place: &'static mut Place) {
        place.clear();
        self.0.lock().push(place);
    }
}

/// A place that a queue has. By default, it has none.
#[derive(Debug, Default)]
pub struct Claim {
    /// The place, while responses are put in the order of the requests: response k for request k.
    pub in_order: Option<&'static mut Place>,
    /// The place otherwise, but while it is lent.
    pub place: Option<&'static mut Place>,
    /// Who is to be served; `None` if the place says so already.
    pub record: Option<Record>,
    home: Option<Home>,
}

impl Claim {
    /// Returns whether there is a place.
    pub fn is_some(&self) -> bool {
        self.home.is_some()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let (Some(place), Some(home)) = (self.in_order.take().or(self.place.take()), &self.home)
        {
            home.take_back(place);
        }
    }
}

/// Gives places to queues. By default there is none, and nothing is kept.
#[derive(Default)]
pub struct Keeper {
    home: RefCell<Option<Home>>,
    /// The disks that the boot before has served and nobody has taken up yet.
    left: RefCell<Vec<LeftDisk>>,
    /// Those that the boot before has served and whose stores are not there yet.
    away: RefCell<Vec<Away>>,
    /// Set when each disk of the boot before is served again, never will be, or is away.
    found: Flag,
    /// Set when there is none of these any more.
    settled: Flag,
    /// Tells whether a crash would end the domain whatever is kept.
    ends_anyway: Cell<Option<fn() -> bool>>,
}

/// A disk whose store is not there yet.
struct Away {
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
    pub queues: Vec<(Record, Claim)>,
}

impl LeftDisk {
    /// Adds a queue.
    fn add(&mut self, record: Record, claim: Claim) {
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
            let same = Record {
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

impl Keeper {
    /// Keeps what is served in these places from now on, and learns what the boot before has left there.
    pub fn start(&self, places: &'static mut [Place; QUEUES]) {
        let home = Home(Arc::new(Mutex::new(Vec::with_capacity(QUEUES))));
        let mut left: Vec<LeftDisk> = Vec::new();
        for place in places {
            let Some(record) = place.sealed.read() else {
                home.take_back(place);
                continue;
            };
            let claim = Claim {
                in_order: None,
                place: Some(place),
                record: None,
                home: Some(home.clone()),
            };
            let id = record.disk;
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
        self.home.replace(Some(home));
        self.look();
    }

    /// Keeps nothing more of disks that connect when a crash would end the domain anyway.
    pub fn unless(&self, ends_anyway: fn() -> bool) {
        self.ends_anyway.set(Some(ends_anyway));
    }

    /// Returns whether a crash would find anything that is kept now or was before.
    pub fn is_on(&self) -> bool {
        self.home.borrow().is_some()
    }

    /// Returns whether disks that connect now are kept.
    pub fn keeps(&self) -> bool {
        self.is_on() && !self.ends_anyway.get().is_some_and(|ends| ends())
    }

    /// Gives a place to a queue that is about to be served, if one is left.
    pub fn claim(&self, record: Record) -> Option<Claim> {
        let home = self.home.borrow().clone().filter(|_| self.keeps())?;
        let place = home.0.lock().pop()?;
        Some(Claim {
            in_order: None,
            place: Some(place),
            record: Some(record),
            home: Some(home),
        })
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
        self.away.borrow_mut().push(Away {
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
