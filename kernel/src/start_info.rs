//! The start info that the builder gives a PVH domain (`hvm/start_info.h`), read into types of this crate.

use crate::memory::layout::{Ranges, TooFragmented, frames_of};
use bulkhead_xen::abi::hvm::{self, HvmStartInfo, MemmapEntry, ModuleEntry};
use core::fmt;

/// The most bytes of the domain's command line; the rest is cut off.
pub const COMMAND_LINE_BYTES: usize = 4096;

/// A module as the builder describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadedModule {
    /// Its address.
    pub address: u64,
    /// Its length in bytes.
    pub bytes: u64,
    /// Its own command line.
    pub command_line: heapless::String<128>,
}

/// The parts of the start info that the runtime uses.
#[derive(Debug)]
pub struct PvhStart {
    /// The domain's command line.
    pub command_line: heapless::String<COMMAND_LINE_BYTES>,
    /// The modules that were loaded beside the kernel.
    pub modules: heapless::Vec<LoadedModule, 8>,
    /// Whole frames of memory.
    pub ram: Ranges,
    /// The frames in which the start info itself lies, with all that it names except the modules.
    #[cfg(any(test, feature = "recover"))]
    pub own: Ranges,
}

/// The reason why a start info cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadStart {
    /// The start info does not begin with the magic number.
    Magic(u32),
    /// The start info has no memory map, as in version 0.
    NoMemoryMap,
    /// The memory map has too many pieces.
    TooFragmented,
}

impl fmt::Display for BadStart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadStart::Magic(found) => write!(
                f,
                "start info begins with {found:#x}, not {:#x}",
                hvm::START_MAGIC
            ),
            BadStart::NoMemoryMap => f.write_str("start info has no memory map"),
            BadStart::TooFragmented => f.write_str("the memory map has too many pieces"),
        }
    }
}

impl From<TooFragmented> for BadStart {
    fn from(_: TooFragmented) -> Self {
        BadStart::TooFragmented
    }
}

/// Reads memory by address.
pub trait Memory {
    /// Reads `buffer.len()` bytes from `address` on.
    fn read(&self, address: u64, buffer: &mut [u8]);
}

fn number32(memory: &impl Memory, address: u64) -> u32 {
    let mut bytes = [0; 4];
    memory.read(address, &mut bytes);
    u32::from_le_bytes(bytes)
}

fn number64(memory: &impl Memory, address: u64) -> u64 {
    let mut bytes = [0; 8];
    memory.read(address, &mut bytes);
    u64::from_le_bytes(bytes)
}

/// Returns a text that a zero byte ends. Bytes other than ASCII become `?`; a text that is too long is cut off.
fn text<const N: usize>(memory: &impl Memory, address: u64) -> heapless::String<N> {
    let mut text = heapless::String::new();
    if address == 0 {
        return text;
    }
    for offset in 0.. {
        let mut byte = [0];
        memory.read(address + offset, &mut byte);
        if byte[0] == 0 || text.push(printable(byte[0])).is_err() {
            break;
        }
    }
    text
}

/// Returns a byte of a command line as a character.
pub fn printable(byte: u8) -> char {
    if byte.is_ascii() {
        char::from(byte)
    } else {
        '?'
    }
}

/// Reads the start info at `address`. At most 8 modules are read.
pub fn parse(memory: &impl Memory, address: u64) -> Result<PvhStart, BadStart> {
    use core::mem::offset_of;
    let field32 = |offset: usize| number32(memory, address + offset as u64);
    let field64 = |offset: usize| number64(memory, address + offset as u64);
    let magic = field32(offset_of!(HvmStartInfo, magic));
    if magic != hvm::START_MAGIC {
        return Err(BadStart::Magic(magic));
    }
    let entries = if field32(offset_of!(HvmStartInfo, version)) == 0 {
        0
    } else {
        field32(offset_of!(HvmStartInfo, memmap_entries))
    };
    let map = field64(offset_of!(HvmStartInfo, memmap_paddr));
    if entries == 0 || map == 0 {
        return Err(BadStart::NoMemoryMap);
    }
    let mut ram = Ranges::new();
    for index in 0..u64::from(entries) {
        let entry = map + index * size_of::<MemmapEntry>() as u64;
        let start = number64(memory, entry + offset_of!(MemmapEntry, addr) as u64);
        let bytes = number64(memory, entry + offset_of!(MemmapEntry, size) as u64);
        let kind = number32(memory, entry + offset_of!(MemmapEntry, kind) as u64);
        if kind == hvm::MEMMAP_TYPE_RAM {
            let frames = whole_frames(start, bytes);
            if !frames.is_empty() {
                ram.push(frames).map_err(|_| TooFragmented)?;
            }
        }
    }
    let list = field64(offset_of!(HvmStartInfo, modlist_paddr));
    let mut modules = heapless::Vec::new();
    for index in 0..u64::from(field32(offset_of!(HvmStartInfo, nr_modules))) {
        let entry = list + index * size_of::<ModuleEntry>() as u64;
        let module = LoadedModule {
            address: number64(memory, entry + offset_of!(ModuleEntry, paddr) as u64),
            bytes: number64(memory, entry + offset_of!(ModuleEntry, size) as u64),
            command_line: text(
                memory,
                number64(
                    memory,
                    entry + offset_of!(ModuleEntry, cmdline_paddr) as u64,
                ),
            ),
        };
        if modules.push(module).is_err() {
            break;
        }
    }
    #[cfg(any(test, feature = "recover"))]
    let own = [
        (address, size_of::<HvmStartInfo>()),
        (map, entries as usize * size_of::<MemmapEntry>()),
        (list, modules.len() * size_of::<ModuleEntry>()),
        (
            field64(offset_of!(HvmStartInfo, cmdline_paddr)),
            COMMAND_LINE_BYTES,
        ),
    ];
    Ok(PvhStart {
        #[cfg(any(test, feature = "recover"))]
        own: own
            .iter()
            .map(|&(start, bytes)| frames_of(start, bytes as u64))
            .collect(),
        command_line: text(memory, field64(offset_of!(HvmStartInfo, cmdline_paddr))),
        modules,
        ram,
    })
}

/// Returns the frames that lie in a piece of memory with all their bytes.
fn whole_frames(start: u64, bytes: u64) -> core::ops::Range<u64> {
    let page = bulkhead_xen::PAGE_SIZE as u64;
    start.div_ceil(page)..frames_of(start.saturating_add(bytes), 0).start
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Memory from address 0x1000 on.
    struct Image(Vec<u8>);

    impl Memory for Image {
        fn read(&self, address: u64, buffer: &mut [u8]) {
            let start = address as usize - 0x1000;
            buffer.copy_from_slice(&self.0[start..start + buffer.len()]);
        }
    }

    impl Image {
        fn put(&mut self, address: usize, bytes: &[u8]) {
            self.0[address - 0x1000..][..bytes.len()].copy_from_slice(bytes);
        }
    }

    fn image() -> Image {
        let mut image = Image(vec![0; 0x2000]);
        // struct hvm_start_info, field by field.
        for (offset, value) in [(0, hvm::START_MAGIC), (4, 1), (8, 0), (12, 1), (48, 3)] {
            image.put(0x1000 + offset, &value.to_le_bytes());
        }
        for (offset, value) in [(16, 0x1100u64), (24, 0x1200), (40, 0x1300)] {
            image.put(0x1000 + offset, &value.to_le_bytes());
        }
        for (offset, value) in [(0, 0x20_0000u64), (8, 12345), (16, 0x1280)] {
            image.put(0x1100 + offset, &value.to_le_bytes());
        }
        image.put(0x1200, b"log=debug \xff\0");
        image.put(0x1280, b"first\0");
        for (index, (start, bytes, kind)) in [
            (0u64, 0x100_0800u64, 1u32),
            (0xfc00_0000, 0x1000, 3),
            (0x1_0000_0000, 0x4000_0000, 1),
        ]
        .into_iter()
        .enumerate()
        {
            let entry = 0x1300 + index * 24;
            image.put(entry, &start.to_le_bytes());
            image.put(entry + 8, &bytes.to_le_bytes());
            image.put(entry + 16, &kind.to_le_bytes());
        }
        image
    }

    #[test]
    fn everything_is_found() {
        let start = parse(&image(), 0x1000).unwrap();
        assert_eq!(start.command_line, "log=debug ?");
        assert_eq!(start.modules.len(), 1);
        assert_eq!(
            (start.modules[0].address, start.modules[0].bytes),
            (0x20_0000, 12345)
        );
        assert_eq!(start.modules[0].command_line, "first");
        assert_eq!(start.ram, [0..0x1000, 0x10_0000..0x14_0000]);
    }

    #[test]
    fn what_is_no_start_info_is_refused() {
        let mut wrong = image();
        wrong.put(0x1000, &[1, 2, 3, 4]);
        assert_eq!(
            parse(&wrong, 0x1000).unwrap_err(),
            BadStart::Magic(0x0403_0201)
        );
        let mut old = image();
        old.put(0x1004, &[0]);
        assert_eq!(parse(&old, 0x1000).unwrap_err(), BadStart::NoMemoryMap);
    }

    #[test]
    fn a_domain_without_command_line_and_modules() {
        let mut bare = image();
        bare.put(0x1000 + 12, &[0]);
        bare.put(0x1000 + 24, &[0; 8]);
        let start = parse(&bare, 0x1000).unwrap();
        assert_eq!(start.command_line, "");
        assert!(start.modules.is_empty());
    }
}
