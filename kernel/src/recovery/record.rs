//! The record that a boot leaves to the one that follows it in the same domain: the number of restarts, their times, the
//! crash's report, and the upgrade that is under way.
//!
//! The fault that made the domain crash may have damaged the record, so it is read like hostile input: it has a magic
//! number, a version, a length and a checksum, and no boot uses one of which any of these is wrong.

use bulkhead_xen::{Instant, PAGE_SIZE};
use core::fmt;
use core::time::Duration;

/// "Bulkhead", in the order of the bytes in memory.
const MAGIC: u64 = u64::from_le_bytes(*b"Bulkhead");
/// The layout of [`Record`]; another version is refused. It belongs to `bulkhead_upgrade::FORMAT`: both change together.
const VERSION: u32 = 2;
/// The most bytes of a crash's report; the rest is cut off.
const REPORT_BYTES: usize = 3072;
/// The most restarts within [`WITHIN`].
const MOST: usize = 3;
/// The time in which there are at most [`MOST`] restarts.
const WITHIN: Duration = Duration::from_secs(60);

/// The record, and the values by which it is checked.
#[derive(Debug)]
#[repr(C)]
pub struct Sealed {
    magic: u64,
    version: u32,
    /// Bytes of the record.
    length: u32,
    checksum: u64,
    record: Record,
}

/// The data that survives.
#[derive(Debug)]
#[repr(C)]
pub struct Record {
    /// Number of restarts since the domain was built.
    restarts: u32,
    /// Bytes of the report.
    length: u32,
    /// Number of boots in this domain before the next one.
    boots: u32,
    /// What the next boot is, as a number of [`Phase`].
    phase: u32,
    /// Times of the last restarts, in nanoseconds of system time; 0 for none. The oldest is first.
    times: [u64; MOST],
    hand_over: HandOver,
    report: [u8; REPORT_BYTES],
}

/// The kind of boot that finds the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It follows a crash, or an upgrade that is over.
    Settled,
    /// A new version has taken over, and has to show that it serves.
    Trying,
    /// The new version has failed, and the one before has the domain back.
    Back,
}

/// An upgrade under way. All addresses are below 4 GiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct HandOver {
    /// The version that has handed over.
    pub from: [u32; 3],
    /// The version that has taken over.
    pub to: [u32; 3],
    /// The way in which that version is to fail on purpose, for tests; 0 for not at all.
    pub fault: u32,
    /// The address of the stage: pages with all that the way back needs. They begin with the code that copies.
    pub stage: u32,
    /// The number of these pages.
    pub stage_pages: u32,
    /// The address of the list of what that code copies on the way back.
    pub table: u32,
    /// The address of the room in these pages for the region that survives.
    pub room: u32,
    /// The size of that room in bytes.
    pub room_bytes: u32,
}

impl HandOver {
    fn numbers(&self) -> [u32; 12] {
        let ([a, b, c], [d, e, f]) = (self.from, self.to);
        let HandOver {
            fault,
            stage,
            stage_pages,
            table,
            room,
            room_bytes,
            ..
        } = *self;
        [
            a,
            b,
            c,
            d,
            e,
            f,
            fault,
            stage,
            stage_pages,
            table,
            room,
            room_bytes,
        ]
    }

    /// Returns whether everything lies within the pages, and those below 4 GiB.
    fn is_possible(&self) -> bool {
        let page = PAGE_SIZE as u64;
        let start = u64::from(self.stage);
        let end = start + u64::from(self.stage_pages) * page;
        let within = |at: u32, bytes: u32| {
            let at = u64::from(at);
            at.is_multiple_of(4) && at >= start && at + u64::from(bytes) <= end
        };
        start >= page
            && start.is_multiple_of(page)
            && end <= 1 << 32
            && within(self.table, 16)
            && within(self.room, self.room_bytes)
    }
}

/// The state of the region's memory.
#[derive(Debug)]
pub enum Content<'a> {
    /// It is as the toolstack left it: this is the first boot in the domain.
    Empty,
    /// A crash or an upgrade has left a record.
    Found(&'a Record),
    /// It is not a valid record; the text says what is wrong.
    Damaged(&'static str),
}

impl Record {
    /// Returns the number of restarts since the domain was built.
    pub fn restarts(&self) -> u32 {
        self.restarts
    }

    /// Returns the number of boots in this domain before the one that reads this.
    pub fn boots(&self) -> u32 {
        self.boots
    }

    /// Returns what the boot is that reads this.
    pub fn phase(&self) -> Phase {
        match self.phase {
            1 => Phase::Trying,
            2 => Phase::Back,
            _ => Phase::Settled,
        }
    }

    /// Returns the upgrade that is under way.
    pub fn hand_over(&self) -> &HandOver {
        &self.hand_over
    }

    /// Returns the report of the crash, in which all that is not printable ASCII or the end of a line has become `?`.
    pub fn report(&self) -> impl Iterator<Item = char> {
        let length = (self.length as usize).min(REPORT_BYTES);
        self.report[..length].iter().map(|&byte| {
            match byte == b'\n' || byte == b' ' || byte.is_ascii_graphic() {
                true => char::from(byte),
                false => '?',
            }
        })
    }

    /// Returns whether one more restart at `now` keeps within the limit.
    fn allows(&self, now: Instant) -> bool {
        let [oldest, ..] = self.times;
        oldest == 0 || now.since(Instant(oldest)) >= WITHIN
    }
}

impl Sealed {
    /// Checks the content, and returns it.
    pub fn read(&self) -> Content<'_> {
        let record = &self.record;
        if self.magic == 0 {
            return Content::Empty;
        }
        if self.magic != MAGIC {
            return Content::Damaged("its magic number is wrong");
        }
        if self.version != VERSION || self.length as usize != size_of::<Record>() {
            return Content::Damaged("it is of another version");
        }
        if self.checksum != self.sum() {
            return Content::Damaged("its checksum is wrong");
        }
        let under_way = record.phase() != Phase::Settled;
        if record.length as usize > REPORT_BYTES
            || record.boots == 0
            || record.restarts > record.boots
            || record.phase > 2
            || (under_way && !record.hand_over.is_possible())
        {
            return Content::Damaged("its numbers are impossible");
        }
        Content::Found(record)
    }

    /// Begins the report of a crash. Returns false if the memory is damaged: there can be no restart then.
    pub fn begin_report(&mut self) -> bool {
        let intact = !matches!(self.read(), Content::Damaged(_));
        // Not valid before it is sealed.
        self.checksum = !self.checksum;
        self.record.length = 0;
        intact
    }

    /// Counts one more restart, at `now`, and makes the record valid. Returns its number, or `None` if there were too
    /// many within a minute, and that is `limited`.
    pub fn seal(&mut self, now: Instant, limited: bool) -> Option<u32> {
        if limited && !self.record.allows(now) {
            return None;
        }
        let record = &mut self.record;
        record.times.rotate_left(1);
        record.times[MOST - 1] = now.0.max(1);
        record.restarts = record.restarts.saturating_add(1);
        self.close(Phase::Settled);
        Some(self.record.restarts)
    }

    /// Notes that a new version takes over, in a record to which no crash has written, and makes it valid. Returns false
    /// if the memory is damaged.
    pub fn begin_trying(&mut self, hand_over: HandOver) -> bool {
        if matches!(self.read(), Content::Damaged(_)) {
            return false;
        }
        self.record.length = 0;
        self.record.hand_over = hand_over;
        self.close(Phase::Trying);
        true
    }

    /// Notes that the version before the one that has failed gets the domain back, and makes the record valid. It does
    /// not count as a restart.
    pub fn go_back(&mut self) {
        self.close(Phase::Back);
    }

    /// Notes that the upgrade is over.
    pub fn settle(&mut self) {
        self.record.hand_over = HandOver::default();
        self.record.boots = self.record.boots.saturating_sub(1);
        self.close(Phase::Settled);
    }

    /// Counts one more boot, and makes the record valid.
    fn close(&mut self, phase: Phase) {
        self.record.boots = self.record.boots.saturating_add(1);
        self.record.phase = match phase {
            Phase::Settled => 0,
            Phase::Trying => 1,
            Phase::Back => 2,
        };
        self.magic = MAGIC;
        self.version = VERSION;
        self.length = size_of::<Record>() as u32;
        self.checksum = self.sum();
    }

    /// Returns the FNV-1a hash, 64 bits: enough to detect damage. It need not resist forgery: only this domain writes
    /// here.
    fn sum(&self) -> u64 {
        let Record {
            restarts,
            length,
            boots,
            phase,
            times,
            hand_over,
            report,
        } = &self.record;
        let numbers = [
            self.version,
            self.length,
            *restarts,
            *length,
            *boots,
            *phase,
        ];
        let numbers = numbers.map(u32::to_le_bytes);
        let times = times.map(u64::to_le_bytes);
        let over = hand_over.numbers().map(u32::to_le_bytes);
        let bytes = numbers.as_flattened().iter();
        let bytes = bytes.chain(times.as_flattened()).chain(over.as_flattened());
        let bytes = bytes.chain(report);
        bytes.fold(0xcbf2_9ce4_8422_2325, |sum: u64, &byte| {
            (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        })
    }
}

impl fmt::Write for Sealed {
    /// Adds to the report. What does not fit is dropped.
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let record = &mut self.record;
        let start = (record.length as usize).min(REPORT_BYTES);
        let count = text.len().min(REPORT_BYTES - start);
        record.report[start..start + count].copy_from_slice(&text.as_bytes()[..count]);
        record.length = (start + count) as u32;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::fmt::Write;

    const SECOND: u64 = 1_000_000_000;

    /// As the domain's builder leaves it.
    fn empty() -> Box<Sealed> {
        // SAFETY: numbers, for all of which zero is a value.
        unsafe { Box::<Sealed>::new_zeroed().assume_init() }
    }

    fn crash(region: &mut Sealed, text: &str, second: u64) -> Option<u32> {
        assert!(region.begin_report());
        region.write_str(text).expect("it never fails");
        region.seal(Instant(second * SECOND), true)
    }

    fn found(region: &Sealed) -> (u32, String) {
        match region.read() {
            Content::Found(record) => (record.restarts(), record.report().collect()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_report_is_found_by_the_next_boot() {
        let mut region = empty();
        assert!(matches!(region.read(), Content::Empty));
        assert_eq!(crash(&mut region, "panic\non \u{1b}[31mvCPU 0", 5), Some(1));
        assert_eq!(found(&region), (1, "panic\non ?[31mvCPU 0".to_owned()));
        assert_eq!(crash(&mut region, "again", 6), Some(2));
        assert_eq!(found(&region), (2, "again".to_owned()));
    }

    #[test]
    fn the_fourth_within_a_minute_is_refused() {
        let mut region = empty();
        for second in [10, 20, 30] {
            assert!(crash(&mut region, "", second).is_some());
        }
        assert_eq!(crash(&mut region, "", 69), None);
        assert!(
            matches!(region.read(), Content::Damaged(_)),
            "a refused one leaves no record"
        );

        let mut region = empty();
        for second in [10, 20, 30] {
            assert!(crash(&mut region, "", second).is_some());
        }
        assert_eq!(crash(&mut region, "", 70), Some(4));
        assert_eq!(crash(&mut region, "", 79), None, "20, 30, 70");
    }

    #[test]
    fn without_the_limit_the_fourth_is_counted_and_the_limit_counts_it() {
        let mut region = empty();
        for second in [10, 20, 30] {
            assert!(crash(&mut region, "", second).is_some());
        }
        assert!(region.begin_report());
        assert_eq!(region.seal(Instant(40 * SECOND), false), Some(4));
        assert_eq!(found(&region).0, 4);
        assert_eq!(crash(&mut region, "", 75), None, "20, 30, 40");
    }

    #[test]
    fn a_report_that_was_begun_and_not_finished_is_none() {
        let mut region = empty();
        assert!(crash(&mut region, "first", 1).is_some());
        assert!(region.begin_report());
        region.write_str("second").expect("it never fails");
        assert!(matches!(region.read(), Content::Damaged(_)));
        assert!(!region.begin_report());
    }

    #[test]
    fn each_byte_that_changes_is_noticed() {
        let mut region = empty();
        assert!(crash(&mut region, "text", 1).is_some());
        let bytes = &raw mut *region as *mut u8;
        for place in 0..size_of::<Sealed>() {
            // SAFETY: within the structure, which consists of numbers without padding.
            unsafe { *bytes.add(place) ^= 0x10 };
            let noticed = matches!(region.read(), Content::Damaged(_));
            assert!(noticed, "byte {place}");
            // SAFETY: as above.
            unsafe { *bytes.add(place) ^= 0x10 };
        }
        assert_eq!(found(&region).0, 1);
    }

    fn hand_over() -> HandOver {
        HandOver {
            from: [0, 2, 0],
            to: [0, 3, 1],
            fault: 0,
            stage: 0x40_0000,
            stage_pages: 300,
            table: 0x40_0800,
            room: 0x40_1000,
            room_bytes: 35 * 4096,
        }
    }

    #[test]
    fn an_upgrade_goes_on_from_boot_to_boot_and_is_no_restart() {
        let mut region = empty();
        assert!(region.begin_trying(hand_over()));
        let seen = |region: &Sealed| match region.read() {
            Content::Found(record) => (record.phase(), record.boots(), record.restarts()),
            other => panic!("{other:?}"),
        };
        assert_eq!(seen(&region), (Phase::Trying, 1, 0));
        // The new version fails.
        assert!(region.begin_report());
        region.write_str("a panic").expect("it never fails");
        region.go_back();
        assert_eq!(seen(&region), (Phase::Back, 2, 0));
        assert_eq!(found(&region).1, "a panic");
        region.settle();
        assert_eq!(seen(&region), (Phase::Settled, 2, 0));
        // The next one serves, and crashes later.
        assert!(region.begin_trying(hand_over()));
        region.settle();
        assert_eq!(seen(&region), (Phase::Settled, 3, 0));
        for second in [1, 2, 3] {
            assert!(crash(&mut region, "later", second).is_some());
        }
        assert_eq!(seen(&region), (Phase::Settled, 6, 3));
        assert_eq!(
            crash(&mut region, "later", 4),
            None,
            "upgrades leave the limit alone"
        );
    }

    #[test]
    fn an_upgrade_that_names_other_memory_is_none() {
        let good = hand_over();
        let wrong = [
            HandOver {
                stage: 0x40_0001,
                ..good
            },
            HandOver {
                stage: 0,
                table: 16,
                room: 16,
                ..good
            },
            HandOver {
                stage_pages: u32::MAX,
                ..good
            },
            HandOver {
                table: 0x3f_fffc,
                ..good
            },
            HandOver {
                table: u32::MAX - 3,
                ..good
            },
            HandOver {
                room_bytes: 300 * 4096,
                ..good
            },
            HandOver {
                room: good.stage + 300 * 4096,
                ..good
            },
        ];
        for over in wrong {
            let mut region = empty();
            assert!(region.begin_trying(over));
            assert!(matches!(region.read(), Content::Damaged(_)), "{over:?}");
        }
    }

    /// What version 0.2.0 leaves to the one that takes over: format 1. A later version has to read it; a change of the
    /// layout needs another format, and this test stays as it is.
    #[test]
    fn the_record_of_format_1_is_read() {
        let mut region = empty();
        let bytes = &raw mut *region as *mut u8;
        let golden = GOLDEN_1.split_ascii_whitespace().enumerate();
        for (at, word) in golden {
            let word = u32::from_str_radix(word, 16).expect("a number");
            // SAFETY: within the structure, aligned.
            unsafe { bytes.cast::<u32>().add(at).write(word) };
        }
        let Content::Found(record) = region.read() else {
            panic!("{:?}", region.read());
        };
        assert_eq!((record.restarts(), record.boots()), (2, 7));
        assert_eq!(record.phase(), Phase::Trying);
        assert_eq!(*record.hand_over(), hand_over());
        assert_eq!(record.times, [0, 5 * SECOND, 9 * SECOND]);
        assert_eq!(record.report().collect::<String>(), "as before");
    }

    /// 32-bit numbers from the start on; the rest is zero.
    const GOLDEN_1: &str = "6b6c7542 64616568 2 c58 70626623 a9bd310d 2 9 7 1 0 0 2a05f200 1 18711a00 2 0 2 0 0 3 1 0 \
        400000 12c 400800 401000 23000 62207361 726f6665 65";

    #[test]
    fn a_long_report_is_cut_off() {
        let mut region = empty();
        assert!(crash(&mut region, &"x".repeat(5000), 1).is_some());
        assert_eq!(found(&region).1.len(), REPORT_BYTES);
    }

    #[test]
    fn it_leaves_room_in_its_page() {
        assert!(size_of::<Sealed>() + 64 <= bulkhead_xen::PAGE_SIZE);
    }
}
