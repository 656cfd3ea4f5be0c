//! Extending the page tables of a PV domain under Xen's rules (xen.h, `mmu_update`).
//!
//! Xen checks every page table: while a frame is one, it must not be mapped writable anywhere. So each
//! new table is filled while it is still ordinary memory, then mapped read-only, then entered into
//! the table above it. These two updates of many tables go to Xen in one hypercall.
//!
//! New tables come from memory that is mapped already: first from what the builder left over
//! (at least 512 KiB behind the boot stack, xen.h), then from what has just been mapped.

use super::layout::Ranges;
#[cfg(any(test, feature = "recover"))]
use super::layout::subtract;
use super::page_table::{
    ACCESSED, DIRTY, Image, LARGE_PAGE, NO_EXECUTE, PRESENT, USER, WRITABLE, address_of, index,
};
use bulkhead_xen::abi::pv::{MMU_NORMAL_PT_UPDATE, MmuUpdate};
use bulkhead_xen::{Errno, PAGE_SIZE};
use core::fmt;
use core::ops::Range;

const PAGE: u64 = PAGE_SIZE as u64;
const ENTRIES: u64 = 512;

/// The number of page frames that are mapped at boot, beyond those that the toolstack has mapped: 32 MiB.
const AT_BOOT: u64 = 8 << 10;

/// The reason why memory cannot be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmapped {
    /// There is no memory left for page tables.
    NoTables,
    /// Xen refused a batch of updates.
    Refused(Errno),
    /// A page frame has no machine frame.
    Hole(u64),
}

impl fmt::Display for Unmapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unmapped::NoTables => f.write_str("no memory left for page tables"),
            Unmapped::Refused(error) => write!(f, "Xen refuses a page-table update: {error}"),
            Unmapped::Hole(pfn) => write!(f, "page frame {pfn:#x} has no memory"),
        }
    }
}

/// The domain's memory, in which page tables lie, and Xen, which checks every update.
///
/// # Safety
/// An implementer promises that the frames it returns are right, and that updates which succeed have
/// been made.
pub unsafe trait PvMemory {
    /// Reads a word of memory at its pseudo-physical address, where it is mapped.
    ///
    /// # Safety
    /// It is mapped there, readable.
    unsafe fn read(&self, address: u64) -> u64;

    /// Writes a word of memory at its pseudo-physical address, where it is mapped.
    ///
    /// # Safety
    /// It is mapped there, writable, and is not in use.
    unsafe fn write(&mut self, address: u64, value: u64);

    /// Returns the machine frame behind a page frame, if there is one.
    fn machine_frame(&self, pfn: u64) -> Option<u64>;

    /// Returns the page frame number of a machine frame of the domain's.
    fn page_frame(&self, mfn: u64) -> u64;

    /// Sends a batch of updates to Xen.
    ///
    /// # Safety
    /// They remove no mapping that is in use.
    unsafe fn update(&mut self, batch: &mut [MmuUpdate]) -> Result<(), Errno>;
}

/// The page tables in use.
#[derive(Debug)]
pub struct PageTables<M> {
    top: u64,
    memory: M,
    free: Ranges,
    used: Ranges,
    /// Free frames below this one are mapped writable.
    mapped: u64,
    /// Free frames below this one will be once the batch has been sent.
    waiting: u64,
    batch: heapless::Vec<MmuUpdate, 256>,
}

impl<M: PvMemory> PageTables<M> {
    /// # Safety
    /// `top` is the address of the top table in use, every frame of which is mapped at its own
    /// pseudo-physical address, and the free frames are not in use.
    pub unsafe fn new(top: u64, memory: M, free: &Ranges) -> Self {
        PageTables {
            top,
            memory,
            free: free.clone(),
            used: Ranges::new(),
            mapped: 0,
            waiting: 0,
            batch: heapless::Vec::new(),
        }
    }

    /// The top table's machine address, as cr3 holds it.
    pub fn top_machine_address(&self) -> Option<u64> {
        self.machine_address(self.top).ok()
    }

    /// Returns the entry that maps an address, if there is a table for it.
    pub fn entry_of(&self, address: u64) -> Option<u64> {
        self.entry(address, 1).map(|(_, entry)| entry)
    }

    /// The frames that became page tables.
    pub fn used(&self) -> Ranges {
        self.used.clone()
    }

    /// Finds tables that an earlier boot of the domain has made for all addresses below `end`: takes their frames out of
    /// the free ones, and returns the end of the memory that is mapped, of which there are `all` page frames.
    #[cfg(any(test, feature = "recover"))]
    pub fn find(&self, all: u64, end: u64, free: &mut Ranges) -> Result<u64, Unmapped> {
        for address in (0..end).step_by(LARGE_PAGE as usize) {
            for level in 1..=3 {
                let (place, _) = self
                    .entry(address, level)
                    .ok_or(Unmapped::Hole(address / PAGE))?;
                let frame = place / PAGE;
                subtract(free, frame..frame + 1).map_err(|_| Unmapped::NoTables)?;
            }
        }
        Ok(self.first_unmapped(all))
    }

    /// Maps page frames at their own addresses, from the first that is not mapped on, and returns the end of those that
    /// are mapped now. Xen's check of each entry is the largest cost of a boot, so most of a large memory is left with
    /// empty tables for [`populate`](Self::populate).
    pub fn map_memory(&mut self, all: u64) -> Result<u64, Unmapped> {
        let mut pfn = self.first_unmapped(all);
        self.mapped = pfn;
        self.waiting = pfn;
        // Enough for the tables of the rest, too.
        let now = AT_BOOT.max(all.saturating_sub(pfn) / ENTRIES * 2);
        let pages = (pfn + now).next_multiple_of(ENTRIES).min(all);
        // The builder's last table may have room left: it is in use and cannot be replaced.
        while pfn < pages && !pfn.is_multiple_of(ENTRIES) {
            let (place, _) = self.entry(pfn * PAGE, 1).ok_or(Unmapped::Hole(pfn))?;
            self.update(place, self.entry_for(pfn))?;
            pfn += 1;
            self.waiting = pfn;
        }
        while pfn < pages {
            let table = self.take_frame()?;
            let first = pfn;
            for slot in 0..ENTRIES {
                let frame = first + slot;
                let entry = if frame < pages {
                    self.entry_for(frame)
                } else {
                    0
                };
                // SAFETY: an own frame, mapped writable, that nothing uses.
                unsafe { self.memory.write(table * PAGE + slot * 8, entry) };
            }
            self.enter(table, first * PAGE, 1)?;
            pfn = first + ENTRIES;
            self.waiting = pfn.min(pages);
        }
        self.flush()?;
        self.reserve(pages * PAGE..all * PAGE)?;
        Ok(pages)
    }

    /// Maps page frames that have empty tables at their own addresses.
    pub fn populate(&mut self, frames: Range<u64>) -> Result<(), Unmapped> {
        for pfn in frames {
            let (place, _) = self.entry(pfn * PAGE, 1).ok_or(Unmapped::Hole(pfn))?;
            self.update(place, self.entry_for(pfn))?;
        }
        self.flush()
    }

    /// Empties the entries of page frames.
    pub fn unmap(&mut self, frames: Range<u64>) -> Result<(), Unmapped> {
        for pfn in frames {
            let (place, _) = self.entry(pfn * PAGE, 1).ok_or(Unmapped::Hole(pfn))?;
            self.update(place, 0)?;
        }
        self.flush()
    }

    /// Makes empty tables for `addresses`, so that mappings can be made there later.
    pub fn reserve(&mut self, addresses: Range<u64>) -> Result<(), Unmapped> {
        for address in addresses.step_by(LARGE_PAGE as usize) {
            let table = self.take_empty()?;
            self.enter(table, address, 1)?;
        }
        self.flush()
    }

    /// Maps each page of the image with only the rights that it needs, unmaps page 0 and the page below the stack, and
    /// makes everything else below `end` non-executable. All tables must have been entered before. Outside of the large
    /// pages with code, this is done by the entries of the second level, which costs one update for each 512 pages and
    /// also holds for pages that are mapped later. If `code` is given, that page stays executable throughout, because
    /// another vCPU may be executing it.
    pub fn protect(&mut self, image: &Image, end: u64, code: Option<u64>) -> Result<(), Unmapped> {
        for address in core::iter::once(0).chain(image.pages()) {
            let (place, old) = self
                .entry(address, 1)
                .ok_or(Unmapped::Hole(address / PAGE))?;
            let new = image.entry(address);
            let entry = if new & PRESENT == 0 {
                0
            } else {
                new - address + address_of(old)
            };
            self.update(place, entry)?;
        }
        if image.no_execute {
            let with_code = image.with_code();
            for address in with_code.clone().step_by(PAGE_SIZE) {
                if address != 0 && !image.all.contains(&address) {
                    self.forbid_execution(address, 1)?;
                }
            }
            let has_code =
                |first: u64| code.is_some_and(|code| (first..first + LARGE_PAGE).contains(&code));
            for address in (with_code.end..end).step_by(LARGE_PAGE as usize) {
                if !has_code(address) {
                    self.forbid_execution(address, 2)?;
                }
            }
            if let Some(code) = code {
                let first = code / LARGE_PAGE * LARGE_PAGE;
                for address in (first..first + LARGE_PAGE).step_by(PAGE_SIZE) {
                    if address != code {
                        self.forbid_execution(address, 1)?;
                    }
                }
            }
        }
        self.flush()
    }

    /// Makes all memory at the addresses of `room`, where another image goes, writable and executable, and the page at
    /// `code` executable, until [`protect`](Self::protect).
    #[cfg(any(test, feature = "recover"))]
    pub fn open(&mut self, room: Range<u64>, code: u64) -> Result<(), Unmapped> {
        self.populate(room.start / PAGE..room.end / PAGE)?;
        let first = room.start / LARGE_PAGE * LARGE_PAGE;
        for address in (first..room.end).step_by(LARGE_PAGE as usize) {
            self.allow_execution(address, 2)?;
        }
        self.allow_execution(code, 2)?;
        self.allow_execution(code, 1)?;
        self.flush()
    }

    /// Makes the large page of `code` non-executable.
    #[cfg(any(test, feature = "recover"))]
    pub fn forbid_code(&mut self, code: u64) -> Result<(), Unmapped> {
        self.forbid_execution(code, 2)?;
        self.flush()
    }

    /// Clears `NO_EXECUTE` in the entry of level `level` for an address.
    #[cfg(any(test, feature = "recover"))]
    fn allow_execution(&mut self, address: u64, level: u32) -> Result<(), Unmapped> {
        let entry = self.entry(address, level);
        let (place, entry) = entry.ok_or(Unmapped::Hole(address / PAGE))?;
        self.update(place, entry & !NO_EXECUTE)
    }

    /// Returns whether a table for the addresses below `end` lies at those of `room`.
    #[cfg(any(test, feature = "recover"))]
    pub fn has_table_in(&self, room: &Range<u64>, end: u64) -> bool {
        let place = |address, level| self.entry(address, level).map(|(place, _)| place);
        (0..end).step_by(LARGE_PAGE as usize).any(|address| {
            (1..=4).any(|level| place(address, level).is_some_and(|place| room.contains(&place)))
        })
    }

    /// Sets `NO_EXECUTE` in the entry of level `level` for an address, if that entry is present.
    fn forbid_execution(&mut self, address: u64, level: u32) -> Result<(), Unmapped> {
        match self.entry(address, level) {
            Some((place, entry)) if entry & PRESENT != 0 => self.update(place, entry | NO_EXECUTE),
            _ => Ok(()),
        }
    }

    /// Returns the first of the page frames up to `pages` that is not mapped, from the top table on: everything before
    /// is mapped.
    fn first_unmapped(&self, pages: u64) -> u64 {
        let mut pfn = self.top / PAGE;
        while pfn < pages && self.is_mapped(pfn * PAGE) {
            pfn += 1;
        }
        pfn
    }

    fn is_mapped(&self, address: u64) -> bool {
        self.entry(address, 1)
            .is_some_and(|(_, entry)| entry & PRESENT != 0)
    }

    /// The entry of level `level` for an address: its own address, and its value. `None` if a
    /// table above it is missing.
    fn entry(&self, address: u64, level: u32) -> Option<(u64, u64)> {
        let mut table = self.top;
        let mut at = 4;
        loop {
            let place = table + index(address, at) as u64 * 8;
            // SAFETY: all page tables are mapped, readable, at their own addresses.
            let entry = unsafe { self.memory.read(place) };
            if at == level {
                return Some((place, entry));
            }
            if entry & PRESENT == 0 {
                return None;
            }
            table = self.memory.page_frame(address_of(entry) / PAGE) * PAGE;
            at -= 1;
        }
    }

    /// Returns the machine address of a pseudo-physical address.
    fn machine_address(&self, address: u64) -> Result<u64, Unmapped> {
        let mfn = self
            .memory
            .machine_frame(address / PAGE)
            .ok_or(Unmapped::Hole(address / PAGE))?;
        Ok(mfn * PAGE + address % PAGE)
    }

    /// Takes the lowest free frame that is mapped.
    fn take_frame(&mut self) -> Result<u64, Unmapped> {
        if self.next_free().is_none() {
            // What is waiting to be entered maps some more.
            self.flush()?;
        }
        let index = self.next_free().ok_or(Unmapped::NoTables)?;
        let frame = self.free[index].start;
        self.free[index].start += 1;
        match self.used.last_mut() {
            Some(range) if range.end == frame => range.end += 1,
            _ => self
                .used
                .push(frame..frame + 1)
                .map_err(|_| Unmapped::NoTables)?,
        }
        Ok(frame)
    }

    fn next_free(&self) -> Option<usize> {
        self.free
            .iter()
            .position(|range| !range.is_empty() && range.start < self.mapped)
    }

    fn take_empty(&mut self) -> Result<u64, Unmapped> {
        let table = self.take_frame()?;
        for slot in 0..ENTRIES {
            // SAFETY: an own frame, mapped writable, that nothing uses.
            unsafe { self.memory.write(table * PAGE + slot * 8, 0) };
        }
        Ok(table)
    }

    /// Makes the filled frame `table` the table of level `level` for `address`.
    fn enter(&mut self, table: u64, address: u64, level: u32) -> Result<(), Unmapped> {
        let place = match self.entry(address, level + 1) {
            Some((place, _)) => place,
            None => {
                let above = self.take_empty()?;
                self.enter(above, address, level + 1)?;
                self.flush()?;
                self.entry(address, level + 1).ok_or(Unmapped::NoTables)?.0
            }
        };
        let machine = self.machine_address(table * PAGE)?;
        let (own, _) = self.entry(table * PAGE, 1).ok_or(Unmapped::NoTables)?;
        self.update(own, machine | PRESENT | ACCESSED)?;
        self.update(
            place,
            machine | PRESENT | WRITABLE | USER | ACCESSED | DIRTY,
        )
    }

    /// The entry that maps a frame of memory; nothing if there is none behind it.
    fn entry_for(&self, pfn: u64) -> u64 {
        self.memory.machine_frame(pfn).map_or(0, |mfn| {
            (mfn * PAGE) | PRESENT | WRITABLE | ACCESSED | DIRTY
        })
    }

    /// Adds one update to the batch: the entry at `place` gets a new value.
    fn update(&mut self, place: u64, entry: u64) -> Result<(), Unmapped> {
        if self.batch.is_full() {
            self.flush()?;
        }
        let ptr = self.machine_address(place)? | MMU_NORMAL_PT_UPDATE;
        self.batch
            .push(MmuUpdate { ptr, val: entry })
            .map_err(|_| Unmapped::NoTables)
    }

    /// Sends the updates that are waiting to Xen.
    fn flush(&mut self) -> Result<(), Unmapped> {
        if self.batch.is_empty() {
            return Ok(());
        }
        // SAFETY: the updates map free or new frames only, and take rights from frames that are
        // to be page tables, or that nothing uses.
        unsafe { self.memory.update(&mut self.batch) }.map_err(Unmapped::Refused)?;
        self.batch.clear();
        self.mapped = self.waiting;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
