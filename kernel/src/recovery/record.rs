//! The record that a crash leaves to the boot that follows it in the same domain: the number of restarts, their times,
//! and the crash's report.
//!
//! Whatever made the domain crash may have written here, too. So the record is read like hostile input: it has a magic
//! number, a version, a length and a checksum, and no boot uses one of which any of these is wrong.

use bulkhead_xen::Instant;
use core::fmt;
use core::time::Duration;

/// "Bulkhead", in the order of the bytes in memory.
const MAGIC: u64 = u64::from_le_bytes(*b"Bulkhead");
/// The layout of [`Record`]; another version is refused.
const VERSION: u32 = 1;
/// Room for a crash's report; what is beyond it is cut off.
const REPORT_BYTES: usize = 3072;
/// The most restarts within [`WITHIN`].
const MOST: usize = 3;
/// The time in which there are at most [`MOST`] restarts.
const WITHIN: Duration = Duration::from_secs(60);

/// The record and what tells whether it is one.
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
    /// Times of the last restarts, in nanoseconds of system time; 0 for none. The oldest is first.
    times: [u64; MOST],
    report: [u8; REPORT_BYTES],
}

/// The state of the region's memory.
#[derive(Debug)]
pub enum Content<'a> {
    /// It is as the domain's builder has left it: nothing has crashed yet.
    Empty,
    /// A crash has left a record.
    Found(&'a Record),
    /// It is not what a crash leaves; the text says what is wrong.
    Damaged(&'static str),
}

impl Record {
    /// Returns the number of restarts since the domain was built.
    pub fn restarts(&self) -> u32 {
        self.restarts
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
        if record.length as usize > REPORT_BYTES || record.restarts == 0 {
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
    /// many within a minute.
    pub fn seal(&mut self, now: Instant) -> Option<u32> {
        if !self.record.allows(now) {
            return None;
        }
        let record = &mut self.record;
        record.times.rotate_left(1);
        record.times[MOST - 1] = now.0.max(1);
        record.restarts = record.restarts.saturating_add(1);
        self.magic = MAGIC;
        self.version = VERSION;
        self.length = size_of::<Record>() as u32;
        self.checksum = self.sum();
        Some(self.record.restarts)
    }

    /// FNV-1a, 64 bits: enough to tell damage; nobody forges what only this domain writes.
    fn sum(&self) -> u64 {
        let Record {
            restarts,
            length,
            times,
            report,
        } = &self.record;
        let numbers = [self.version, self.length, *restarts, *length].map(u32::to_le_bytes);
        let times = times.map(u64::to_le_bytes);
        let bytes = numbers.as_flattened().iter();
        let bytes = bytes.chain(times.as_flattened()).chain(report);
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
        region.seal(Instant(second * SECOND))
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
