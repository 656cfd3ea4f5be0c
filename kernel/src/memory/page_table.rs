//! Entries of x86-64 page tables.

use bulkhead_xen::PAGE_SIZE;
use core::ops::Range;

/// The bytes that an entry of the second level can map.
pub const LARGE_PAGE: u64 = 2 << 20;
/// The bytes that an entry of the third level covers.
pub const GIB: u64 = 1 << 30;

/// The page is present.
pub const PRESENT: u64 = 1;
/// The page is writable.
pub const WRITABLE: u64 = 1 << 1;
/// The page is accessible outside of ring 0.
pub const USER: u64 = 1 << 2;
/// The page is cached write-through.
const WRITE_THROUGH: u64 = 1 << 3;
/// The page is not cached.
const UNCACHED: u64 = 1 << 4;
/// The page was accessed.
pub const ACCESSED: u64 = 1 << 5;
/// The page was written to.
pub const DIRTY: u64 = 1 << 6;
/// The entry maps a large page.
const LARGE: u64 = 1 << 7;
/// The page is not executable; in an entry for a table, no page that the table maps is.
pub const NO_EXECUTE: u64 = 1 << 63;

/// Returns the address that an entry names.
pub fn address_of(entry: u64) -> u64 {
    entry & 0x000f_ffff_ffff_f000
}

/// Returns the index in a table of `level` (1 to 4) of the entry for `address`.
pub fn index(address: u64, level: u32) -> usize {
    (address >> (12 + 9 * (level - 1))) as usize % 512
}

/// Returns an entry for another table.
pub fn table(address: u64) -> u64 {
    address | PRESENT | WRITABLE
}

/// Returns an entry for 2 MiB of data.
pub fn large(address: u64, no_execute: bool) -> u64 {
    address
        | PRESENT
        | WRITABLE
        | ACCESSED
        | DIRTY
        | LARGE
        | if no_execute { NO_EXECUTE } else { 0 }
}

/// Returns an entry for a page of a device's registers. Execution is forbidden by the table above, as for all that is
/// mapped there.
pub fn registers(address: u64) -> u64 {
    address | PRESENT | WRITABLE | ACCESSED | DIRTY | WRITE_THROUGH | UNCACHED
}

/// Returns an entry for a page that is read-only.
pub fn constant(address: u64, no_execute: bool) -> u64 {
    address | PRESENT | ACCESSED | if no_execute { NO_EXECUTE } else { 0 }
}

/// Returns the entries of small pages that map the same as the entry of a large page; `None` if it is the entry of a
/// table.
pub fn split(entry: u64) -> Option<impl Iterator<Item = u64>> {
    let small = entry & !LARGE;
    let parts = (0..LARGE_PAGE).step_by(PAGE_SIZE);
    (entry & LARGE != 0).then(|| parts.map(move |offset| small + offset))
}

/// The number of the ranges of pages that only boot writes.
pub const TABLES: usize = if cfg!(feature = "recover") { 4 } else { 3 };

/// The parts of the image and their addresses.
#[derive(Debug)]
pub struct Image {
    /// Code: executed, never written.
    pub code: Range<u64>,
    /// Constants: neither executed nor written.
    pub constants: Range<u64>,
    /// The tables that the processor itself reads: written at boot, and never again.
    pub tables: [Range<u64>; TABLES],
    /// The page below the stack, which is not mapped.
    pub guard: Range<u64>,
    /// The whole image: everything that is none of the above is data.
    pub all: Range<u64>,
    /// True if the processor can forbid execution.
    pub no_execute: bool,
}

impl Image {
    /// Returns the address of each page.
    pub fn pages(&self) -> impl Iterator<Item = u64> + use<> {
        self.all.clone().step_by(PAGE_SIZE)
    }

    /// Returns the addresses of the large pages that have code, from address 0 on. Each small page in them is mapped as
    /// its part of the image requires; nothing after them is executable.
    pub fn with_code(&self) -> Range<u64> {
        0..self.code.end.next_multiple_of(LARGE_PAGE)
    }

    /// Returns the number of large pages from address 0 on that have a part of the image.
    pub fn large_pages(&self) -> usize {
        self.all.end.div_ceil(LARGE_PAGE) as usize
    }

    /// Returns the entry for one small page of the domain's memory, mapped at its own address.
    pub fn entry(&self, page: u64) -> u64 {
        if page < PAGE_SIZE as u64 || self.guard.contains(&page) {
            return 0;
        }
        let is_table = || self.tables.iter().any(|table| table.contains(&page));
        if self.code.contains(&page) {
            constant(page, false)
        } else if self.constants.contains(&page) || is_table() {
            constant(page, self.no_execute)
        } else {
            constant(page, self.no_execute) | WRITABLE | DIRTY
        }
    }
}

/// Returns two ranges of tables in the form of [`Image::tables`].
#[cfg(test)]
pub(super) fn two_tables(one: Range<u64>, other: Range<u64>) -> [Range<u64>; TABLES] {
    let mut tables = [const { 0..0 }; TABLES];
    (tables[0], tables[1]) = (one, other);
    tables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_goes_through_four_tables() {
        let address = (3 << 39) | (5 << 30) | (7 << 21) | (11 << 12) | 0x123;
        assert_eq!(
            [4, 3, 2, 1].map(|level| index(address, level)),
            [3, 5, 7, 11]
        );
    }

    #[test]
    fn entries_name_their_address() {
        assert_eq!(address_of(table(0x1234_5000)), 0x1234_5000);
        assert_eq!(address_of(large(0x40_0000, true)), 0x40_0000);
        assert_eq!(large(0x40_0000, true) >> 63, 1);
        assert_eq!(large(0x40_0000, false) & 0xfff, 0xe3);
        assert_eq!(registers(0xfebe_4000), 0xfebe_407b);
    }

    #[test]
    fn a_large_page_is_as_many_small_ones() {
        let entry = large(0x4000_0000, true);
        let parts: Vec<u64> = split(entry).unwrap().collect();
        assert_eq!(parts.len(), 512);
        for (place, part) in (0..).zip(parts) {
            assert_eq!(address_of(part), 0x4000_0000 + place * 4096);
            assert_eq!(part & 0xfff | part & NO_EXECUTE, 0x63 | NO_EXECUTE);
        }
        assert!(split(table(0x1000)).is_none());
    }

    #[test]
    fn each_part_of_the_image_may_be_used_for_what_it_is() {
        let image = Image {
            code: 0x10_0000..0x11_0000,
            constants: 0x11_0000..0x11_4000,
            tables: two_tables(0x11_a000..0x11_b000, 0x11_c000..0x11_e000),
            guard: 0x11_5000..0x11_6000,
            all: 0x10_0000..0x12_0000,
            no_execute: true,
        };
        let rights = |page| {
            let entry = image.entry(page);
            assert!(entry == 0 || address_of(entry) == page);
            (
                entry & PRESENT != 0,
                entry & WRITABLE != 0,
                entry & NO_EXECUTE == 0,
            )
        };
        assert_eq!(image.pages().count(), 0x20);
        assert_eq!((image.with_code(), image.large_pages()), (0..LARGE_PAGE, 1));
        assert_eq!(rights(0), (false, false, true), "null");
        assert_eq!(rights(0x10_0000), (true, false, true), "code");
        assert_eq!(rights(0x10_f000), (true, false, true), "code");
        assert_eq!(rights(0x11_3000), (true, false, false), "constants");
        assert_eq!(rights(0x11_4000), (true, true, false), "data");
        assert_eq!(rights(0x11_a000), (true, false, false), "a table");
        assert_eq!(rights(0x11_b000), (true, true, false), "data");
        assert_eq!(rights(0x11_d000), (true, false, false), "a table");
        assert_eq!(rights(0x11_5000), (false, false, true), "guard");
        assert_eq!(rights(0x11_6000), (true, true, false), "stack");
        assert_eq!(rights(0x1000), (true, true, false), "memory");
    }

    #[test]
    fn an_image_may_end_behind_the_first_large_page() {
        let mut image = Image {
            code: 0x10_0000..0x1e_0000,
            constants: 0x1e_0000..0x1f_0000,
            tables: two_tables(0x20_1000..0x20_2000, 0..0),
            guard: 0x20_3000..0x20_4000,
            all: 0x10_0000..0x24_0000,
            no_execute: true,
        };
        assert_eq!((image.with_code(), image.large_pages()), (0..LARGE_PAGE, 2));
        assert_eq!(image.entry(0x20_1000) & WRITABLE, 0);
        assert_eq!(image.entry(0x20_3000), 0);
        assert_ne!(image.entry(0x20_4000) & WRITABLE, 0);
        image.code.end = LARGE_PAGE;
        image.all.end = 2 * LARGE_PAGE;
        assert_eq!((image.with_code(), image.large_pages()), (0..LARGE_PAGE, 2));
        image.code.end += PAGE_SIZE as u64;
        assert_eq!(image.with_code(), 0..2 * LARGE_PAGE);
    }
}
