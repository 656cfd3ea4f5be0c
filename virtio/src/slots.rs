//! The requests of a queue, from the time at which the device may see them until it has used them.
//!
//! Each has a page: the indirect descriptors of its chain, its header (virtio 1.2, section 5.2.6), the range of sectors
//! if it is a discard, and the status byte that the device writes.

use alloc::vec::Vec;
use bulkhead_dma::{DmaPages, NoPages, WORDS};
use bulkhead_grant::memory::filled;
use bulkhead_images::{IoError, IoSegment, Tag};
use bulkhead_xen::DmaMemory;
use core::sync::atomic::{AtomicU64, Ordering};
use virtio_spec::blk::{S, T};
use virtio_spec::virtq::DescF;

/// The offsets in a page, in words of eight bytes.
const HEADER: usize = WORDS - 16;
const RANGE: usize = HEADER + 2;
const STATUS: usize = RANGE + 2;

/// The most descriptors of a page.
const DESCRIPTORS: usize = HEADER / 2;

/// The most segments of a request: a chain also has a header and a status.
pub const MOST_SEGMENTS: usize = DESCRIPTORS - 2;

/// The sizes of a header, and of a range, in bytes.
const HEADER_BYTES: u32 = 16;
const RANGE_BYTES: u32 = 16;

/// The flag of a range of Write Zeroes that may be deallocated.
const UNMAP: u64 = 1;

/// The value of a status byte until the device writes to it.
const NO_OUTCOME: u8 = 0xff;

/// The sectors that a request without data is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SectorRange {
    /// The first sector.
    pub start: u64,
    /// The number of sectors.
    pub count: u64,
}

/// A slot, and the request in it, if it is used.
#[derive(Clone, Copy, Debug)]
pub struct RequestSlot {
    /// Its tag in the guest's queue.
    pub tag: Tag,
    /// The queue that it came from.
    pub client: u16,
    /// The sectors of a discard that are not done: the part that the device has, and all that come after that.
    pub range: SectorRange,
    /// The most bytes that the device may write.
    pub writable: u32,
    /// The number of descriptors of its chain.
    pub descriptors: u16,
    /// The time at which the device was given it, in seconds.
    pub since: u32,
    /// The number of times that it was asked again; a reset on its account counts twice.
    pub retries: u8,
    /// The device may have it.
    pub used: bool,
    /// It was cancelled: it is not asked again.
    pub unwanted: bool,
    /// It takes too long: the device is reset because of it.
    pub late: bool,
}

const UNUSED: RequestSlot = RequestSlot {
    tag: Tag(0),
    client: 0,
    range: SectorRange { start: 0, count: 0 },
    writable: 0,
    descriptors: 0,
    since: 0,
    retries: 0,
    used: false,
    unwanted: false,
    late: false,
};

/// All slots of a queue.
pub struct RequestSlots {
    all: Vec<RequestSlot>,
    free: Vec<u8>,
    pages: DmaPages,
}

/// A chain of descriptors that is being written.
pub struct Chain<'t> {
    words: &'t [AtomicU64],
    /// The number of the first descriptor in its table.
    first: u16,
    len: u16,
    writable: u32,
}

impl<'t> Chain<'t> {
    /// Begins a chain in `words`, two for each descriptor. The first descriptor has the number `first` in its table.
    pub fn new(words: &'t [AtomicU64], first: u16) -> Chain<'t> {
        Chain {
            words,
            first,
            len: 0,
            writable: 0,
        }
    }

    /// Adds a descriptor of `len` bytes at a bus address, which the device writes or reads. Another one follows, unless
    /// it is the `last`. Returns false if there is no room.
    #[inline]
    fn add(&mut self, address: u64, len: u32, written: bool, last: bool) -> bool {
        let at = 2 * usize::from(self.len);
        let Some([first, second]) = self.words.get(at..at + 2) else {
            return false;
        };
        let mut flags = DescF::empty();
        flags.set(DescF::WRITE, written);
        flags.set(DescF::NEXT, !last);
        self.len += 1;
        let next = if last { 0 } else { self.first + self.len };
        first.store(address.to_le(), Ordering::Relaxed);
        second.store(descriptor(len, flags, next).to_le(), Ordering::Relaxed);
        if written {
            self.writable = self.writable.saturating_add(len);
        }
        true
    }
}

/// Returns the second word of a descriptor.
#[inline]
fn descriptor(len: u32, flags: DescF, next: u16) -> u64 {
    u64::from(len) | u64::from(flags.bits().to_ne()) << 32 | u64::from(next) << 48
}

/// Returns the words of a descriptor that names an indirect table with `descriptors` descriptors at a bus address.
#[inline]
pub fn indirect(address: u64, descriptors: u16) -> [u64; 2] {
    [
        address,
        descriptor(u32::from(descriptors) * 16, DescF::INDIRECT, 0),
    ]
}

/// A request for the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its type.
    pub kind: T,
    /// The first sector of its data.
    pub sector: u64,
    /// The sectors of a discard; none for other requests.
    pub range: SectorRange,
    /// The most sectors that are discarded at a time.
    pub most: u32,
}

impl RequestSlots {
    /// Allocates the memory of `count` slots.
    pub fn new(memory: &dyn DmaMemory, count: usize) -> Result<RequestSlots, NoPages> {
        Ok(RequestSlots {
            all: filled(count, |_| UNUSED)?,
            free: filled(count, |slot| (count - 1 - slot) as u8)?,
            pages: DmaPages::new(memory, count)?,
        })
    }

    /// Returns the number of slots.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Returns the number of slots that are free.
    #[inline]
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Returns whether all slots are free.
    pub fn all_free(&self) -> bool {
        self.free.len() == self.all.len()
    }

    /// Notes whether the device may access the pages from now on.
    pub fn set_in_use(&mut self, in_use: bool) {
        self.pages.set_in_use(in_use);
    }

    /// Returns the slot that [`take`](Self::take) would take.
    #[inline]
    pub fn next(&self) -> Option<usize> {
        self.free.last().map(|slot| usize::from(*slot))
    }

    /// Takes the [next](Self::next) slot for a request.
    #[inline]
    pub fn take(&mut self, slot: RequestSlot) {
        if let Some(number) = self.free.pop() {
            self.all[usize::from(number)] = RequestSlot { used: true, ..slot };
        }
    }

    /// Returns a slot.
    #[inline]
    pub fn get(&mut self, number: usize) -> &mut RequestSlot {
        &mut self.all[number]
    }

    /// Returns the number of a slot, if the device has what is in it.
    #[inline]
    pub fn find(&self, number: usize) -> Option<usize> {
        let slot = self.all.get(number)?;
        slot.used.then_some(number)
    }

    /// Returns all slots that are used.
    pub fn used(&mut self) -> impl Iterator<Item = &mut RequestSlot> {
        self.all.iter_mut().filter(|slot| slot.used)
    }

    /// Frees a slot, and returns what was in it.
    #[inline]
    pub fn release(&mut self, number: usize) -> RequestSlot {
        let slot = &mut self.all[number];
        debug_assert!(slot.used);
        slot.used = false;
        self.free.push(number as u8);
        *slot
    }

    /// Returns the bus address of a slot's indirect table, and its words.
    #[inline]
    pub fn table(&self, number: usize) -> (u64, &[AtomicU64]) {
        let words = &self.pages.words(number)[..2 * DESCRIPTORS];
        (self.pages.address(number), words)
    }

    #[inline]
    fn address(&self, number: usize, word: usize) -> u64 {
        self.pages.address(number) + (word * 8) as u64
    }

    /// Writes a request into a slot's page, and its chain of descriptors. Returns their number, and the most bytes
    /// that the device may write.
    #[inline]
    pub fn build(
        &self,
        number: usize,
        mut chain: Chain<'_>,
        request: &Request,
        segments: &[IoSegment],
    ) -> Result<(u16, u32), IoError> {
        let words = self.pages.words(number);
        let kind = u64::from(u32::from(request.kind));
        words[HEADER].store(kind.to_le(), Ordering::Relaxed);
        words[HEADER + 1].store(request.sector.to_le(), Ordering::Relaxed);
        self.clear_outcome(number);
        let mut fits = chain.add(self.address(number, HEADER), HEADER_BYTES, false, false);
        let reads = request.kind == T::In;
        for segment in segments {
            let address = match segment.dma_addr() {
                Some(address) if !segment.is_empty() => address,
                _ => return Err(IoError::Medium),
            };
            fits &= chain.add(address.get(), segment.len() as u32, reads, false);
        }
        if matches!(request.kind, T::Discard | T::WriteZeroes) {
            self.set_range(number, request);
            fits &= chain.add(self.address(number, RANGE), RANGE_BYTES, false, false);
        }
        fits &= chain.add(self.address(number, STATUS), 1, true, true);
        match fits {
            true => Ok((chain.len, chain.writable)),
            false => Err(IoError::NotSupported),
        }
    }

    /// Writes the first part of what is forgotten.
    pub fn set_range(&self, number: usize, request: &Request) {
        let words = self.pages.words(number);
        let count = request.range.count.min(request.most.into());
        // Discarding has no flags.
        let flags = match request.kind {
            T::WriteZeroes => UNMAP,
            _ => 0,
        };
        words[RANGE].store(request.range.start.to_le(), Ordering::Relaxed);
        words[RANGE + 1].store((count | flags << 32).to_le(), Ordering::Relaxed);
    }

    /// Prepares the byte for the outcome of a request.
    #[inline]
    pub fn clear_outcome(&self, number: usize) {
        let word = u64::from(NO_OUTCOME).to_le();
        self.pages.words(number)[STATUS].store(word, Ordering::Relaxed);
    }

    /// Reads the outcome of a request that the device has used.
    #[inline]
    pub fn outcome(&self, number: usize) -> Result<(), IoError> {
        let word = &self.pages.words(number)[STATUS];
        match u64::from_le(word.load(Ordering::Relaxed)) as u8 {
            0 => Ok(()),
            other => Err(failure(other)),
        }
    }
}

#[cold]
fn failure(status: u8) -> IoError {
    match S::try_from(status) {
        Ok(S::Unsupp) => IoError::NotSupported,
        // Also where the device has written nothing.
        _ => IoError::Medium,
    }
}
