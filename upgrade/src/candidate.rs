//! Whether a file may take over from the version that runs, and what of it belongs where.

use crate::elf::{BadElf, Elf, Segment};
use core::fmt;
use core::ops::Range;

/// Bytes of a page.
const PAGE: u32 = 4096;

/// The name of our own notes, and the kinds of those that say how a version takes over: in any domain, and in a PV domain.
const NAME: &[u8] = b"Bulkhead";
const TAKE_OVER: u32 = 1;
const TAKE_OVER_PV: u32 = 2;
/// Numbers of that note: more may follow in later versions.
const NUMBERS: usize = 8;

/// `XEN_ELFNOTE_PHYS32_ENTRY` (elfnote.h).
const PHYS32_ENTRY: u32 = 18;

/// A version: major, minor, patch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub [u32; 3]);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.0;
        write!(f, "{major}.{minor}.{patch}")
    }
}

/// The way in which a domain boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestType {
    /// In 32-bit mode without paging.
    Pvh,
    /// In 64-bit mode, on page tables that Xen has checked.
    Pv,
}

/// The version that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Its version.
    pub version: Version,
    /// The way in which the domain boots.
    pub guest_type: GuestType,
    /// The format in which it leaves what survives.
    pub format: u32,
    /// Bytes of what survives.
    pub region_bytes: u32,
    /// The addresses that an image may use: nothing lies there but the image that runs, and free memory.
    pub room: Range<u64>,
}

/// The content of a version's own note.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TakeOver {
    /// The version.
    pub version: Version,
    /// The oldest format that it reads.
    pub oldest: u32,
    /// The newest format that it reads.
    pub newest: u32,
    /// The address of what survives, and the bytes.
    pub region: u32,
    /// Bytes of what survives.
    pub region_bytes: u32,
    /// The address after all that it uses. Behind that, a segment has room for later versions.
    pub end: u32,
}

/// A file that may take over.
#[derive(Clone, Debug)]
pub struct Candidate<'a> {
    elf: Elf<'a>,
    /// The content of its note.
    pub note: TakeOver,
    /// Its first instruction, for the way in which the domain boots.
    pub entry: u32,
    /// In a PV domain, the address of the page that Xen fills with hypercalls when it builds a domain. No part of the file
    /// is there.
    pub hypercall_page: Option<u32>,
}

/// The reason why a file may not take over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Its headers are wrong.
    Elf(BadElf),
    /// It has no note of ours.
    NoNote,
    /// That note's numbers are impossible.
    Note,
    /// It is no kernel for PVH.
    NoEntry,
    /// It does not take over in a PV domain.
    NotInPv,
    /// The page for hypercalls has no place beside its parts.
    HypercallPage,
    /// Its first instruction is not in its code.
    Entry,
    /// Its data has no room for what survives.
    Region,
    /// It reads no record of the format that this version leaves.
    Format(TakeOver, u32),
    /// It is larger in memory than there is room.
    Room(u32, u64),
    /// It begins below the place of the image that runs.
    Place(u32),
    /// It is older than what runs.
    Older(Version, Version),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::Elf(error) => error.fmt(f),
            Refused::NoNote => f.write_str(
                "it has no note of Bulkhead's: expected an ELF built with the feature recover",
            ),
            Refused::Note => f.write_str("the numbers of its note are impossible"),
            Refused::NoEntry => f.write_str("it is no kernel for PVH"),
            Refused::NotInPv => f.write_str("it cannot take over in a PV domain"),
            Refused::HypercallPage => {
                f.write_str("the page for hypercalls has no place beside its parts")
            }
            Refused::Entry => f.write_str("its first instruction is not in its code"),
            Refused::Region => f.write_str("what survives has no place in its data"),
            Refused::Format(note, format) => write!(
                f,
                "version {} reads formats {} to {} of what survives, and this one leaves format {format}",
                note.version, note.oldest, note.newest
            ),
            Refused::Room(end, room) => write!(
                f,
                "in memory it ends at {end:#x}, and this domain has room up to {room:#x}"
            ),
            Refused::Place(start) => {
                write!(f, "it begins at {start:#x}, below the image that runs")
            }
            Refused::Older(new, running) => write!(
                f,
                "it is version {new}, older than {running}, which runs; \"force\" takes it nevertheless"
            ),
        }
    }
}

impl core::error::Error for Refused {}

impl From<BadElf> for Refused {
    fn from(error: BadElf) -> Refused {
        Refused::Elf(error)
    }
}

impl<'a> Candidate<'a> {
    /// Checks a file, whose checksum is a matter of its own. An older version is refused unless `force` says otherwise.
    pub fn check(file: &'a [u8], running: &Running, force: bool) -> Result<Self, Refused> {
        let elf = Elf::parse(file)?;
        let note = take_over(&elf)?.ok_or(Refused::NoNote)?;
        let (entry, hypercall_page) = match running.guest_type {
            GuestType::Pvh => (entry(&elf)?.ok_or(Refused::NoEntry)?, None),
            GuestType::Pv => {
                let [entry, page] = in_pv(&elf)?.ok_or(Refused::NotInPv)?;
                (entry, Some(page))
            }
        };
        if !(note.oldest..=note.newest).contains(&running.format) {
            return Err(Refused::Format(note, running.format));
        }
        let start = elf.segments.first().ok_or(Refused::NoEntry)?.address;
        if u64::from(start) < running.room.start {
            return Err(Refused::Place(start));
        }
        let content_end = |segment: &Segment| segment.address + segment.file_bytes;
        let end = elf.segments.iter().map(content_end).max().unwrap_or(0);
        let end = end.max(note.end);
        if u64::from(end) > running.room.end {
            return Err(Refused::Room(end, running.room.end));
        }
        let code = |one: &&Segment| one.executable && !one.writable;
        let in_code = |one: &Segment| one.address <= entry && entry - one.address < one.file_bytes;
        if !elf.segments.iter().filter(code).any(in_code) {
            return Err(Refused::Entry);
        }
        // In memory that is zero before anything is put there.
        let in_data = |one: &Segment| {
            one.writable
                && one.has(note.region, note.region_bytes)
                && note.region >= content_end(one)
        };
        let fits = note.region_bytes >= running.region_bytes
            && note.region.is_multiple_of(PAGE)
            && note.region_bytes.is_multiple_of(PAGE)
            && u64::from(note.region) + u64::from(note.region_bytes) <= u64::from(note.end);
        if !fits || !elf.segments.iter().any(in_data) {
            return Err(Refused::Region);
        }
        if let Some(page) = hypercall_page {
            let beside = |start: u32, end: u32| {
                u64::from(page) + u64::from(PAGE) <= start.into() || page >= end
            };
            let fits = page.is_multiple_of(PAGE)
                && page >= start
                && u64::from(page) + u64::from(PAGE) <= u64::from(note.end)
                && beside(note.region, note.region + note.region_bytes)
                && elf
                    .segments
                    .iter()
                    .all(|one| beside(one.address, one.end()));
            if !fits {
                return Err(Refused::HypercallPage);
            }
        }
        if note.version < running.version && !force {
            return Err(Refused::Older(note.version, running.version));
        }
        Ok(Candidate {
            elf,
            note,
            entry,
            hypercall_page,
        })
    }

    /// Returns the parts of the image: the address of each, its content, and the bytes after that which are zero.
    pub fn parts(&self) -> impl Iterator<Item = (u32, &'a [u8], u32)> {
        self.elf.segments.iter().map(|segment| {
            let content = self.elf.content(segment);
            let end = segment.end().min(self.note.end);
            let used = end.saturating_sub(segment.address);
            let zero = used.saturating_sub(segment.file_bytes);
            (segment.address, content, zero)
        })
    }
}

/// Reads our own note.
fn take_over(elf: &Elf<'_>) -> Result<Option<TakeOver>, Refused> {
    let Some(note) = elf.note(NAME, TAKE_OVER)? else {
        return Ok(None);
    };
    let (words, _) = note.content.as_chunks::<4>();
    let words = words.first_chunk::<NUMBERS>().ok_or(Refused::Note)?;
    let [
        major,
        minor,
        patch,
        oldest,
        newest,
        region,
        region_bytes,
        end,
    ] = words.map(u32::from_le_bytes);
    Ok(Some(TakeOver {
        version: Version([major, minor, patch]),
        oldest,
        newest,
        region,
        region_bytes,
        end,
    }))
}

/// Reads the note that names the first instruction, a number of 32 or 64 bits.
fn entry(elf: &Elf<'_>) -> Result<Option<u32>, Refused> {
    let Some(note) = elf.note(b"Xen", PHYS32_ENTRY)? else {
        return Ok(None);
    };
    let entry = match *note.content {
        [a, b, c, d] | [a, b, c, d, 0, 0, 0, 0] => u32::from_le_bytes([a, b, c, d]),
        _ => return Err(Refused::Entry),
    };
    Ok(Some(entry))
}

/// Reads the note that says how a version takes over in a PV domain: its first instruction, and the page for hypercalls.
fn in_pv(elf: &Elf<'_>) -> Result<Option<[u32; 2]>, Refused> {
    let Some(note) = elf.note(NAME, TAKE_OVER_PV)? else {
        return Ok(None);
    };
    let (words, _) = note.content.as_chunks::<4>();
    let words = words.first_chunk::<2>().ok_or(Refused::Note)?;
    Ok(Some(words.map(u32::from_le_bytes)))
}
