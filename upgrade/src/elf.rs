//! The parts of an ELF that loading it takes: its length, the segments that are loaded, and the notes.
//!
//! The layout is that of the System V ABI's object files, 64 bits, little-endian.

use core::fmt;

/// Bytes of the file's header.
pub const HEADER_BYTES: usize = 64;
/// The largest file that is read: several times as large as any of ours.
pub const MOST_BYTES: u64 = 4 << 20;

/// Bytes of an entry of the list of segments, and of the list of sections.
const SEGMENT_BYTES: u64 = 56;
const SECTION_BYTES: u64 = 64;
/// The most segments of a file.
const MOST_SEGMENTS: u64 = 16;
/// The most sections of a file.
const MOST_SECTIONS: u64 = 256;

const LOAD: u32 = 1;
const NOTE: u32 = 4;
const EXECUTABLE: u32 = 1;
const WRITABLE: u32 = 2;

/// The reason why a file is no ELF that can be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadElf {
    /// It does not begin as one.
    Magic,
    /// It is for another machine, or no program that is linked to fixed addresses.
    Kind,
    /// It is longer than any of ours.
    TooLarge,
    /// It ends before something that its headers name.
    CutOff,
    /// The list of segments or sections has an impossible length.
    List,
    /// A segment's numbers are impossible.
    Segment,
    /// Segments overlap or are not in the order of their addresses.
    Order,
    /// A note's numbers are impossible.
    Note,
}

impl fmt::Display for BadElf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BadElf::Magic => "it does not begin as an ELF does",
            BadElf::Kind => "it is no ELF for x86-64 that is linked to fixed addresses",
            BadElf::TooLarge => "its headers name more than 4 MiB",
            BadElf::CutOff => "it ends before what its headers name",
            BadElf::List => "its list of segments or sections has an impossible length",
            BadElf::Segment => "the numbers of a segment are impossible",
            BadElf::Order => "its segments overlap, or are not in the order of their addresses",
            BadElf::Note => "the numbers of a note are impossible",
        })
    }
}

impl core::error::Error for BadElf {}

/// A part of the file that is loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Its place in the file.
    pub offset: u32,
    /// Its bytes in the file.
    pub file_bytes: u32,
    /// Its address, virtual and physical.
    pub address: u32,
    /// Its bytes in memory: what the file does not have is zero.
    pub memory_bytes: u32,
    /// It has code.
    pub executable: bool,
    /// It can be written.
    pub writable: bool,
}

impl Segment {
    /// Returns the address after it.
    pub fn end(&self) -> u32 {
        // Checked when it was read.
        self.address + self.memory_bytes
    }

    /// Returns whether these bytes lie in it.
    pub fn has(&self, address: u32, bytes: u32) -> bool {
        let end = address.checked_add(bytes);
        address >= self.address && end.is_some_and(|end| end <= self.end())
    }
}

/// A note.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note<'a> {
    /// The name of the one that defined it, without the zero byte at the end.
    pub name: &'a [u8],
    /// Its type, among those of that name.
    pub kind: u32,
    /// Its content.
    pub content: &'a [u8],
}

/// A file whose headers were checked.
#[derive(Clone, Debug)]
pub struct Elf<'a> {
    file: &'a [u8],
    /// The parts that are loaded, in the order of the addresses.
    pub segments: heapless::Vec<Segment, { MOST_SEGMENTS as usize }>,
    notes: heapless::Vec<&'a [u8], { MOST_SEGMENTS as usize }>,
}

/// The numbers of the file's header.
struct Header {
    segments: u64,
    segment_count: u64,
    sections: u64,
    section_count: u64,
}

fn bytes<const N: usize>(from: &[u8], at: u64) -> Option<[u8; N]> {
    let start = usize::try_from(at).ok()?;
    let end = start.checked_add(N)?;
    from.get(start..end)?.try_into().ok()
}

fn number16(from: &[u8], at: u64) -> Option<u16> {
    bytes(from, at).map(u16::from_le_bytes)
}

fn number32(from: &[u8], at: u64) -> Option<u32> {
    bytes(from, at).map(u32::from_le_bytes)
}

fn number64(from: &[u8], at: u64) -> Option<u64> {
    bytes(from, at).map(u64::from_le_bytes)
}

/// The part of the file from `start` on.
fn part(file: &[u8], start: u64, len: u64) -> Option<&[u8]> {
    let start = usize::try_from(start).ok()?;
    let end = start.checked_add(usize::try_from(len).ok()?)?;
    file.get(start..end)
}

fn header(start: &[u8]) -> Result<Header, BadElf> {
    let cut = || BadElf::CutOff;
    // The class of 64 bits, little-endian, version 1.
    match bytes::<7>(start, 0).ok_or_else(cut)? {
        [0x7f, b'E', b'L', b'F', 2, 1, 1] => {}
        [0x7f, b'E', b'L', b'F', ..] => return Err(BadElf::Kind),
        _ => return Err(BadElf::Magic),
    }
    let short = |at| number16(start, at).ok_or_else(cut);
    let long = |at| number64(start, at).ok_or_else(cut);
    const EXECUTABLE_FILE: u16 = 2;
    const X86_64: u16 = 62;
    if short(16)? != EXECUTABLE_FILE || short(18)? != X86_64 {
        return Err(BadElf::Kind);
    }
    let header = Header {
        segments: long(32)?,
        segment_count: short(56)?.into(),
        sections: long(40)?,
        section_count: short(60)?.into(),
    };
    let segments = u64::from(short(54)?) == SEGMENT_BYTES
        && (1..=MOST_SEGMENTS).contains(&header.segment_count);
    let sections = header.section_count == 0
        || u64::from(short(58)?) == SECTION_BYTES && header.section_count <= MOST_SECTIONS;
    match segments && sections {
        true => Ok(header),
        false => Err(BadElf::List),
    }
}

/// Returns the number of bytes from the start of the file on that have all of its headers of segments, given its first
/// [`HEADER_BYTES`].
pub fn headers_end(start: &[u8]) -> Result<u64, BadElf> {
    let header = header(start)?;
    let end = header
        .segments
        .checked_add(header.segment_count * SEGMENT_BYTES);
    let end = end.map(|end| end.max(HEADER_BYTES as u64));
    end.filter(|end| *end <= MOST_BYTES).ok_or(BadElf::TooLarge)
}

/// Returns the file's length, given the bytes up to [`headers_end`]: it ends where the last segment or the list of
/// sections does.
pub fn length(start: &[u8]) -> Result<u64, BadElf> {
    let header = header(start)?;
    let sections = match header.section_count {
        0 => Some(0),
        count => header.sections.checked_add(count * SECTION_BYTES),
    };
    let mut end = headers_end(start)?.max(sections.ok_or(BadElf::TooLarge)?);
    for number in 0..header.segment_count {
        let at = header.segments + number * SEGMENT_BYTES;
        let offset = number64(start, at + 8).ok_or(BadElf::CutOff)?;
        let bytes = number64(start, at + 32).ok_or(BadElf::CutOff)?;
        end = end.max(offset.checked_add(bytes).ok_or(BadElf::TooLarge)?);
    }
    (end <= MOST_BYTES).then_some(end).ok_or(BadElf::TooLarge)
}

impl<'a> Elf<'a> {
    /// Checks the headers of a file.
    pub fn parse(file: &'a [u8]) -> Result<Elf<'a>, BadElf> {
        if length(file)? > file.len() as u64 {
            return Err(BadElf::CutOff);
        }
        let header = header(file)?;
        let mut elf = Elf {
            file,
            segments: heapless::Vec::new(),
            notes: heapless::Vec::new(),
        };
        for number in 0..header.segment_count {
            let at = header.segments + number * SEGMENT_BYTES;
            let entry = part(file, at, SEGMENT_BYTES).ok_or(BadElf::CutOff)?;
            elf.add(entry)?;
        }
        let ordered = elf
            .segments
            .is_sorted_by(|one, next| one.end() <= next.address);
        match ordered {
            true => Ok(elf),
            false => Err(BadElf::Order),
        }
    }

    fn add(&mut self, entry: &[u8]) -> Result<(), BadElf> {
        let numbers = || {
            Some((
                number32(entry, 0)?,
                number32(entry, 4)?,
                [8, 16, 24, 32, 40].map(|at| number64(entry, at)),
            ))
        };
        let (kind, flags, numbers) = numbers().ok_or(BadElf::CutOff)?;
        let [
            Some(offset),
            Some(address),
            Some(physical),
            Some(in_file),
            Some(in_memory),
        ] = numbers
        else {
            return Err(BadElf::CutOff);
        };
        let content = part(self.file, offset, in_file).ok_or(BadElf::CutOff)?;
        match kind {
            NOTE => self.notes.push(content).map_err(|_| BadElf::List),
            LOAD if in_memory == 0 => Ok(()),
            LOAD => {
                let end = address.checked_add(in_memory);
                let possible = address == physical && in_file <= in_memory;
                let end = end.filter(|end| possible && u32::try_from(*end).is_ok());
                end.ok_or(BadElf::Segment)?;
                let number = |number| u32::try_from(number).map_err(|_| BadElf::Segment);
                let segment = Segment {
                    offset: number(offset)?,
                    file_bytes: number(in_file)?,
                    address: number(address)?,
                    memory_bytes: number(in_memory)?,
                    executable: flags & EXECUTABLE != 0,
                    writable: flags & WRITABLE != 0,
                };
                self.segments.push(segment).map_err(|_| BadElf::List)
            }
            _ => Ok(()),
        }
    }

    /// Returns the bytes of a segment that the file has.
    pub fn content(&self, segment: &Segment) -> &'a [u8] {
        let (offset, bytes) = (segment.offset.into(), segment.file_bytes.into());
        part(self.file, offset, bytes).unwrap_or_default()
    }

    /// Returns the first note of that name and kind.
    pub fn note(&self, name: &[u8], kind: u32) -> Result<Option<Note<'a>>, BadElf> {
        for notes in &self.notes {
            let mut rest = *notes;
            while !rest.is_empty() {
                let (note, after) = next_note(rest)?;
                if note.name == name && note.kind == kind {
                    return Ok(Some(note));
                }
                rest = after;
            }
        }
        Ok(None)
    }
}

/// Reads the first note, and returns what is behind it. Name and content are padded to four bytes each.
fn next_note(notes: &[u8]) -> Result<(Note<'_>, &[u8]), BadElf> {
    let read = || {
        let name_bytes = u64::from(number32(notes, 0)?);
        let bytes = u64::from(number32(notes, 4)?);
        let kind = number32(notes, 8)?;
        let name = part(notes, 12, name_bytes)?;
        let start = 12 + name_bytes.next_multiple_of(4);
        let content = part(notes, start, bytes)?;
        let end = usize::try_from(start + bytes.next_multiple_of(4)).ok()?;
        let name = name.strip_suffix(&[0]).unwrap_or(name);
        let note = Note {
            name,
            kind,
            content,
        };
        // The last one may end without its padding.
        Some((note, notes.get(end..).unwrap_or_default()))
    };
    read().ok_or(BadElf::Note)
}
