//! A function's configuration space: as the function has it, and as pciback shows it.

use super::function::{FunctionConfig, MsixConfig};
use bulkhead_xen::abi::pciif::{INVALID_OFFSET, SUCCESS};
use bulkhead_xen::{Mfn, PAGE_SHIFT, PAGE_SIZE, Pirq};
use std::ops::Range;

const COMMAND: usize = 0x04;
const MEMORY: u32 = 1 << 1;
const MASTER: u32 = 1 << 2;
/// The bits of `COMMAND` that pciback passes on: memory, bus mastering, and the interrupt line's disable bit.
const PASSED: u32 = MEMORY | MASTER | 1 << 10;

/// The interrupts that dom0 has enabled.
#[derive(Clone, Debug, Default)]
pub(super) enum Enabled {
    #[default]
    Nothing,
    Msi(Pirq),
    Msix(Vec<Pirq>),
}

struct Placed {
    number: u8,
    address: u64,
    size: u64,
    wide: bool,
    /// True if all ones were written to its lower register, and to its upper one.
    sized: [bool; 2],
}

pub(super) struct Config {
    words: [u32; 64],
    bars: Vec<Placed>,
    msix: Option<MsixConfig>,
    pub(super) has_msi: bool,
    pub(super) prepared: bool,
    pub(super) line: Option<Pirq>,
    pub(super) enabled: Enabled,
}

impl Config {
    /// The configuration space of the function with that number in the machine, as firmware leaves it.
    pub(super) fn new(index: usize, config: &FunctionConfig) -> Config {
        let mut words = [0; 64];
        words[0] = u32::from(config.id.1) << 16 | u32::from(config.id.0);
        words[2] = config.class << 8 | 2;
        // Below 4 GiB, where no memory of the simulated machine is.
        let mut next = 0xc000_0000 + index as u64 * 0x0100_0000;
        let mut bars = Vec::new();
        for bar in &config.bars {
            assert!(bar.size.is_power_of_two(), "the size of a BAR");
            let address = next.next_multiple_of(bar.size);
            next = address + bar.size.max(PAGE_SIZE as u64);
            let register = 4 + usize::from(bar.number);
            words[register] = address as u32 | if bar.wide { 4 } else { 0 };
            bars.push(Placed {
                number: bar.number,
                address,
                size: bar.size,
                wide: bar.wide,
                sized: [false; 2],
            });
        }
        let line = config.line.then(|| Pirq(16 + index as u32));
        if let Some(line) = line {
            words[15] = 1 << 8 | line.0;
        }
        let mut last = None;
        if config.msi {
            link(&mut words, &mut last, 0x40, 0x05);
        }
        if let Some(msix) = config.msix {
            link(
                &mut words,
                &mut last,
                0x60,
                0x11 | u32::from(msix.entries - 1) << 16,
            );
            words[0x64 / 4] = msix.table | u32::from(msix.bar);
            words[0x68 / 4] = msix.pending | u32::from(msix.bar);
        }
        Config {
            words,
            bars,
            msix: config.msix,
            has_msi: config.msi,
            prepared: config.prepared,
            line,
            enabled: Enabled::default(),
        }
    }

    /// Resets the function, as pciback does when the function comes back.
    pub(super) fn reset(&mut self) {
        self.words[COMMAND / 4] &= !(MEMORY | MASTER);
        self.enabled = Enabled::default();
        self.bars.iter_mut().for_each(|bar| bar.sized = [false; 2]);
    }

    pub(super) fn word(&self, offset: u8) -> u32 {
        self.words[usize::from(offset) / 4]
    }

    pub(super) fn set_word(&mut self, offset: u8, value: u32) {
        self.words[usize::from(offset) / 4] = value;
    }

    pub(super) fn is_master(&self) -> bool {
        self.words[COMMAND / 4] & MASTER != 0
    }

    /// Returns whether it answers at its BARs.
    pub(super) fn answers(&self) -> bool {
        self.words[COMMAND / 4] & MEMORY != 0
    }

    pub(super) fn messages(&self) -> usize {
        match &self.enabled {
            Enabled::Nothing => 0,
            Enabled::Msi(_) => 1,
            Enabled::Msix(pirqs) => pirqs.len(),
        }
    }

    pub(super) fn msix_entries(&self) -> Option<u16> {
        self.msix.map(|msix| msix.entries)
    }

    /// The BAR and the offset in it of a page of registers.
    pub(super) fn page(&self, frame: Mfn) -> Option<(u8, u64)> {
        let has = |bar: &&Placed| {
            let last = bar.address + bar.size - 1;
            (bar.address >> PAGE_SHIFT..=last >> PAGE_SHIFT).contains(&frame.0)
        };
        let bar = self.bars.iter().find(has)?;
        let page = frame.0 << PAGE_SHIFT;
        // A BAR smaller than a page may begin in its middle.
        Some((bar.number, page.wrapping_sub(bar.address)))
    }

    /// Returns whether a BAR has a register at an offset.
    pub(super) fn has_register(&self, number: u8, offset: u64, width: usize) -> bool {
        let bar = self.bars.iter().find(|bar| bar.number == number);
        bar.is_some_and(|bar| offset < bar.size && bar.size - offset >= width as u64)
    }

    /// Returns whether Xen has a page of registers read-only.
    pub(super) fn is_protected(&self, frame: Mfn) -> bool {
        let (Some(msix), Some((number, offset))) = (self.msix, self.page(frame)) else {
            return false;
        };
        let page = offset..offset + PAGE_SIZE as u64;
        let touches = |part: Range<u64>| part.start < page.end && page.start < part.end;
        let (table, pending) = (u64::from(msix.table), u64::from(msix.pending));
        let entries = u64::from(msix.entries);
        self.prepared
            && msix.bar == number
            && (touches(table..table + entries * 16)
                || touches(pending..pending + entries.div_ceil(64) * 8))
    }

    /// `XEN_PCI_OP_conf_read`.
    pub(super) fn shown(&self, offset: i32, size: i32) -> Result<u32, i32> {
        let (word, shift, mask) = place(offset, size)?;
        Ok((self.shown_word(word) >> shift) & mask)
    }

    fn shown_word(&self, word: usize) -> u32 {
        let Some((bar, upper)) = self.bar_of(word) else {
            return self.words[word];
        };
        let bar = &self.bars[bar];
        if !bar.sized[usize::from(upper)] {
            return self.words[word];
        }
        let mask = bar.size.wrapping_neg();
        match upper {
            true => (mask >> 32) as u32,
            false => mask as u32 | self.words[word] & 0xf,
        }
    }

    /// `XEN_PCI_OP_conf_write`.
    pub(super) fn write(&mut self, offset: i32, size: i32, value: u32) -> i32 {
        let (word, shift, mask) = match place(offset, size) {
            Ok(place) => place,
            Err(error) => return error,
        };
        if let Some((bar, upper)) = self.bar_of(word) {
            self.bars[bar].sized[usize::from(upper)] = value == u32::MAX;
        } else if word == COMMAND / 4 {
            let passed = PASSED & mask << shift;
            let value = value << shift;
            self.words[word] = self.words[word] & !passed | value & passed;
        }
        SUCCESS
    }

    /// The BAR that a register belongs to, and whether it is the upper one.
    fn bar_of(&self, word: usize) -> Option<(usize, bool)> {
        self.bars.iter().enumerate().find_map(|(index, bar)| {
            let lower = 4 + usize::from(bar.number);
            let upper = bar.wide && word == lower + 1;
            (upper || word == lower).then_some((index, upper))
        })
    }
}

/// Adds a capability to the list.
fn link(words: &mut [u32; 64], last: &mut Option<usize>, offset: usize, head: u32) {
    words[COMMAND / 4] |= 1 << 20;
    words[offset / 4] = head;
    match *last {
        None => words[0x34 / 4] = offset as u32,
        Some(last) => words[last / 4] |= (offset as u32) << 8,
    }
    *last = Some(offset);
}

/// The word of an access, its first bit there, and a mask of its width.
fn place(offset: i32, size: i32) -> Result<(usize, u32, u32), i32> {
    let known = matches!(size, 1 | 2 | 4) && (0..256).contains(&offset) && offset % size == 0;
    let mask = u32::MAX >> (32 - 8 * size.clamp(1, 4));
    match known {
        true => Ok((offset as usize / 4, offset as u32 % 4 * 8, mask)),
        false => Err(INVALID_OFFSET),
    }
}
