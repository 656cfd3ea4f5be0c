//! Layout of memory: the ranges of the domain's memory that are taken at boot, those that are left free, and
//! the address space above the memory, which is used for pages of other domains.

use bulkhead_xen::PAGE_SIZE;
use core::ops::Range;

/// Ranges of page frames.
pub type Ranges = heapless::Vec<Range<u64>, 64>;

const LARGE_PAGE: u64 = 2 << 20;
const GIB: u64 = 1 << 30;

/// The reason why a memory map cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooFragmented;

/// Takes `hole` out of `ranges`.
pub fn subtract(ranges: &mut Ranges, hole: Range<u64>) -> Result<(), TooFragmented> {
    let mut left = Ranges::new();
    for range in ranges.iter() {
        let below = range.start..range.end.min(hole.start);
        let above = range.start.max(hole.end)..range.end;
        for part in [below, above] {
            // An empty hole, or one beside the range, leaves the range as one of the parts.
            if !part.is_empty() && left.last() != Some(&part) {
                left.push(part).map_err(|_| TooFragmented)?;
            }
        }
    }
    *ranges = left;
    Ok(())
}

/// Takes the last `pages` frames of `ranges` away, or as many as there are, and returns them.
pub fn take_last(ranges: &mut Ranges, mut pages: u64) -> Result<Ranges, TooFragmented> {
    let mut taken = Ranges::new();
    while pages > 0 {
        let Some(last) = ranges.iter().max_by_key(|range| range.end).cloned() else {
            break;
        };
        let part = last.start.max(last.end.saturating_sub(pages))..last.end;
        pages -= part.end - part.start;
        subtract(ranges, part.clone())?;
        taken.push(part).map_err(|_| TooFragmented)?;
    }
    Ok(taken)
}

/// Returns the number of pages of the memory map that do not exist, given the number that the domain has
/// according to Xen.
///
/// If `maxmem=` is more than `memory=`, the memory map of a PVH domain shows all memory that it may ever have, and Xen
/// puts a page behind an address on the first access, until the domain uses as many pages as it has: one more access
/// ends the domain. Xen also counts pages that are not in the map: its special pages, the ACPI tables.
pub fn not_there(map: u64, reservation: u64) -> u64 {
    /// A number of pages that is larger than that of Xen's builder beside the map (`NR_SPECIAL_PAGES` in libxenguest is
    /// 8).
    const BESIDE_THE_MAP: u64 = 64;
    match map.saturating_sub(reservation) {
        0 => 0,
        missing => (missing + BESIDE_THE_MAP).min(map),
    }
}

/// Returns the frames that `bytes` from `start` touch.
pub fn frames_of(start: u64, bytes: u64) -> Range<u64> {
    let page = PAGE_SIZE as u64;
    start / page..start.saturating_add(bytes).div_ceil(page)
}

/// The address space above the domain's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressSpace {
    /// The address for pages that Xen shares with this domain: the shared info page, the grant table.
    pub special: u64,
    /// The largest number of those pages.
    pub special_pages: u64,
    /// The address for registers of devices that the domain was given (PV only).
    pub devices: u64,
    /// The largest number of their pages.
    pub device_pages: u64,
    /// The address for other domains' pages.
    pub foreign: u64,
    /// The largest number of those pages.
    pub foreign_pages: u64,
}

impl AddressSpace {
    /// Lays out the address space of a domain with `pages` of memory that ends at address `end`.
    ///
    /// There is room for twice as many foreign pages as the domain has memory, but for at least
    /// 128 MiB and at most 1 GiB of them: on PV, each 2 MiB of it costs a page table. On PVH
    /// (`below_4g_taken`), the space up to 4 GiB holds Xen's special pages and the ACPI tables.
    pub fn above(end: u64, pages: u64, below_4g_taken: bool) -> AddressSpace {
        let special = if below_4g_taken {
            end.next_multiple_of(GIB).max(4 * GIB)
        } else {
            end.next_multiple_of(LARGE_PAGE)
        };
        let per_table = LARGE_PAGE / PAGE_SIZE as u64;
        // Both share a page table. Special pages are the shared info page and 64 of the grant table.
        let special_pages = per_table / 4;
        AddressSpace {
            special,
            special_pages,
            devices: special + special_pages * PAGE_SIZE as u64,
            device_pages: per_table - special_pages,
            foreign: special + LARGE_PAGE,
            foreign_pages: (pages * 2)
                .clamp(32 << 10, 256 << 10)
                .next_multiple_of(per_table),
        }
    }

    /// Returns the address after it.
    pub fn end(&self) -> u64 {
        self.foreign + self.foreign_pages * PAGE_SIZE as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(list: &[Range<u64>]) -> Ranges {
        Ranges::from_slice(list).unwrap()
    }

    #[test]
    fn holes_split_trim_and_swallow() {
        let mut free = ranges(&[0..100, 200..300]);
        subtract(&mut free, 40..50).unwrap();
        assert_eq!(free, ranges(&[0..40, 50..100, 200..300]));
        subtract(&mut free, 90..210).unwrap();
        assert_eq!(free, ranges(&[0..40, 50..90, 210..300]));
        subtract(&mut free, 45..95).unwrap();
        assert_eq!(free, ranges(&[0..40, 210..300]));
        subtract(&mut free, 300..400).unwrap();
        subtract(&mut free, 100..100).unwrap();
        subtract(&mut free, 20..20).unwrap();
        assert_eq!(free.iter().map(|r| r.end - r.start).sum::<u64>(), 130);
    }

    #[test]
    fn too_many_pieces_are_an_error() {
        let mut free = Ranges::new();
        free.push(0..1000).unwrap();
        let results: Vec<_> = (1..100)
            .map(|i| subtract(&mut free, i * 10..i * 10 + 1))
            .collect();
        assert_eq!(results.last(), Some(&Err(TooFragmented)));
    }

    #[test]
    fn the_last_frames_are_taken_first() {
        let mut free = ranges(&[1..100, 200..300]);
        let mut take = |pages| take_last(&mut free, pages).unwrap().to_vec();
        assert!(take(40).iter().eq([&(260..300)]));
        assert_eq!(take(70), [200..260, 90..100]);
        assert!(take(0).is_empty());
        assert!(take(1000).iter().eq([&(1..90)]), "no more than there is");
        assert_eq!(free, Ranges::new());
    }

    #[test]
    fn a_map_that_shows_more_than_there_is_is_seen() {
        // memory=32, with eight pages that are not in the map.
        assert_eq!(not_there(8192, 8200), 0);
        assert_eq!(not_there(8192, 8192), 0);
        // memory=32, maxmem=256: no more than 32 MiB are there, rather less.
        let missing = not_there(65536, 8200);
        assert!((57344..57408).contains(&missing), "{missing}");
        assert_eq!(not_there(100, 90), 74);
        assert_eq!(not_there(50, 0), 50);
    }

    #[test]
    fn bytes_touch_whole_frames() {
        assert_eq!(frames_of(4096, 1), 1..2);
        assert_eq!(frames_of(4095, 2), 0..2);
        assert_eq!(frames_of(8192, 0), 2..2);
    }

    #[test]
    fn the_foreign_region_grows_with_the_memory() {
        let small = AddressSpace::above(16 << 20, 4096, false);
        assert_eq!(small.special, 16 << 20);
        assert_eq!((small.special_pages, small.device_pages), (128, 384));
        assert_eq!(small.devices, small.special + 128 * 4096);
        assert_eq!(small.devices + small.device_pages * 4096, small.foreign);
        assert_eq!(small.foreign, 18 << 20);
        assert_eq!(small.foreign_pages, 32 << 10);
        let medium = AddressSpace::above(80 << 20, 20480, false);
        assert_eq!(medium.foreign_pages, 40 << 10);
        let pvh = AddressSpace::above(1 << 30, 1 << 18, true);
        assert_eq!((pvh.special, pvh.foreign_pages), (4 << 30, 256 << 10));
        let large = AddressSpace::above((5 << 30) + 4096, 5 << 18, true);
        assert_eq!(large.special, 6 << 30);
    }
}
