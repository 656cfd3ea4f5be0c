//! PV page tables under a Xen that checks them as the real one does.

use super::*;
use crate::memory::page_table::two_tables;
use std::collections::HashMap;

/// One entry of a table.
const SLOT: u64 = 8;

/// The memory of a domain, and the types that Xen has given its frames.
#[derive(Debug)]
struct Domain {
    words: Vec<u64>,
    /// Page tables and their levels.
    levels: HashMap<u64, u32>,
    top: u64,
    pages: u64,
    hypercalls: usize,
    updates: usize,
    /// A page frame that has no memory.
    hole: Option<u64>,
    /// Code that another vCPU runs meanwhile.
    runs: Option<u64>,
}

/// Machine frames run the other way, from here down.
const LAST_MFN: u64 = 0x10_0000;

fn mfn_of(pfn: u64) -> u64 {
    LAST_MFN - pfn
}

impl Domain {
    /// Makes a domain as the builder leaves it: `mapped` frames at their own addresses, with the page tables,
    /// read-only, from `top` on.
    fn new(pages: u64, top: u64, mapped: u64) -> Domain {
        let mut domain = Domain {
            words: vec![0; (pages * ENTRIES) as usize],
            levels: HashMap::new(),
            top: top * PAGE,
            pages,
            hypercalls: 0,
            updates: 0,
            hole: None,
            runs: None,
        };
        // What was in the memory before: enough of it for all tables of these tests.
        domain.words[..(pages.min(4096) * ENTRIES) as usize].fill(0xdead);
        let tables = mapped.div_ceil(ENTRIES);
        let frames = [(top, 4), (top + 1, 3), (top + 2, 2)];
        let frames = frames
            .into_iter()
            .chain((0..tables).map(|n| (top + 3 + n, 1)));
        for (frame, level) in frames {
            domain.levels.insert(frame, level);
            domain.words[(frame * ENTRIES) as usize..][..512].fill(0);
        }
        let entry = |frame: u64, rights: u64| (mfn_of(frame) * PAGE) | PRESENT | rights;
        let mut put = |frame: u64, slot: u64, value| {
            domain.words[(frame * ENTRIES + slot) as usize] = value;
        };
        put(top, 0, entry(top + 1, WRITABLE));
        put(top + 1, 0, entry(top + 2, WRITABLE));
        for n in 0..tables {
            put(top + 2, n, entry(top + 3 + n, WRITABLE));
        }
        for pfn in 0..mapped {
            let is_table = (top..top + 3 + tables).contains(&pfn);
            let rights = if is_table { 0 } else { WRITABLE };
            put(top + 3 + pfn / ENTRIES, pfn % ENTRIES, entry(pfn, rights));
        }
        domain
    }

    fn builder_tables(&self) -> u64 {
        self.levels.len() as u64
    }

    /// Translates an address as the processor does: a right is granted if no table on the way forbids it.
    fn walk(&self, address: u64) -> Option<u64> {
        let mut table = self.top / PAGE;
        let mut forbidden = 0;
        for level in (1..=4).rev() {
            assert_eq!(
                self.levels.get(&table),
                Some(&level),
                "a frame in use as a table is one"
            );
            let entry = self.words[(table * ENTRIES) as usize + index(address, level)];
            if entry & PRESENT == 0 {
                return None;
            }
            forbidden |= entry & NO_EXECUTE;
            if level == 1 {
                return Some(entry | forbidden);
            }
            table = self.page_frame(address_of(entry) / PAGE);
        }
        None
    }

    fn executable(&self, address: u64) -> bool {
        self.walk(address)
            .is_some_and(|entry| entry & NO_EXECUTE == 0)
    }

    fn mapped_writable(&self, pfn: u64) -> bool {
        // All mappings are made at the frame's own address, or this test would not find them.
        self.walk(pfn * PAGE)
            .is_some_and(|entry| entry & WRITABLE != 0)
    }

    /// Xen's check of a table that is to have a level: everything it names must be allowed there.
    fn validate(&mut self, frame: u64, level: u32) -> Result<(), Errno> {
        match self.levels.get(&frame) {
            Some(known) if *known == level => return Ok(()),
            Some(_) => return Err(Errno::BUSY),
            None => {}
        }
        if self.mapped_writable(frame) {
            return Err(Errno::BUSY);
        }
        self.levels.insert(frame, level);
        for slot in 0..ENTRIES {
            let entry = self.words[(frame * ENTRIES + slot) as usize];
            self.allow(entry, level)?;
        }
        Ok(())
    }

    fn allow(&mut self, entry: u64, level: u32) -> Result<(), Errno> {
        if entry & PRESENT == 0 {
            return if entry == 0 {
                Ok(())
            } else {
                Err(Errno::INVAL)
            };
        }
        let mfn = address_of(entry) / PAGE;
        if mfn > LAST_MFN || LAST_MFN - mfn >= self.pages {
            return Err(Errno::INVAL);
        }
        let frame = self.page_frame(mfn);
        if level > 1 {
            return self.validate(frame, level - 1);
        }
        if entry & WRITABLE != 0 && self.levels.contains_key(&frame) {
            return Err(Errno::INVAL);
        }
        Ok(())
    }
}

// SAFETY: checked by the test itself: whatever is not allowed panics or is refused.
unsafe impl PvMemory for Domain {
    unsafe fn read(&self, address: u64) -> u64 {
        assert!(
            self.walk(address).is_some(),
            "read of {address:#x}, which is not mapped"
        );
        self.words[(address / SLOT) as usize]
    }

    unsafe fn write(&mut self, address: u64, value: u64) {
        assert!(
            self.mapped_writable(address / PAGE),
            "write to {address:#x}"
        );
        self.words[(address / SLOT) as usize] = value;
    }

    fn machine_frame(&self, pfn: u64) -> Option<u64> {
        (pfn < self.pages && self.hole != Some(pfn)).then_some(mfn_of(pfn))
    }

    fn page_frame(&self, mfn: u64) -> u64 {
        LAST_MFN - mfn
    }

    unsafe fn update(&mut self, batch: &mut [MmuUpdate]) -> Result<(), Errno> {
        self.hypercalls += 1;
        for update in batch {
            self.updates += 1;
            assert_eq!(update.ptr % SLOT, MMU_NORMAL_PT_UPDATE);
            let frame = self.page_frame(update.ptr / PAGE);
            let level = *self.levels.get(&frame).ok_or(Errno::INVAL)?;
            self.allow(update.val, level)?;
            self.words[(frame * ENTRIES + update.ptr % PAGE / SLOT) as usize] = update.val;
            assert!(self.runs.is_none_or(|code| self.executable(code)));
        }
        Ok(())
    }
}

/// Frames that are free when the builder is done: below 1 MiB, and behind the tables.
fn free_frames(domain: &Domain) -> Ranges {
    let mut free = Ranges::new();
    free.push(1..domain.pages).unwrap();
    let end = domain.top / PAGE + domain.builder_tables() + 1;
    subtract(&mut free, 0x100..end).unwrap();
    free
}

fn tables(domain: Domain) -> PageTables<Domain> {
    let free = free_frames(&domain);
    // SAFETY: so the domain was built.
    unsafe { PageTables::new(domain.top, domain, &free) }
}

/// Every frame up to `mapped` is mapped where it belongs, and can be written unless it is a table.
fn assert_mapped(tables: &PageTables<Domain>, mapped: u64) {
    for pfn in 0..mapped {
        let entry = tables
            .memory
            .walk(pfn * PAGE)
            .unwrap_or_else(|| panic!("{pfn:#x}"));
        assert_eq!(address_of(entry), mfn_of(pfn) * PAGE);
        let is_table = tables.memory.levels.contains_key(&pfn);
        assert_eq!(entry & WRITABLE == 0, is_table, "{pfn:#x}");
    }
}

/// Every frame up to `mapped` that is none of the image's is mapped as it was.
fn assert_mapped_but_the_image(tables: &PageTables<Domain>, mapped: u64) {
    for pfn in (1..0x100).chain(0x120..mapped) {
        let entry = tables.memory.walk(pfn * PAGE).expect("mapped");
        assert_eq!(address_of(entry), mfn_of(pfn) * PAGE);
        let is_table = tables.memory.levels.contains_key(&pfn);
        assert_eq!(entry & WRITABLE == 0, is_table, "{pfn:#x}");
    }
}

#[test]
fn a_small_memory_is_mapped_as_a_whole() {
    // memory=16: the builder maps 4 MiB.
    let mut tables = tables(Domain::new(4096, 0x140, 1024));
    let before = tables.memory.builder_tables();
    assert_eq!(tables.map_memory(4096), Ok(4096));
    assert_mapped(&tables, 4096);
    let used: u64 = tables
        .used()
        .iter()
        .map(|range| range.end - range.start)
        .sum();
    assert_eq!(used, 6, "one for each 2 MiB that were not mapped");
    assert_eq!(tables.memory.levels.len() as u64, before + used);
    assert_eq!(tables.memory.hypercalls, 1);
}

#[test]
fn of_a_large_memory_the_rest_has_empty_tables() {
    // 1.5 GiB, so that a table of the second level is added, too.
    let all = 3 << 17;
    let mut tables = tables(Domain::new(all, 0x400, 2048));
    let mapped = tables.map_memory(all).unwrap();
    assert!(mapped < all / 4 && mapped >= 2048 + AT_BOOT, "{mapped}");
    assert_mapped(&tables, mapped);
    assert_eq!(tables.memory.walk(mapped * PAGE), None);
    let updates = tables.memory.updates;
    tables.populate(all - 700..all - 100).unwrap();
    assert_eq!(tables.memory.updates - updates, 600);
    for pfn in all - 1000..all {
        let there = (all - 700..all - 100).contains(&pfn);
        assert_eq!(tables.memory.mapped_writable(pfn), there, "{pfn:#x}");
    }
    tables.unmap(all - 700..all - 500).unwrap();
    assert!(!tables.memory.mapped_writable(all - 501));
    assert!(tables.memory.mapped_writable(all - 500));
}

#[test]
fn a_table_that_the_builder_began_is_continued() {
    let mut tables = tables(Domain::new(3000, 0x140, 1300));
    assert_eq!(tables.map_memory(3000), Ok(3000));
    assert_mapped(&tables, 3000);
    assert_eq!(tables.memory.walk(3000 * PAGE), None);
}

#[test]
fn address_space_without_memory_gets_empty_tables() {
    let mut tables = tables(Domain::new(4096, 0x140, 1024));
    tables.map_memory(4096).unwrap();
    // Across a boundary of the third level.
    let space = (1 << 39) - (4 << 20)..(1 << 39) + (4 << 20);
    tables.reserve(space.clone()).unwrap();
    for address in space.step_by(PAGE_SIZE) {
        let (place, entry) = tables.entry(address, 1).expect("a table");
        assert_eq!(entry, 0);
        assert!(tables.memory.levels.contains_key(&(place / PAGE)));
    }
    assert_mapped(&tables, 4096);
}

#[test]
fn the_next_boot_finds_what_the_first_has_made() {
    let (all, end) = (3 << 17, 2 << 30);
    let mut first = tables(Domain::new(all, 0x400, 2048));
    let mapped = first.map_memory(all).unwrap();
    first.reserve(all * PAGE..end).unwrap();
    let later = mapped..mapped + 3000;
    first.populate(later.clone()).unwrap();
    let mut left = free_frames(&first.memory);
    for frames in first.used() {
        subtract(&mut left, frames).unwrap();
    }

    let updates = first.memory.updates;
    let next = tables(first.memory);
    let mut free = free_frames(&next.memory);
    assert_eq!(next.find(all, end, &mut free), Ok(later.end));
    assert_eq!(free, left);
    let frames = free.iter().cloned().flatten();
    assert!(
        frames
            .into_iter()
            .all(|pfn| !next.memory.levels.contains_key(&pfn))
    );
    assert_eq!(next.memory.updates, updates, "it changes nothing");
    // What has no table is found out.
    assert!(next.find(all, end + LARGE_PAGE, &mut free).is_err());
}

#[test]
fn a_page_frame_without_memory_is_left_out() {
    let mut domain = Domain::new(4096, 0x140, 1024);
    domain.hole = Some(2000);
    let mut tables = tables(domain);
    assert_eq!(tables.map_memory(4096), Ok(4096));
    assert_eq!(tables.memory.walk(2000 * PAGE), None);
    assert!(tables.memory.mapped_writable(2001));
}

#[test]
fn too_little_mapped_memory_is_an_error() {
    let mut tables = tables(Domain::new(4096, 0x140, 1024));
    tables.free.clear();
    assert_eq!(tables.map_memory(4096), Err(Unmapped::NoTables));
}

#[test]
fn the_image_is_protected_and_null_is_gone() {
    let mut tables = tables(Domain::new(4096, 0x140, 1024));
    tables.map_memory(4096).unwrap();
    let image = Image {
        code: 0x10_0000..0x11_0000,
        constants: 0x11_0000..0x11_2000,
        tables: two_tables(0x11_5000..0x11_6000, 0..0),
        guard: 0x11_3000..0x11_4000,
        all: 0x10_0000..0x12_0000,
        no_execute: true,
    };
    let end = 4096 * PAGE;
    tables.protect(&image, end, None).unwrap();
    let writable = |address: u64| tables.memory.mapped_writable(address / PAGE);
    assert_eq!(tables.memory.walk(0), None);
    assert_eq!(tables.memory.walk(0x11_3000), None);
    assert!(!writable(0x10_0000) && !writable(0x11_1000) && !writable(0x11_5000));
    assert!(writable(0x11_2000) && writable(0x11_4000) && writable(0x12_0000));
    for page in image.pages().filter(|page| !image.guard.contains(page)) {
        let entry = tables.memory.walk(page).unwrap();
        assert_eq!(address_of(entry), mfn_of(page / PAGE) * PAGE);
    }
}

/// An image whose code is 16 pages.
fn image(no_execute: bool) -> Image {
    Image {
        code: 0x10_0000..0x11_0000,
        constants: 0x11_0000..0x11_2000,
        tables: two_tables(0..0, 0..0),
        guard: 0x11_3000..0x11_4000,
        all: 0x10_0000..0x12_0000,
        no_execute,
    }
}

#[test]
fn only_code_can_be_executed() {
    // 1.5 GiB: what the builder has mapped, what we map at boot, what is populated later.
    let all = 3 << 17;
    let mut tables = tables(Domain::new(all, 0x400, 2048));
    let mapped = tables.map_memory(all).unwrap();
    let space = all * PAGE..all * PAGE + (64 << 20);
    tables.reserve(space.clone()).unwrap();
    let before = tables.memory.updates;
    tables.protect(&image(true), space.end, None).unwrap();
    let updates = tables.memory.updates - before;
    assert!(updates < 1400, "{updates} updates");
    tables.populate(all - 600..all).unwrap();
    for pfn in (0..mapped).chain(all - 600..all) {
        let code = (0x100..0x110).contains(&pfn);
        assert_eq!(tables.memory.executable(pfn * PAGE), code, "{pfn:#x}");
    }
    assert_mapped_but_the_image(&tables, mapped);
    // What Xen maps for us later, such as other domains' pages, is data as well.
    for address in space.step_by(LARGE_PAGE as usize) {
        let (place, _) = tables.entry(address, 1).unwrap();
        let entry = (mfn_of(0x200) * PAGE) | PRESENT;
        tables.update(place, entry).unwrap();
        tables.flush().unwrap();
        assert!(!tables.memory.executable(address), "{address:#x}");
    }
}

#[test]
fn an_image_that_ends_behind_the_first_large_page_is_protected_too() {
    let mut tables = tables(Domain::new(4096, 0x400, 2048));
    tables.map_memory(4096).unwrap();
    let image = Image {
        code: 0x10_0000..0x20_1000,
        constants: 0x20_1000..0x20_2000,
        tables: two_tables(0x20_5000..0x20_6000, 0..0),
        guard: 0x20_3000..0x20_4000,
        all: 0x10_0000..0x24_0000,
        no_execute: true,
    };
    tables.protect(&image, 4096 * PAGE, None).unwrap();
    assert_eq!(tables.memory.walk(0x20_3000), None);
    for pfn in (1..4096).filter(|pfn| *pfn != 0x203) {
        let code = (0x100..0x201).contains(&pfn);
        assert_eq!(tables.memory.executable(pfn * PAGE), code, "{pfn:#x}");
        let constant = code || pfn == 0x201 || pfn == 0x205;
        let is_table = tables.memory.levels.contains_key(&pfn);
        let writable = tables.memory.mapped_writable(pfn);
        assert_eq!(writable, !constant && !is_table, "{pfn:#x}");
    }
}

#[test]
fn a_processor_that_cannot_forbid_execution_is_not_asked_to() {
    let mut tables = tables(Domain::new(4096, 0x140, 1024));
    tables.map_memory(4096).unwrap();
    tables.protect(&image(false), 4096 * PAGE, None).unwrap();
    let entries = tables.memory.words.iter();
    assert!(entries.clone().any(|word| word & PRESENT != 0));
    assert!(entries.clone().all(|word| word & NO_EXECUTE == 0));
}

#[test]
fn what_xen_refuses_is_reported() {
    let mut tables = tables(Domain::new(4096, 0x140, 1024));
    // A frame that is mapped writable cannot become a table.
    let top = tables.top;
    let update = tables.update(top + 8, (mfn_of(0x200) * PAGE) | PRESENT);
    assert_eq!(
        update.and_then(|()| tables.flush()),
        Err(Unmapped::Refused(Errno::BUSY))
    );
}

/// The room for images in these tests, and a page behind it.
const ROOM: Range<u64> = 0x10_0000..0x40_0000;
const BEHIND: u64 = 0x123_4000;

#[test]
fn another_image_goes_where_one_was() {
    // A smaller one.
    let mut image = image(true);
    image.code = 0x10_0000..0x20_2000;
    image.constants = 0x20_2000..0x20_3000;
    image.guard = 0x20_4000..0x20_5000;
    image.all = 0x10_0000..0x21_0000;
    let end = 8192 * PAGE;
    let mut first = tables(Domain::new(8192, 0x400, 2048));
    first.map_memory(8192).unwrap();
    first.protect(&image, end, None).unwrap();
    assert!(!first.memory.mapped_writable(0x100) && !first.memory.executable(0x30_0000));

    first.open(ROOM, BEHIND).unwrap();
    for address in ROOM.step_by(PAGE_SIZE) {
        let (there, pfn) = (&first.memory, address / PAGE);
        assert!(
            there.mapped_writable(pfn) && there.executable(address),
            "{address:#x}"
        );
    }
    assert!(first.memory.executable(BEHIND));

    image.code = 0x10_0000..0x11_0000;
    image.constants = 0x11_0000..0x11_1000;
    image.guard = 0x11_4000..0x11_5000;
    image.all = 0x10_0000..0x18_0000;
    let mut next = tables(first.memory);
    let mut free = free_frames(&next.memory);
    next.find(8192, end, &mut free).unwrap();
    next.protect(&image, end, None).unwrap();
    assert_eq!(next.memory.walk(0x11_4000), None);
    for pfn in (1..8192).filter(|pfn| *pfn != 0x114) {
        let code = (0x100..0x110).contains(&pfn);
        assert_eq!(next.memory.executable(pfn * PAGE), code, "{pfn:#x}");
        let is_table = next.memory.levels.contains_key(&pfn);
        let constant = code || pfn == 0x110 || is_table;
        assert_eq!(next.memory.mapped_writable(pfn), !constant, "{pfn:#x}");
    }
}

#[test]
fn code_of_another_vcpu_can_be_executed_throughout() {
    let end = 8192 * PAGE;
    let mut tables = tables(Domain::new(8192, 0x400, 2048));
    tables.map_memory(8192).unwrap();
    tables.protect(&image(true), end, None).unwrap();
    tables.open(ROOM, BEHIND).unwrap();
    tables.memory.runs = Some(BEHIND);
    tables.protect(&image(true), end, Some(BEHIND)).unwrap();
    assert_mapped_but_the_image(&tables, 8192);
    let executable = |tables: &PageTables<Domain>| {
        let pages = (1..8192).map(|pfn| pfn * PAGE);
        let beside = pages.filter(|page| !(0x10_0000..0x11_0000).contains(page));
        let there = beside.filter(|page| tables.memory.executable(*page));
        there.collect::<Vec<_>>()
    };
    assert_eq!(executable(&tables), [BEHIND]);
    tables.memory.runs = None;
    tables.forbid_code(BEHIND).unwrap();
    assert_eq!(executable(&tables), []);
    // It was written to and executed; from here on it is memory as any.
    assert_mapped_but_the_image(&tables, 8192);
}

#[test]
fn tables_where_images_go_are_seen() {
    let end = 2 << 30;
    let made = |free: Ranges| {
        let domain = Domain::new(4096, 0x400, 2048);
        // SAFETY: so the domain was built.
        let mut tables = unsafe { PageTables::new(domain.top, domain, &free) };
        tables.map_memory(4096).unwrap();
        tables.reserve(4096 * PAGE..end).unwrap();
        tables.has_table_in(&ROOM, end)
    };
    let mut free = Ranges::new();
    free.push(1..4096).unwrap();
    let taken = Domain::new(4096, 0x400, 2048);
    subtract(
        &mut free,
        0x400..taken.top / PAGE + taken.builder_tables() + 1,
    )
    .unwrap();
    assert!(made(free.clone()), "the memory below it is not enough");
    subtract(&mut free, ROOM.start / PAGE..ROOM.end / PAGE).unwrap();
    assert!(!made(free));
}
