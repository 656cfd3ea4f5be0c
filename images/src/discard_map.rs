//! The pages of an image that were given back, and the queues that are at work on the others.
//!
//! Reads and writes take no lock, also while another queue discards. Each queue has a [`Reader`]
//! that says whether it is in the middle of a request:
//!
//! ```text
//!   read, write                        discard (one at a time)
//!   1. visit: mark, full fence         1. locked: note the page as released, full fence,
//!   2. is the page released?              see which readers are in the middle of something
//!   3. if not, copy                    2. some time after all of those have left,
//!   4. leave                              locked: clear the page and give it back to Xen
//! ```
//!
//! Of two full fences one is first. If it is the visit's, the discard sees the mark and waits until
//! the copy is over; if it is the discard's, the visit sees that the page is released and does not
//! touch it. Either way no queue touches a page that is gone.
//!
//! A write that meets a released page takes the image's lock, has the page populated if it is gone
//! already, clears it if it is still there, notes it as present, and copies before it gives up the
//! lock: no discard comes between. No queue waits for another while it holds the lock.
//!
//! `tests/discard_map.rs` has all interleavings of this tried, on this very code.

use super::sync::{AtomicU64, AtomicUsize, Ordering, fence};
use alloc::boxed::Box;

/// A queue's mark: an odd number while the queue is in the middle of a request. It is alone in its cache line, because
/// each queue writes its own all the time.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct Reader(AtomicUsize);

/// A visit: a request that is in the middle. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct ReadGuard<'a>(&'a Reader);

impl Reader {
    pub(crate) fn new() -> Reader {
        Reader(AtomicUsize::new(0))
    }

    /// Begins a request: a page that is looked up from here on and not released stays until the
    /// visit ends. A reader makes one visit at a time.
    #[inline]
    pub(crate) fn guard(&self) -> ReadGuard<'_> {
        self.enter();
        ReadGuard(self)
    }

    /// Returns the number of the visit that is going on, if one is.
    pub(crate) fn current_epoch(&self) -> Option<usize> {
        let epoch = self.0.load(Ordering::Acquire);
        (!epoch.is_multiple_of(2)).then_some(epoch)
    }

    /// Returns whether that visit has ended.
    pub(crate) fn has_left(&self, epoch: usize) -> bool {
        self.0.load(Ordering::Acquire) != epoch
    }

    /// Begins a visit that lasts until [`leave`](Self::leave). A reader makes one at a time.
    #[inline]
    pub(crate) fn enter(&self) {
        let before = self.0.load(Ordering::Relaxed);
        // Release: who sees this mark first has to see the end of the visit before, too.
        self.0.store(before.wrapping_add(1), Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// Ends the visit.
    #[inline]
    pub(crate) fn leave(&self) {
        let before = self.0.load(Ordering::Relaxed);
        self.0.store(before.wrapping_add(1), Ordering::Release);
    }
}

impl Drop for ReadGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// Makes noted pages visible to the readers. The caller has noted pages as released, and looks at the readers after
/// this call.
pub(crate) fn announce() {
    fence(Ordering::SeqCst);
}

/// The number of an image's pages that are released.
#[derive(Debug)]
pub(crate) struct Count(AtomicUsize);

impl Count {
    pub(crate) fn new() -> Count {
        Count(AtomicUsize::new(0))
    }

    /// Returns whether there is none.
    #[inline]
    pub(crate) fn is_zero(&self) -> bool {
        self.0.load(Ordering::Acquire) == 0
    }

    pub(crate) fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// The released pages of a run. They change only under the image's lock.
#[derive(Debug)]
pub(crate) struct Released {
    /// The released pages, which no queue may begin to use.
    noted: Box<[AtomicU64]>,
    /// The released pages that Xen has back.
    gone: Box<[AtomicU64]>,
    pages: usize,
}

const BITS: usize = u64::BITS as usize;

impl Released {
    /// Makes the map of `pages` pages, none of which is released.
    pub(crate) fn none_of(pages: usize) -> Released {
        let words = || {
            (0..pages.div_ceil(BITS))
                .map(|_| AtomicU64::new(0))
                .collect()
        };
        Released {
            noted: words(),
            gone: words(),
            pages,
        }
    }

    /// Returns the number of pages in the run, released or not.
    pub(crate) fn pages(&self) -> usize {
        self.pages
    }

    /// Returns whether a page is released, that is: not to be used.
    #[inline]
    pub(crate) fn contains(&self, page: usize) -> bool {
        self.noted[page / BITS].load(Ordering::Acquire) & bit(page) != 0
    }

    /// Returns whether Xen has a page back.
    pub(crate) fn is_gone(&self, page: usize) -> bool {
        self.gone[page / BITS].load(Ordering::Relaxed) & bit(page) != 0
    }

    /// Notes a page that is there as released.
    pub(crate) fn note(&self, page: usize, count: &Count) {
        self.noted[page / BITS].fetch_or(bit(page), Ordering::Relaxed);
        count.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that Xen has a released page back.
    pub(crate) fn lose(&self, page: usize) {
        self.gone[page / BITS].fetch_or(bit(page), Ordering::Relaxed);
    }

    /// Notes a released page as present again, and publishes its content.
    pub(crate) fn regain(&self, page: usize, count: &Count) {
        self.gone[page / BITS].fetch_and(!bit(page), Ordering::Relaxed);
        self.noted[page / BITS].fetch_and(!bit(page), Ordering::Release);
        count.0.fetch_sub(1, Ordering::Release);
    }
}

const fn bit(page: usize) -> u64 {
    1 << (page % BITS)
}
