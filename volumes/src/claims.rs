//! Who has which sectors of which disks open: two that write, or write and read, do not have the same ones.
//!
//! The rule is that of images ([`Access`]): one writer alone, or any number of readers, or those whose targets
//! all say `shared=yes`. It concerns sectors, whatever they were named by: a whole disk, a partition on it, a
//! logical volume on that.

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

/// Somebody has some of those sectors open, and they cannot be shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlap {
    /// What that one has open.
    pub name: String,
    /// What for.
    pub access: Access,
    /// Who it is.
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
}

#[derive(Clone, Debug)]
struct Holder {
    number: u64,
    ranges: Vec<DiskRange>,
    who: Who,
}

/// Who opens what, and what for.
#[derive(Clone, Debug)]
pub(crate) struct Who {
    pub name: String,
    pub owner: String,
    pub access: Access,
    pub shared: bool,
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

    /// Whether both may have the same sectors.
    fn shares_with(&self, other: &Who) -> bool {
        let only_read = self.access == Access::ReadOnly && other.access == Access::ReadOnly;
        only_read || (self.shared && other.shared)
    }
}

/// The right to use sectors, given back when dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    claims: Arc<Claims>,
    number: u64,
}

impl Holders {
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
    pub fn take(self: &Arc<Self>, who: Who, ranges: Vec<DiskRange>) -> Result<Claim, Overlap> {
        let mut holders = self.0.lock();
        if let Some(overlap) = holders.in_the_way(None, &who, &ranges) {
            return Err(overlap);
        }
        let number = holders.next;
        holders.next += 1;
        holders.all.push(Holder {
            number,
            ranges,
            who,
        });
        Ok(Claim {
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

impl Claim {
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

impl Drop for Claim {
    fn drop(&mut self) {
        let mut holders = self.claims.0.lock();
        holders.all.retain(|holder| holder.number != self.number);
    }
}
