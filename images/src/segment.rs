//! Segments: runs of bytes in guests' memory that a request moves.

use crate::guest_memory;
use bulkhead_xen::DmaAddr;
use core::ptr::NonNull;

/// A run of bytes within one page of a guest's memory, named by address for stores that copy
/// and by bus address for those that let a device read and write them. The guest may change the bytes at any
/// time.
///
/// A segment that is there [for a device alone](Self::for_device) has no address. Only queues with
/// [`DataAccess::Dma`](crate::DataAccess::Dma) are given such segments: a store or a layer that moves bytes
/// itself names another way of access.
///
/// A segment is valid for a store only during the call that passes it, so that moving bytes is safe; a store whose
/// requests stay pending [keeps](Self::keep) it.
#[derive(Debug)]
pub struct IoSegment {
    /// The address, if the bytes are mapped. A segment without it has a bus address: the constructors see to it.
    address: Option<NonNull<u8>>,
    len: usize,
    dma: Option<DmaAddr>,
}

const _: () = assert!(size_of::<IoSegment>() == 24);

// SAFETY: it is an address; the promise made in `new` holds on every vCPU.
unsafe impl Send for IoSegment {}

impl IoSegment {
    /// Returns a segment of `len` bytes at `address`, which devices find at `dma`, if they can.
    ///
    /// # Safety
    /// As long as the segment, or one that was [kept](Self::keep), exists, the bytes are mapped on every
    /// vCPU, readable, and for reads writable; and so they are for devices, if there is a bus address. A
    /// submitted segment counts as kept from its submission until its request's completion was reported, or
    /// [`poll_close`](crate::IoQueue::poll_close) of its queue was ready. Nothing in this domain holds a
    /// Rust reference to the bytes, and they lie within one page.
    pub const unsafe fn new(address: NonNull<u8>, len: usize, dma: Option<DmaAddr>) -> IoSegment {
        IoSegment {
            address: Some(address),
            len,
            dma,
        }
    }

    /// Returns a segment of `len` bytes that only devices can reach, at the bus address `dma`.
    ///
    /// # Safety
    /// As for [`new`](Self::new), but that the bytes are mapped nowhere.
    pub const unsafe fn for_device(dma: DmaAddr, len: usize) -> IoSegment {
        IoSegment {
            address: None,
            len,
            dma: Some(dma),
        }
    }

    /// Returns the address at which the bytes are mapped; `None` if only a device can reach them.
    pub const fn address(&self) -> Option<NonNull<u8>> {
        self.address
    }

    /// Returns the address of bytes that are to be copied.
    ///
    /// # Panics
    /// If only a device can reach them: the queue has not said that it copies.
    #[inline]
    pub(crate) fn mapped(&self) -> NonNull<u8> {
        match self.address {
            Some(address) => address,
            None => not_mapped(),
        }
    }

    /// Returns whether it starts and ends on a multiple of `alignment` bytes: a power of two, and at most a page.
    pub fn is_aligned(&self, alignment: usize) -> bool {
        let start = match (self.address, self.dma) {
            (Some(address), _) => address.addr().get(),
            // In its page, it is where it would be mapped.
            (None, dma) => dma.map_or(0, |dma| dma.get() as usize),
        };
        (start | self.len) & (alignment - 1) == 0
    }

    /// Returns the number of bytes.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Returns whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the same bytes, for a store to use after the call that has passed them.
    ///
    /// # Safety
    /// The store drops it, and does not touch the bytes any more, before it tells the request's completion
    /// and before its queue is closed.
    pub const unsafe fn keep(&self) -> IoSegment {
        IoSegment {
            address: self.address,
            len: self.len,
            dma: self.dma,
        }
    }

    /// Copies the bytes from `start` on, which the guest writes to the device, into `to`.
    ///
    /// # Panics
    /// If it does not have that many, or is there for a device alone.
    pub fn copy_to(&self, start: usize, to: &mut [u8]) {
        let from = self.part(start, to.len());
        // SAFETY: mapped and readable (contract of `new`), and of the slice's length; a guest's page is no
        // memory of Rust's.
        unsafe { guest_memory::copy(from.mapped().as_ptr(), to.as_mut_ptr(), to.len()) }
    }

    /// Copies `from` over the bytes from `start` on, which the guest reads. Only reads may use this: the segments of a
    /// write need not be writable.
    ///
    /// # Panics
    /// If it does not have that many, or is there for a device alone.
    pub fn copy_from(&self, start: usize, from: &[u8]) {
        let to = self.part(start, from.len());
        // SAFETY: as above, and writable where the request is a read.
        unsafe { guest_memory::copy(from.as_ptr(), to.mapped().as_ptr(), from.len()) }
    }

    /// Returns a part of it, for callers that split requests.
    ///
    /// # Safety
    /// As for [`keep`](Self::keep).
    ///
    /// # Panics
    /// If it does not have that part.
    pub unsafe fn keep_part(&self, start: usize, len: usize) -> IoSegment {
        self.part(start, len)
    }

    /// Returns a part of it.
    ///
    /// # Panics
    /// If it does not have that part.
    pub(crate) fn part(&self, start: usize, len: usize) -> IoSegment {
        let inside = start.checked_add(len).is_some_and(|end| end <= self.len);
        assert!(inside, "not a part of the segment");
        IoSegment {
            // SAFETY: within the segment, as just checked.
            address: self.address.map(|address| unsafe { address.add(start) }),
            len,
            dma: self.dma.map(|first| first.offset(start)),
        }
    }

    /// Fills it with zeros.
    pub(crate) fn fill_with_zeros(&self) {
        // SAFETY: mapped and, as the request is a read, writable (contract of `new`).
        unsafe { guest_memory::zero(self.mapped().as_ptr(), self.len) }
    }

    /// Returns the bus address of the first byte; the others follow. Queues with
    /// [`DataAccess::Dma`](crate::DataAccess::Dma) always get one.
    pub const fn dma_addr(&self) -> Option<DmaAddr> {
        self.dma
    }
}

#[cold]
#[inline(never)]
fn not_mapped() -> ! {
    panic!("bytes are to be copied that are there for a device alone")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_has_the_bus_address_of_its_own_first_byte() {
        let bytes = [0_u8; 64];
        let dma = DmaAddr::new(0x5000);
        // SAFETY: nothing is submitted.
        let segment = unsafe { IoSegment::new(NonNull::from(&bytes).cast(), 64, dma) };
        let part = segment.part(16, 32).part(8, 8);
        assert_eq!(part.dma_addr(), DmaAddr::new(0x5018));
        let address = segment.address().expect("mapped").addr();
        let part = part.address().expect("mapped").addr();
        assert_eq!(part, address.saturating_add(24));
    }

    #[test]
    fn a_segment_for_a_device_alone_has_no_address() {
        let dma = DmaAddr::new(0x5200).expect("not 0");
        // SAFETY: nothing is submitted.
        let segment = unsafe { IoSegment::for_device(dma, 1024) };
        let part = segment.part(512, 512);
        assert_eq!((segment.address(), part.address()), (None, None));
        assert_eq!(part.dma_addr(), DmaAddr::new(0x5400));
        assert!(segment.is_aligned(512) && !segment.is_aligned(1024));
        assert!(part.is_aligned(512));
    }

    #[test]
    #[should_panic(expected = "for a device alone")]
    fn a_segment_for_a_device_alone_is_not_copied() {
        let dma = DmaAddr::new(0x5200).expect("not 0");
        // SAFETY: nothing is submitted.
        let segment = unsafe { IoSegment::for_device(dma, 512) };
        segment.copy_to(0, &mut [0; 512]);
    }
}
