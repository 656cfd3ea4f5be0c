//! Who has which sectors of which disks open: two that write, or write and read, do not have the same ones.
//!
//! The rule is that of images ([`Access`]): one writer alone, or any number of readers, or those whose targets
//! all say `shared=yes`. It concerns sectors, whatever they were named by: a whole disk, a partition on it, a
//! logical volume on that.
//!
//! What guests could write to is remembered after they have gone: it does not describe other guests' volumes.

use crate::order::order;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_images::Access;
use core::fmt;
use core::ops::Range;
use spin::Mutex;

/// A disk, by the number it got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DiskId(pub u64);

/// Sectors of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DiskRange {
    pub disk: DiskId,
    pub sectors: Range<u64>,
}

/// An owner who has some of those sectors open and does not share them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlap {
    /// The name of what that owner has open.
    pub name: String,
    /// The access that it was opened for.
    pub access: Access,
    /// The owner's name.
    pub owner: String,
}

impl Overlap {
    /// Says who has it open, and what would be needed.
    pub(crate) fn who(&self) -> impl fmt::Display {
        let Overlap { access, owner, .. } = self;
        alloc::format!(
            "open for {access} by {owner}; two that write, or write and read, need shared=yes in the target of \
             each"
        )
    }
}

impl fmt::Display for Overlap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "it has sectors of {}, which is {}",
            self.name,
            self.who()
        )
    }
}

impl core::error::Error for Overlap {}

/// All that is open.
#[derive(Debug, Default)]
pub(crate) struct Claims(Mutex<Holders>);

#[derive(Debug, Default)]
struct Holders {
    next: u64,
    all: Vec<Holder>,
    written: Vec<Written>,
}

/// Sectors of a disk that guests have or had open for writing, in order and apart from one another.
#[derive(Debug)]
struct Written {
    disk: DiskId,
    sectors: Vec<Range<u64>>,
}

#[derive(Clone, Debug)]
struct Holder {
    number: u64,
    ranges: Vec<DiskRange>,
    who: Who,
}

/// An owner, what it opens, and what for.
#[derive(Clone, Debug)]
pub(crate) struct Who {
    pub name: String,
    pub owner: String,
    pub access: Access,
    pub shared: bool,
    /// Its writes are the operator's word, not a guest's.
    pub administrator: bool,
}

impl DiskRange {
    /// Returns all sectors of a disk, however large it becomes.
    pub fn all_of(disk: DiskId) -> DiskRange {
        DiskRange {
            disk,
            sectors: 0..u64::MAX,
        }
    }
}

impl Who {
    fn in_the_way(&self) -> Overlap {
        Overlap {
            name: self.name.clone(),
            access: self.access,
            owner: self.owner.clone(),
        }
    }

    /// Returns whether it writes what only a guest answers for.
    fn writes_as_guest(&self) -> bool {
        self.access == Access::ReadWrite && !self.administrator
    }

    /// Returns whether both may have the same sectors.
    fn shares_with(&self, other: &Who) -> bool {
        let only_read = self.access == Access::ReadOnly && other.access == Access::ReadOnly;
        only_read || (self.shared && other.shared)
    }
}

/// The right to use sectors, given back when dropped.
#[derive(Debug)]
pub(crate) struct SectorsClaim {
    claims: Arc<Claims>,
    number: u64,
}

impl Written {
    /// Puts the sectors in order, and together what touches.
    fn put_in_order(&mut self) {
        let by_start = order(self.sectors.len(), &|one, other| {
            self.sectors[one].start.cmp(&self.sectors[other].start)
        });
        let mut in_order: Vec<Range<u64>> = Vec::new();
        // Without memory for the order, all of the disk counts as written.
        let Some(by_start) = by_start else {
            self.sectors.truncate(1);
            self.sectors.fill(0..u64::MAX);
            return;
        };
        for position in by_start {
            let next = self.sectors[position].clone();
            match in_order.last_mut() {
                Some(last) if next.start <= last.end => last.end = last.end.max(next.end),
                _ => in_order.push(next),
            }
        }
        self.sectors = in_order;
    }
}

impl Holders {
    /// Notes the sectors that a guest can write to from now on.
    fn note_written(&mut self, who: &Who, ranges: &[DiskRange]) {
        if !who.writes_as_guest() {
            return;
        }
        for DiskRange { disk, sectors } in ranges {
            let mut disks = self.written.iter_mut();
            match disks.find(|written| written.disk == *disk) {
                Some(written) => written.sectors.push(sectors.clone()),
                None => self.written.push(Written {
                    disk: *disk,
                    sectors: alloc::vec![sectors.clone()],
                }),
            }
        }
        self.written.iter_mut().for_each(Written::put_in_order);
    }

    /// Returns who stands in the way of a claim.
    fn in_the_way(&self, number: Option<u64>, who: &Who, ranges: &[DiskRange]) -> Option<Overlap> {
        let meets = |one: &DiskRange, other: &DiskRange| {
            one.disk == other.disk
                && one.sectors.start < other.sectors.end
                && other.sectors.start < one.sectors.end
        };
        let other = self.all.iter().find(|other| {
            Some(other.number) != number
                && !who.shares_with(&other.who)
                && other
                    .ranges
                    .iter()
                    .any(|theirs| ranges.iter().any(|ours| meets(ours, theirs)))
        })?;
        Some(other.who.in_the_way())
    }
}

impl Claims {
    /// Claims sectors, unless somebody stands in the way.
    pub fn take(
        self: &Arc<Self>,
        who: Who,
        ranges: Vec<DiskRange>,
    ) -> Result<SectorsClaim, Overlap> {
        let mut holders = self.0.lock();
        if let Some(overlap) = holders.in_the_way(None, &who, &ranges) {
            return Err(overlap);
        }
        holders.note_written(&who, &ranges);
        let number = holders.next;
        holders.next += 1;
        holders.all.push(Holder {
            number,
            ranges,
            who,
        });
        Ok(SectorsClaim {
            claims: self.clone(),
            number,
        })
    }

    /// Returns who has all of a disk to write to, and does not share it: what is on it is that one's own.
    pub fn owner_of(&self, disk: DiskId) -> Option<Overlap> {
        let holders = self.0.lock();
        let all = |range: &DiskRange| *range == DiskRange::all_of(disk);
        let owner = holders.all.iter().find(|holder| {
            let who = &holder.who;
            who.access == Access::ReadWrite && !who.shared && holder.ranges.iter().any(all)
        })?;
        Some(owner.who.in_the_way())
    }

    /// Returns the sectors of a disk that guests could write to since [`trust`](Self::trust), in order.
    pub fn written(&self, disk: DiskId) -> Vec<Range<u64>> {
        let holders = self.0.lock();
        let mut disks = holders.written.iter();
        let written = disks.find(|written| written.disk == disk);
        written.map_or_else(Vec::new, |written| written.sectors.clone())
    }

    /// Has what guests could write to of each of these disks count for all of them: they are one, which has several names.
    pub fn join(&self, disks: &[DiskId]) {
        let mut holders = self.0.lock();
        let of_them = |written: &&Written| disks.contains(&written.disk);
        let written = holders.written.iter().filter(of_them);
        let sectors: Vec<Range<u64>> = written.flat_map(|it| it.sectors.iter().cloned()).collect();
        if sectors.is_empty() {
            return;
        }
        holders.written.retain(|it| !disks.contains(&it.disk));
        for &disk in disks {
            let sectors = sectors.clone();
            let mut written = Written { disk, sectors };
            written.put_in_order();
            holders.written.push(written);
        }
    }

    /// Notes that a disk's content is the operator's, but for what guests can write to now.
    pub fn trust(&self, disk: DiskId) {
        let mut holders = self.0.lock();
        holders.written.retain(|written| written.disk != disk);
        let guests = holders.all.iter().filter(|it| it.who.writes_as_guest());
        let ranges = guests.flat_map(|holder| &holder.ranges);
        let sectors: Vec<Range<u64>> = ranges
            .filter(|range| range.disk == disk)
            .map(|range| range.sectors.clone())
            .collect();
        if !sectors.is_empty() {
            let mut written = Written { disk, sectors };
            written.put_in_order();
            holders.written.push(written);
        }
    }

    /// Returns who has sectors of a disk open, and what they call it, in the order in which they came.
    pub fn users(&self, disk: DiskId) -> Vec<(String, String, Access)> {
        let holders = self.0.lock();
        let concerned = holders.all.iter().filter(|holder| {
            let mut ranges = holder.ranges.iter();
            ranges.any(|range| range.disk == disk)
        });
        let told = |holder: &Holder| {
            let who = &holder.who;
            (who.name.to_string(), who.owner.to_string(), who.access)
        };
        concerned.map(told).collect()
    }
}

impl SectorsClaim {
    /// Claims these sectors instead, unless somebody stands in the way; then nothing changes.
    pub fn change(&self, ranges: Vec<DiskRange>) -> Result<(), Overlap> {
        let mut holders = self.claims.0.lock();
        let mine = |holder: &&Holder| holder.number == self.number;
        let Some(who) = holders.all.iter().find(mine).map(|mine| mine.who.clone()) else {
            return Ok(());
        };
        if let Some(overlap) = holders.in_the_way(Some(self.number), &who, &ranges) {
            return Err(overlap);
        }
        holders.note_written(&who, &ranges);
        let mut all = holders.all.iter_mut();
        if let Some(mine) = all.find(|holder| holder.number == self.number) {
            mine.ranges = ranges;
        }
        Ok(())
    }

    /// Returns who has it.
    pub fn owner(&self) -> String {
        let holders = self.claims.0.lock();
        let mut all = holders.all.iter();
        let mine = all.find(|holder| holder.number == self.number);
        mine.map(|mine| mine.who.owner.clone()).unwrap_or_default()
    }
}

impl Drop for SectorsClaim {
    fn drop(&mut self) {
        let mut holders = self.claims.0.lock();
        holders.all.retain(|holder| holder.number != self.number);
    }
}
