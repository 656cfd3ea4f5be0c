//! Segments: which sectors of which granted page a request reads or writes.

use super::{MAX_SEGMENTS, SECTOR_SIZE};
use bulkhead_xen::{GrantRef, PAGE_SIZE};
use core::fmt;
use core::ops::Deref;

/// Bytes of a segment, in a request and in an indirect page alike (`struct
/// blkif_request_segment`; the same in every ABI).
pub const INDIRECT_SEGMENT_SIZE: usize = 8;
/// Segments that an indirect page holds.
pub const SEGMENTS_PER_INDIRECT_PAGE: usize = PAGE_SIZE / INDIRECT_SEGMENT_SIZE;

const SECTORS_PER_PAGE: u8 = (PAGE_SIZE / SECTOR_SIZE) as u8;

/// A run of sectors within one granted page; never empty, never past the page's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Segment {
    gref: GrantRef,
    first: u8,
    last: u8,
}

impl Segment {
    /// Sectors `first` to `last` of the page, both included.
    pub const fn new(gref: GrantRef, first: u8, last: u8) -> Result<Segment, BadSegment> {
        if first > last || last >= SECTORS_PER_PAGE {
            return Err(BadSegment { first, last });
        }
        Ok(Segment { gref, first, last })
    }

    /// The whole page.
    pub const fn whole(gref: GrantRef) -> Segment {
        Segment {
            gref,
            first: 0,
            last: SECTORS_PER_PAGE - 1,
        }
    }

    /// Reads a segment from a private copy of its bytes.
    ///
    /// ```
    /// use bulkhead_ring::blkif::Segment;
    ///
    /// let segment = Segment::parse(&[17, 0, 0, 0, 2, 3, 0, 0])?;
    /// assert_eq!((segment.gref().0, segment.offset(), segment.len()), (17, 1024, 1024));
    /// assert!(Segment::parse(&[17, 0, 0, 0, 2, 8, 0, 0]).is_err());
    /// # Ok::<(), bulkhead_ring::blkif::BadSegment>(())
    /// ```
    #[inline]
    pub const fn parse(bytes: &[u8; INDIRECT_SEGMENT_SIZE]) -> Result<Segment, BadSegment> {
        let [g0, g1, g2, g3, first, last, _, _] = *bytes;
        Segment::new(GrantRef(u32::from_le_bytes([g0, g1, g2, g3])), first, last)
    }

    /// Returns the segment's bytes.
    pub const fn encode(self) -> [u8; INDIRECT_SEGMENT_SIZE] {
        let [g0, g1, g2, g3] = self.gref.0.to_le_bytes();
        [g0, g1, g2, g3, self.first, self.last, 0, 0]
    }

    /// Returns the grant of the page.
    pub const fn gref(self) -> GrantRef {
        self.gref
    }

    /// Returns the first sector within the page.
    pub const fn first(self) -> u8 {
        self.first
    }

    /// Returns the last sector within the page.
    pub const fn last(self) -> u8 {
        self.last
    }

    /// Returns where the segment starts in the page, in bytes.
    pub const fn offset(self) -> usize {
        self.first as usize * SECTOR_SIZE
    }

    /// Returns how many sectors of 512 bytes the segment has: 1 to 8.
    pub const fn sectors(self) -> u32 {
        (self.last - self.first) as u32 + 1
    }

    /// Returns how many bytes the segment has; never 0.
    #[allow(clippy::len_without_is_empty, reason = "a segment is never empty")]
    pub const fn len(self) -> usize {
        self.sectors() as usize * SECTOR_SIZE
    }
}

/// A segment that is no part of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadSegment {
    /// The first sector, as the frontend wrote it.
    pub first: u8,
    /// The last sector, as the frontend wrote it.
    pub last: u8,
}

impl fmt::Display for BadSegment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BadSegment { first, last } = self;
        if first > last {
            write!(f, "first sector {first} after last sector {last}")
        } else {
            write!(f, "last sector {last} past the end of the page")
        }
    }
}

impl core::error::Error for BadSegment {}

/// The segments of a request in the private copy of its slot, each of them checked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SlotSegments<'a>(&'a [[u8; INDIRECT_SEGMENT_SIZE]]);

impl<'a> SlotSegments<'a> {
    /// Checks each segment. Returns the number of the first that is no part of a page.
    #[inline]
    pub(super) fn check(
        bytes: &'a [[u8; INDIRECT_SEGMENT_SIZE]],
    ) -> Result<Self, (u8, BadSegment)> {
        for (number, segment) in bytes.iter().enumerate() {
            Segment::parse(segment).map_err(|error| (number as u8, error))?;
        }
        Ok(SlotSegments(bytes))
    }

    /// Returns how many segments there are: up to [`MAX_SEGMENTS`].
    #[inline]
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether there is no segment.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the segments, in their order.
    #[inline]
    pub fn iter(&self) -> impl Iterator<Item = Segment> + use<'a> {
        self.0.iter().map(|&[g0, g1, g2, g3, first, last, _, _]| {
            let gref = GrantRef(u32::from_le_bytes([g0, g1, g2, g3]));
            Segment { gref, first, last }
        })
    }
}

impl fmt::Debug for SlotSegments<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// The segments of one request: up to [`MAX_SEGMENTS`], used as a slice.
#[derive(Clone, Copy, Default)]
pub struct Segments {
    len: u8,
    all: [Segment; MAX_SEGMENTS],
}

impl Segments {
    /// Copies segments. Returns `None` if there are too many for one request.
    pub fn new(segments: &[Segment]) -> Option<Segments> {
        let mut all = [Segment::default(); MAX_SEGMENTS];
        all.get_mut(..segments.len())?.copy_from_slice(segments);
        Some(Segments {
            len: segments.len() as u8,
            all,
        })
    }
}

impl From<SlotSegments<'_>> for Segments {
    fn from(segments: SlotSegments<'_>) -> Segments {
        let mut all = [Segment::default(); MAX_SEGMENTS];
        for (slot, segment) in all.iter_mut().zip(segments.iter()) {
            *slot = segment;
        }
        Segments {
            len: segments.len() as u8,
            all,
        }
    }
}

impl Deref for Segments {
    type Target = [Segment];

    #[inline]
    fn deref(&self) -> &[Segment] {
        &self.all[..usize::from(self.len)]
    }
}

impl PartialEq for Segments {
    fn eq(&self, other: &Segments) -> bool {
        **self == **other
    }
}

impl Eq for Segments {}

impl fmt::Debug for Segments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}
