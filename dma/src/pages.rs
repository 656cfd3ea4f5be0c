//! Pages that a device reads and writes by bus address: its queues, lists of pages, and structures.
//!
//! They are seen as atomic words only, which the device may change at any time.

use alloc::vec::Vec;
use bulkhead_grant::OutOfMemory;
use bulkhead_grant::memory::room_for;
use bulkhead_xen::{DmaAddr, DmaMemory, PAGE_SIZE};
use core::fmt;
use core::mem::ManuallyDrop;
use core::sync::atomic::{AtomicU64, Ordering};

/// The words of a page.
pub const WORDS: usize = PAGE_SIZE / 8;

#[repr(C, align(4096))]
struct Page([AtomicU64; WORDS]);

/// The reason why there are no pages for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoPages {
    /// There is no memory left.
    NoMemory(OutOfMemory),
    /// This domain's memory has no bus addresses: only a PV domain knows them, and is given PCI devices by libxl.
    NoAddress,
}

impl fmt::Display for NoPages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoPages::NoMemory(error) => error.fmt(f),
            NoPages::NoAddress => f.write_str(
                "the driver domain is not a PV domain, so its memory has no bus addresses",
            ),
        }
    }
}

impl core::error::Error for NoPages {}

impl From<OutOfMemory> for NoPages {
    fn from(error: OutOfMemory) -> Self {
        NoPages::NoMemory(error)
    }
}

/// Pages of this domain's own. Each has a bus address of its own: pages that are contiguous here need not be contiguous
/// for a device.
///
/// Dropping this gives them back to the heap, unless a device may still access them: then they are leaked, with an error
/// in the log.
pub struct DmaPages {
    pages: ManuallyDrop<Vec<Page>>,
    addresses: Vec<DmaAddr>,
    /// A device may still access them.
    in_use: bool,
}

impl DmaPages {
    /// Takes `count` pages, which hold zeros.
    pub fn new(memory: &dyn DmaMemory, count: usize) -> Result<DmaPages, NoPages> {
        let mut pages = room_for::<Page>(count)?;
        pages.resize_with(count, || Page([const { AtomicU64::new(0) }; WORDS]));
        let mut addresses = room_for(count)?;
        for page in &pages {
            let address = memory.dma_addr(core::ptr::from_ref(page).cast());
            addresses.push(address.ok_or(NoPages::NoAddress)?);
        }
        Ok(DmaPages {
            pages: ManuallyDrop::new(pages),
            addresses,
            in_use: false,
        })
    }

    /// Returns the bus address of a page. This and the methods below panic if `page` is not below the number of pages.
    #[inline]
    pub fn address(&self, page: usize) -> u64 {
        self.addresses[page].get()
    }

    /// Returns the words of a page.
    #[inline]
    pub fn words(&self, page: usize) -> &[AtomicU64; WORDS] {
        &self.pages[page].0
    }

    /// Overwrites all pages with zeros.
    pub fn clear(&self) {
        let words = self.pages.iter().flat_map(|page| &page.0);
        words.for_each(|word| word.store(0, Ordering::Relaxed));
    }

    /// Copies the first `N` bytes of a page, in the order that they have in memory.
    pub fn copy<const N: usize>(&self, page: usize) -> [u8; N] {
        let words = self.words(page);
        let mut bytes = [0; N];
        for (chunk, word) in bytes.chunks_mut(8).zip(words) {
            let word = word.load(Ordering::Relaxed).to_ne_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
        bytes
    }

    /// Notes whether a device may access the pages from now on.
    pub fn set_in_use(&mut self, in_use: bool) {
        self.in_use = in_use;
    }
}

impl Drop for DmaPages {
    fn drop(&mut self) {
        if self.in_use {
            return log::error!(
                "{} page(s) are leaked: a device that did not stop may still write to them",
                self.pages.len()
            );
        }
        let pages = core::mem::take(&mut *self.pages);
        drop(pages);
    }
}
