//! Random reads, writes, discards and growths against a plain vector.

mod support;

use bulkhead_images::testing::OpenNow;
use bulkhead_images::{Access, IoError};
use proptest::prelude::*;
use std::ops::Range;
use support::Folder;
use support::domain::{Domain, all, discard, grow, open, pattern, read, write};

#[derive(Clone, Debug)]
enum Step {
    Read(Range<u64>),
    Write(Range<u64>, u8),
    Discard(Range<u64>),
    Limit(usize),
    /// Grows the image by this number of units.
    Grow(u64),
}

/// The unit of an image's size when it grows, in sectors.
const UNIT: u64 = 8;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let range = (0..140_u64, 1..60_u64).prop_map(|(start, count)| start..start + count);
    let step = prop_oneof![
        3 => range.clone().prop_map(Step::Read),
        3 => (range.clone(), 1..=255_u8).prop_map(|(range, byte)| Step::Write(range, byte)),
        3 => range.prop_map(Step::Discard),
        2 => (0..12_usize).prop_map(Step::Limit),
        1 => (1..4_u64).prop_map(Step::Grow),
    ];
    prop::collection::vec(step, 1..60)
}

/// Returns the pages that these sectors touch.
fn touched<'a>(
    pages: &'a mut [(Range<u64>, bool)],
    range: &'a Range<u64>,
) -> impl Iterator<Item = &'a mut (Range<u64>, bool)> {
    pages
        .iter_mut()
        .filter(|(page, _)| page.start < range.end && range.start < page.end)
}

fn missing(pages: &[(Range<u64>, bool)]) -> usize {
    pages.iter().filter(|(_, there)| !there).count()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// An image in the middle of an archive against a plain vector, and its memory against a count
    /// of the pages that must be there.
    #[test]
    fn an_image_with_holes_is_like_one_without(steps in steps(), before in 1..16_usize) {
        const SECTORS: u64 = 100;
        let folder = Folder::new();
        folder.file("a", &pattern(before * 512));
        folder.file("disk", &pattern(SECTORS as usize * 512));
        folder.file("z", &pattern(5120));
        let domain = Domain::with(&folder.tar(&["--format=ustar", "a", "disk", "z"]));
        let device = open(&domain, "ram:disk", Access::ReadWrite);
        let alignment = device.geometry().discard.expect("it has pages").alignment.0;
        let mut queue = device.queue();
        let mut model = pattern(SECTORS as usize * 512);
        // The sectors of it that have a page to themselves, and whether the page is there.
        let mut pages: Vec<(Range<u64>, bool)> = (alignment..=SECTORS - 8)
            .step_by(8)
            .map(|first| (first..first + 8, true))
            .collect();
        for step in steps {
            let sectors = model.len() as u64 / 512;
            match step {
                Step::Grow(units) => {
                    let new = (sectors / UNIT + units) * UNIT;
                    let grown = grow(&domain.catalog, "disk", new * 512);
                    prop_assert_eq!(grown.map_err(|error| error.to_string()), Ok(sectors * 512));
                    model.resize(new as usize * 512, 0);
                    // The grid goes on; what was added has pages of its own, also for its ends.
                    let mut first = sectors;
                    while first < new {
                        let end = (first + 8 - (first + 8 - alignment) % 8).min(new);
                        pages.push((first..end, true));
                        first = end;
                    }
                }
                Step::Limit(pages) => {
                    domain.domain.set_memory_limit(domain.owned - pages);
                }
                Step::Read(range) => {
                    let found = read(&mut *queue, range.start, (range.end - range.start) as usize);
                    let bytes = range.start as usize * 512..range.end as usize * 512;
                    match model.get(bytes) {
                        Some(expected) => prop_assert!(found.as_deref() == Ok(expected)),
                        None => prop_assert_eq!(found, Err(IoError::OutOfRange)),
                    }
                }
                Step::Write(range, byte) => {
                    let data = vec![byte; (range.end - range.start) as usize * 512];
                    let bytes = range.start as usize * 512..range.end as usize * 512;
                    match write(&mut *queue, range.start, &data) {
                        Ok(()) => {
                            model[bytes].fill(byte);
                            touched(&mut pages, &range).for_each(|(_, there)| *there = true);
                        }
                        Err(IoError::OutOfRange) => prop_assert!(range.end > sectors),
                        Err(error) => {
                            prop_assert_eq!(error, IoError::NoMemory);
                            // As many as there was memory for, the first ones first.
                            let mut back = missing(&pages) - domain.missing();
                            for (_, there) in touched(&mut pages, &range) {
                                if !*there && back > 0 {
                                    *there = true;
                                    back -= 1;
                                }
                            }
                            prop_assert_eq!(back, 0);
                        }
                    }
                }
                Step::Discard(range) => {
                    let done = discard(&mut *queue, range.start, range.end - range.start);
                    let bytes = range.start as usize * 512..range.end as usize * 512;
                    match model.get_mut(bytes) {
                        Some(bytes) => bytes.fill(0),
                        None => {
                            prop_assert_eq!(done, Err(IoError::OutOfRange));
                            continue;
                        }
                    }
                    prop_assert_eq!(done, Ok(()));
                    for (page, there) in touched(&mut pages, &range) {
                        if range.start <= page.start && page.end <= range.end {
                            *there = false;
                        }
                    }
                }
            }
            prop_assert_eq!(domain.missing(), missing(&pages));
        }
        drop(queue);
        prop_assert!(all(&*device) == model);
        for (name, len) in [("ram:a", before * 512), ("ram:z", 5120)] {
            let neighbour = open(&domain, name, Access::ReadOnly);
            prop_assert!(all(&*neighbour) == pattern(len));
        }
    }
}
