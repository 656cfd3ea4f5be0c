//! Physical region pages (PRP), by which a command names the memory of its data (NVMe Base Specification, "Physical
//! Region Page Entry and List").
//!
//! The first entry may point into a page; all others point to the start of one, and all but the last to a whole page.
//! Data that cannot be named like that is cut into runs that can be, one command each.

use bulkhead_dma::{DmaPages, NoPages, WORDS};
use bulkhead_images::{IoError, IoSegment};
use bulkhead_xen::{DmaMemory, PAGE_SIZE};
use core::sync::atomic::{AtomicU64, Ordering};

/// The most bytes of one command. Its list takes half a page then.
pub const MOST_BYTES: usize = 1 << 20;

/// A part of a request's data: bytes within one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The bus address of the first byte.
    pub address: u64,
    /// Their number.
    pub len: usize,
}

impl Part {
    /// Returns the bus address and length of a segment. Fails if it has no bus address, or no bytes.
    #[inline]
    pub fn of(segment: &IoSegment) -> Result<Part, IoError> {
        match segment.dma_addr() {
            Some(address) if !segment.is_empty() => Ok(Part {
                address: address.get(),
                len: segment.len(),
            }),
            _ => Err(IoError::Medium),
        }
    }

    /// Returns whether it ends with its page.
    #[inline]
    fn ends_a_page(&self) -> bool {
        (self.address + self.len as u64).is_multiple_of(PAGE_SIZE as u64)
    }

    /// Returns whether it begins with its page.
    #[inline]
    fn begins_a_page(&self) -> bool {
        self.address.is_multiple_of(PAGE_SIZE as u64)
    }
}

/// The parts, from the first on, that one command can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The number of parts.
    pub parts: usize,
    /// The number of their bytes.
    pub bytes: usize,
    /// The data pointer of the command.
    pub pointer: [u64; 2],
}

/// Returns the longest run of parts that one command can name; all its entries but the first are written into `list`.
#[inline]
pub fn run(
    mut parts: impl Iterator<Item = Result<Part, IoError>>,
    list: &PrpList<'_>,
) -> Result<Run, IoError> {
    let first = parts.next().ok_or(IoError::Misaligned)??;
    let (mut last, mut bytes, mut count) = (first, first.len, 0);
    for part in parts {
        let part = part?;
        if !last.ends_a_page() || !part.begins_a_page() || count == list.entries.len() {
            break;
        }
        list.entries[count].store(part.address.to_le(), Ordering::Relaxed);
        count += 1;
        bytes += part.len;
        last = part;
    }
    let second = match count {
        0 => 0,
        1 => last.address,
        _ => list.address,
    };
    Ok(Run {
        parts: count + 1,
        bytes,
        pointer: [first.address, second],
    })
}

/// The PRP list of one command, or a range to deallocate.
pub struct PrpList<'l> {
    /// Its bus address.
    pub address: u64,
    /// The words.
    pub entries: &'l [AtomicU64],
}

/// The lists of all commands of a queue.
pub struct PrpLists {
    pages: DmaPages,
    entries: usize,
}

/// The least number of entries of a list: those of a range to deallocate.
const LEAST_ENTRIES: usize = 2;

impl PrpLists {
    /// Allocates the lists of `count` commands that transfer up to `most_bytes` bytes. A list has at most a page of
    /// entries.
    pub fn new(
        memory: &dyn DmaMemory,
        count: usize,
        most_bytes: usize,
    ) -> Result<PrpLists, NoPages> {
        // The first page of a command is not in its list, but data that does not begin at a page boundary spans one
        // page more.
        let entries = most_bytes.div_ceil(PAGE_SIZE).next_power_of_two();
        let entries = entries.clamp(LEAST_ENTRIES, WORDS);
        Ok(PrpLists {
            pages: DmaPages::new(memory, count.div_ceil(WORDS / entries))?,
            entries,
        })
    }

    /// Returns the list of a command, by the number of its slot. No list crosses the end of a page.
    #[inline]
    pub fn of(&self, command: usize) -> PrpList<'_> {
        let each = WORDS / self.entries;
        let (page, first) = (command / each, command % each * self.entries);
        PrpList {
            address: self.pages.address(page) + (first * 8) as u64,
            entries: &self.pages.words(page)[first..first + self.entries],
        }
    }

    /// Notes whether the controller may read the lists from now on.
    pub fn set_in_use(&mut self, in_use: bool) {
        self.pages.set_in_use(in_use);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    const LIST: u64 = 0x8000_0000;

    fn words<const N: usize>() -> [AtomicU64; N] {
        [const { AtomicU64::new(0) }; N]
    }

    fn first_run(parts: &[Part], words: &[AtomicU64]) -> Run {
        let list = PrpList {
            address: LIST,
            entries: words,
        };
        run(parts.iter().copied().map(Ok), &list).expect("a run")
    }

    fn parts(all: &[(u64, usize)]) -> Vec<Part> {
        let part = |&(address, len)| Part { address, len };
        all.iter().map(part).collect()
    }

    #[test]
    fn one_page_and_two_need_no_list() {
        let words = words::<8>();
        let run = first_run(&parts(&[(0x5200, 512)]), &words);
        assert_eq!((run.parts, run.bytes, run.pointer), (1, 512, [0x5200, 0]));
        let run = first_run(&parts(&[(0x5200, 0xe00), (0x9000, 512)]), &words);
        assert_eq!(
            (run.parts, run.bytes, run.pointer),
            (2, 4096, [0x5200, 0x9000])
        );
        let run = first_run(
            &parts(&[(0x5000, 4096), (0x9000, 4096), (0x3000, 512)]),
            &words,
        );
        assert_eq!(
            (run.parts, run.bytes, run.pointer),
            (3, 8704, [0x5000, LIST])
        );
        let list: Vec<u64> = words
            .iter()
            .map(|word| word.load(Ordering::Relaxed))
            .collect();
        assert_eq!(list[..2], [0x9000, 0x3000]);
    }

    #[test]
    fn a_run_ends_where_a_page_is_not_used_from_end_to_end() {
        let words = words::<2>();
        // The last part ends early.
        assert_eq!(
            first_run(&parts(&[(0x5000, 2048), (0x9000, 4096)]), &words).parts,
            1
        );
        // The next begins late.
        assert_eq!(
            first_run(&parts(&[(0x5000, 4096), (0x9200, 512)]), &words).parts,
            1
        );
        // The list is full.
        let long: Vec<_> = (1..9).map(|page| (page << 12, 4096)).collect();
        assert_eq!(first_run(&parts(&long), &words).parts, 3);
    }

    proptest! {
        #[test]
        fn runs_have_all_parts_and_keep_the_rule(
            shapes in proptest::collection::vec((1_u64..1000, 0_u64..8, 1_usize..9), 1..40)
        ) {
            let all: Vec<Part> = shapes.iter().map(|&(page, first, sectors)| Part {
                address: page << 12 | first << 9,
                len: sectors.min(8 - first as usize) * 512,
            }).collect();
            let words = words::<16>();
            let mut rest = &all[..];
            while !rest.is_empty() {
                let run = first_run(rest, &words);
                // As a controller reads it.
                let mut left = run.bytes;
                let in_page = (4096 - run.pointer[0] % 4096) as usize;
                let mut named = alloc::vec![(run.pointer[0], left.min(in_page))];
                left -= left.min(in_page);
                let pages = left.div_ceil(4096);
                for entry in &words[..pages] {
                    let page = match pages {
                        1 => run.pointer[1],
                        _ => entry.load(Ordering::Relaxed),
                    };
                    prop_assert_eq!(page % 4096, 0);
                    named.push((page, left.min(4096)));
                    left -= left.min(4096);
                }
                let meant = &rest[..run.parts];
                prop_assert_eq!(named, meant.iter().map(|part| (part.address, part.len)).collect::<Vec<_>>());
                rest = &rest[run.parts..];
            }
        }
    }
}
