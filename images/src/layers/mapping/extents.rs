//! The map from the sectors of a device to the devices below it.

use crate::identity::identity_of;
use crate::io::Sector;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

/// Sectors in a row, and their place below: one after another on one device, or in turns on several.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Run {
    /// The first of them.
    start: u64,
    /// The number of sectors.
    len: u64,
    /// The number of sectors in a row on one leg before the next leg's turn; all of them if there is one leg.
    chunk: u64,
    legs: Box<[Leg]>,
}

/// A place on one of the devices below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leg {
    /// The position of the device in the list that the [`MappedDevice`](crate::MappedDevice) is made with.
    pub device: usize,
    /// The first sector there.
    pub start: Sector,
}

/// The places on the devices below where the sectors of a mapped device lie, in their order.
///
/// ```
/// use bulkhead_images::{ExtentMap, Leg, Sector};
///
/// let mut map = ExtentMap::default();
/// let leg = |device, start| Leg { device, start: Sector(start) };
/// map.push(Sector(100), &[leg(0, 2048)])?;
/// map.push_striped(Sector(256), Sector(128), &[leg(0, 4096), leg(1, 0)])?;
/// assert_eq!(map.sectors(), Sector(356));
/// # Ok::<(), bulkhead_images::ExtentError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExtentMap {
    runs: Vec<Run>,
}

/// The reason why sectors cannot be mapped in that way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentError {
    /// There are no sectors, or no legs for them.
    Empty,
    /// A position would be beyond 2^64.
    TooLarge,
    /// The sectors of a turn are not a divisor of those of a leg, or are fewer than a page has.
    Chunk(Sector),
    /// There is no memory for more runs.
    NoMemory,
}

impl fmt::Display for ExtentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExtentError::Empty => f.write_str("a part of it has no sectors"),
            ExtentError::TooLarge => f.write_str("it is larger than a device can be"),
            ExtentError::Chunk(chunk) => {
                write!(f, "it cannot be cut into stripes of {chunk} sectors")
            }
            ExtentError::NoMemory => f.write_str("there is no memory for its extents"),
        }
    }
}

impl core::error::Error for ExtentError {}

/// Neighbouring sectors on one device below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub device: usize,
    pub start: Sector,
    pub len: Sector,
}

impl Piece {
    /// Returns a piece without sectors, of a device.
    pub fn none_of(device: usize) -> Piece {
        Piece {
            device,
            start: Sector(0),
            len: Sector(0),
        }
    }
}

/// The fewest sectors of a turn: a page, which is LVM's least. Smaller turns would cut requests into very small parts.
const LEAST_CHUNK: u64 = 8;

impl ExtentMap {
    /// Adds `len` sectors that lie in a row.
    pub fn push(&mut self, len: Sector, leg: &[Leg; 1]) -> Result<(), ExtentError> {
        if let Some(last) = self.runs.last_mut()
            && let [before] = *last.legs
            && before.device == leg[0].device
            && before.start.0.checked_add(last.len) == Some(leg[0].start.0)
            && len.0 > 0
        {
            let longer = last.len.checked_add(len.0);
            let longer = longer.filter(|longer| ends(before.start.0, *longer, last.start));
            last.len = longer.ok_or(ExtentError::TooLarge)?;
            return Ok(());
        }
        self.add(len.0, len.0, leg)
    }

    /// Adds `len` sectors that lie on several legs in turns of `chunk` sectors.
    pub fn push_striped(
        &mut self,
        len: Sector,
        chunk: Sector,
        legs: &[Leg],
    ) -> Result<(), ExtentError> {
        if let [leg] = legs {
            return self.push(len, &[*leg]);
        }
        let count = legs.len() as u64;
        if count == 0 {
            return Err(ExtentError::Empty);
        }
        if chunk.0 < LEAST_CHUNK
            || !len.0.is_multiple_of(count)
            || !(len.0 / count).is_multiple_of(chunk.0)
        {
            return Err(ExtentError::Chunk(chunk));
        }
        self.add(len.0, chunk.0, legs)
    }

    /// Returns a number that tells the places of the first `sectors` from others, whatever is behind them.
    pub(super) fn identity(&self, sectors: Sector) -> u32 {
        let runs = self.runs.iter().take_while(|run| run.start < sectors.0);
        let numbers = runs.flat_map(|run| {
            let len = run.len.min(sectors.0 - run.start);
            // A single leg has no turns.
            let chunk = if run.legs.len() > 1 { run.chunk } else { 0 };
            let legs = run.legs.iter();
            let legs = legs.flat_map(|leg| [leg.device as u64, leg.start.0]);
            [len, chunk].into_iter().chain(legs)
        });
        identity_of(numbers.flat_map(u64::to_le_bytes))
    }

    fn add(&mut self, len: u64, chunk: u64, legs: &[Leg]) -> Result<(), ExtentError> {
        let start = self.sectors().0;
        if len == 0 {
            return Err(ExtentError::Empty);
        }
        let of_leg = len / legs.len() as u64;
        if !legs.iter().all(|leg| ends(leg.start.0, of_leg, 0)) || !ends(start, len, 0) {
            return Err(ExtentError::TooLarge);
        }
        let mut own = Vec::new();
        let room = self.runs.try_reserve(1);
        let room = room.and_then(|()| own.try_reserve_exact(legs.len()));
        room.map_err(|_| ExtentError::NoMemory)?;
        own.extend_from_slice(legs);
        self.runs.push(Run {
            start,
            len,
            chunk,
            legs: own.into_boxed_slice(),
        });
        Ok(())
    }

    /// Returns the number of sectors that are mapped.
    pub fn sectors(&self) -> Sector {
        Sector(self.runs.last().map_or(0, |last| last.start + last.len))
    }

    /// Returns the ranges that are mapped to: the device below, the first sector and the number of sectors.
    pub fn ranges(&self) -> impl Iterator<Item = (usize, Sector, Sector)> {
        self.runs.iter().flat_map(|run| {
            let len = Sector(run.len / run.legs.len() as u64);
            run.legs.iter().map(move |leg| (leg.device, leg.start, len))
        })
    }

    /// Returns whether all sectors of `self` have the same place in `larger`.
    pub fn is_start_of(&self, larger: &ExtentMap) -> bool {
        let mut at = 0;
        while at < self.sectors().0 {
            let (Some(ours), Some(theirs)) = (self.run(at), larger.run(at)) else {
                return false;
            };
            let same = match (&*ours.legs, &*theirs.legs) {
                ([our], [their]) => {
                    let place = |leg: &Leg, run: &Run| (leg.device, leg.start.0 + at - run.start);
                    place(our, ours) == place(their, theirs)
                }
                // Its turns begin where it does.
                _ => {
                    (ours.start, ours.chunk, &ours.legs)
                        == (theirs.start, theirs.chunk, &theirs.legs)
                }
            };
            if !same {
                return false;
            }
            at = (ours.start + ours.len).min(theirs.start + theirs.len);
        }
        true
    }

    fn run(&self, sector: u64) -> Option<&Run> {
        let after = self.runs.partition_point(|run| run.start <= sector);
        let run = &self.runs[after.checked_sub(1)?];
        (sector - run.start < run.len).then_some(run)
    }

    /// Returns the place of `sector`, and how many of the `count` sectors from there on lie in a row.
    #[inline]
    pub(super) fn piece(&self, sector: u64, count: u64) -> Option<Piece> {
        let run = self.run(sector)?;
        let offset = sector - run.start;
        let left = (run.len - offset).min(count);
        if let [leg] = *run.legs {
            return Some(Piece {
                device: leg.device,
                start: Sector(leg.start.0 + offset),
                len: Sector(left),
            });
        }
        let legs = run.legs.len() as u64;
        let (turn, within) = (offset / run.chunk, offset % run.chunk);
        let leg = run.legs[(turn % legs) as usize];
        Some(Piece {
            device: leg.device,
            start: Sector(leg.start.0 + turn / legs * run.chunk + within),
            len: Sector(left.min(run.chunk - within)),
        })
    }

    /// Returns the part that the leg of that number has of the `count` sectors from `sector` on, as far as
    /// they are in the same run, and how many sectors there are in that run. The part lies in a row on its device, unlike the
    /// pieces of a transfer, which lie in a row in memory. `None` if there is no such leg.
    pub(super) fn share(&self, sector: u64, count: u64, leg: usize) -> Option<(Piece, u64)> {
        let run = self.run(sector)?;
        let (number, leg) = (leg as u64, run.legs.get(leg)?);
        let legs = run.legs.len() as u64;
        let from = sector - run.start;
        let until = (run.len - from).min(count) + from;
        // A leg's sectors among the first `offset` ones.
        let before = |offset: u64| match legs {
            1 => offset,
            _ => {
                let (rounds, rest) = (offset / run.chunk / legs, offset % (run.chunk * legs));
                let own = rest.saturating_sub(number * run.chunk).min(run.chunk);
                rounds * run.chunk + own
            }
        };
        let piece = Piece {
            device: leg.device,
            start: Sector(leg.start.0 + before(from)),
            len: Sector(before(until) - before(from)),
        };
        Some((piece, until - from))
    }
}

/// Returns whether `len` sectors from `start` and from `other` both end at a valid sector number.
fn ends(start: u64, len: u64, other: u64) -> bool {
    // In bytes as well, and with a chunk's length times the legs within the number.
    let end = |start: u64| start.checked_add(len).is_some_and(|end| end < 1 << 55);
    end(start) && end(other)
}
