//! A private copy of the pages that hold an indirect request's segments. The frontend may change
//! its pages at any time; what is checked and used is the copy.

use alloc::vec::Vec;
use bulkhead_grant::OutOfMemory;
use bulkhead_grant::memory::filled;
use bulkhead_ring::blkif::{BadSegment, INDIRECT_SEGMENT_SIZE, Segment};
use core::cell::UnsafeCell;
use core::ptr::NonNull;

/// Room for the segments of all indirect requests of a sweep.
pub struct DescriptorCopy {
    /// The segments, one each. The hypervisor writes here, without the compiler's knowledge.
    segments: Vec<UnsafeCell<u64>>,
    used: usize,
}

const _: () = assert!(size_of::<u64>() == INDIRECT_SEGMENT_SIZE);

impl DescriptorCopy {
    /// Returns a copy with room for `count` segments.
    pub fn new(count: usize) -> Result<Self, OutOfMemory> {
        Ok(DescriptorCopy {
            segments: filled(count, |_| UnsafeCell::new(0))?,
            used: 0,
        })
    }

    /// Takes room for `count` segments, and returns its start; `None` if there is not that much.
    pub fn take(&mut self, count: usize) -> Option<usize> {
        let start = self.used;
        let end = start.checked_add(count)?;
        if end > self.segments.len() {
            return None;
        }
        self.used = end;
        Some(start)
    }

    /// Gives all room back.
    pub fn clear(&mut self) {
        self.used = 0;
    }

    /// Returns the address to which the hypervisor is to copy a segment.
    pub fn address(&self, number: usize) -> NonNull<u8> {
        NonNull::from(&self.segments[number]).cast()
    }

    /// Copies `count` segments from a mapped page, each byte read once.
    ///
    /// # Safety
    /// `page` is readable for `count` segments, and aligned to them.
    pub unsafe fn copy_from(&mut self, start: usize, count: usize, page: NonNull<u8>) {
        let page = page.cast::<u64>();
        for (number, segment) in self.segments[start..start + count].iter_mut().enumerate() {
            // SAFETY: as the caller promises.
            *segment.get_mut() = unsafe { page.add(number).read_volatile() };
        }
    }

    /// Returns segments of the copy, each of them checked.
    #[inline]
    pub fn segments(
        &self,
        start: usize,
        count: usize,
    ) -> impl Iterator<Item = Result<Segment, BadSegment>> + use<'_> {
        self.segments[start..start + count].iter().map(|segment| {
            // SAFETY: within the vector, which never grows; the hypervisor has finished writing before anybody asks,
            // and nothing else writes while `self` is borrowed.
            let bytes = unsafe { segment.get().read_volatile() };
            Segment::parse(&bytes.to_ne_bytes())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_xen::GrantRef;

    #[test]
    fn what_is_copied_is_what_is_parsed() {
        let good = Segment::new(GrantRef(77), 1, 6).unwrap();
        let page = [
            u64::from_ne_bytes(good.encode()),
            u64::from_ne_bytes([1, 0, 0, 0, 5, 4, 0, 0]),
        ];
        let mut index = DescriptorCopy::new(3).unwrap();
        assert_eq!(index.take(1), Some(0));
        let start = index.take(2).unwrap();
        assert_eq!(index.take(1), None);
        // SAFETY: the array holds two segments.
        unsafe { index.copy_from(start, 2, NonNull::from(&page).cast()) };
        let segments: Vec<_> = index.segments(start, 2).collect();
        assert_eq!(segments[0], Ok(good));
        assert!(segments[1].is_err());
        index.clear();
        assert_eq!(index.take(3), Some(0));
    }
}
