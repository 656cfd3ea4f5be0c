//! The pages of the requests in flight, in one pool.

use alloc::vec::Vec;
use bulkhead_grant::memory::filled;
use bulkhead_grant::{CachedMapping, Copied, DeviceMapping, Mapping, OutOfMemory};
use bulkhead_ring::blkif::{SECTOR_SIZE, Segment};
use bulkhead_xen::GrantRef;

/// A granted page of a request, and the bytes of it that the request has.
#[derive(Debug)]
pub struct Page {
    /// The grant.
    pub gref: GrantRef,
    /// The first sector within the page, of which it has eight.
    first: u8,
    /// The number of sectors.
    sectors: u8,
    /// The way in which it is reached.
    pub hold: Hold,
    /// The next page of its request, or the next free place in the pool.
    next: u16,
}

const _: () = assert!(size_of::<Page>() == 16);

impl Page {
    /// Returns the first byte within the page.
    #[inline]
    pub fn offset(&self) -> usize {
        usize::from(self.first) * SECTOR_SIZE
    }

    /// Returns the number of bytes.
    pub fn len(&self) -> usize {
        usize::from(self.sectors) * SECTOR_SIZE
    }
}

/// The way in which a page is reached.
#[derive(Debug)]
pub enum Hold {
    /// The page is not reached yet, or not any more.
    None,
    /// The page is mapped for this request.
    Mapped(Mapping),
    /// The page is mapped for this request, and for the device alone.
    ForDevice(DeviceMapping),
    /// The page is mapped for this request and later ones.
    Kept(CachedMapping),
    /// The hypervisor copies it.
    Copied(Copied),
}

/// Marks the end of a list.
pub const NONE: u16 = u16::MAX;

/// The pages of one request, in their order: a list through the pool that they lie in.
#[derive(Debug)]
pub struct Pages {
    first: u16,
    last: u16,
    len: u16,
}

impl Pages {
    /// Returns a list without pages.
    pub const EMPTY: Pages = Pages {
        first: NONE,
        last: NONE,
        len: 0,
    };

    /// Returns the number of pages.
    pub fn len(&self) -> usize {
        self.len.into()
    }
}

/// The pages of all requests in flight. One request may have hundreds of pages and most have one, so all of them share
/// one pool.
pub struct InflightPages {
    pages: Vec<Page>,
    free: u16,
    free_count: usize,
}

impl InflightPages {
    /// Returns a pool with room for `count` pages.
    pub fn new(count: usize) -> Result<Self, OutOfMemory> {
        debug_assert!(count < NONE.into(), "{count} pages");
        let page = |number: usize| Page {
            gref: GrantRef(0),
            first: 0,
            sectors: 0,
            hold: Hold::None,
            next: if number + 1 < count {
                number as u16 + 1
            } else {
                NONE
            },
        };
        Ok(InflightPages {
            pages: filled(count, page)?,
            free: if count > 0 { 0 } else { NONE },
            free_count: count,
        })
    }

    /// Returns the number of pages that there is room for.
    pub fn free(&self) -> usize {
        self.free_count
    }

    /// Adds the pages of segments to a request's, up to the first segment that is none or finds no room. Returns the
    /// number of bytes that were added, or the error in the place of a segment.
    #[inline]
    pub fn push<E>(
        &mut self,
        pages: &mut Pages,
        segments: impl Iterator<Item = Result<Segment, E>>,
    ) -> Result<usize, E> {
        // The free places are a list already: its first part becomes the request's.
        let (mut at, mut last) = (self.free, NONE);
        let (mut count, mut sectors) = (0, 0);
        let mut outcome = Ok(());
        for segment in segments {
            let segment = match segment {
                Ok(segment) => segment,
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            };
            let Some(page) = self.pages.get_mut(usize::from(at)) else {
                debug_assert!(false, "room was looked for");
                break;
            };
            page.gref = segment.gref();
            // Neither is more than the sectors of a page.
            page.first = segment.first();
            page.sectors = segment.last() - segment.first() + 1;
            sectors += usize::from(page.sectors);
            count += 1;
            (last, at) = (at, page.next);
        }
        if let Some(end) = self.pages.get_mut(usize::from(last)) {
            end.next = NONE;
            let first = core::mem::replace(&mut self.free, at);
            match self.pages.get_mut(usize::from(pages.last)) {
                Some(before) => before.next = first,
                None => pages.first = first,
            }
            pages.last = last;
            pages.len += count;
            self.free_count -= usize::from(count);
        }
        outcome.map(|()| sectors * SECTOR_SIZE)
    }

    /// Returns the pages of a request, in their order.
    #[inline]
    pub fn iter(&self, pages: &Pages) -> impl Iterator<Item = &Page> + use<'_> {
        let mut at = pages.first;
        core::iter::from_fn(move || {
            let page = self.pages.get(usize::from(at))?;
            at = page.next;
            Some(page)
        })
    }

    /// Calls `each` with every page of a request, in their order.
    #[inline]
    pub fn for_each(&mut self, pages: &Pages, mut each: impl FnMut(&mut Page)) {
        let mut at = pages.first;
        while let Some(page) = self.pages.get_mut(usize::from(at)) {
            at = page.next;
            each(page);
        }
    }

    /// Frees the room of a request's pages. Calls `each` with the way in which each of them was reached.
    #[inline]
    pub fn drain(&mut self, pages: &mut Pages, mut each: impl FnMut(Hold)) {
        let Pages { first, last, len } = core::mem::replace(pages, Pages::EMPTY);
        let mut at = first;
        while let Some(page) = self.pages.get_mut(usize::from(at)) {
            each(core::mem::replace(&mut page.hold, Hold::None));
            at = page.next;
        }
        if let Some(page) = self.pages.get_mut(usize::from(last)) {
            page.next = core::mem::replace(&mut self.free, first);
            self.free_count += usize::from(len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(pool: &mut InflightPages, pages: &mut Pages, grefs: &[u32]) -> Result<usize, ()> {
        let segment = |gref: &u32| match gref {
            0 => Err(()),
            gref => Ok(Segment::whole(GrantRef(*gref))),
        };
        pool.push(pages, grefs.iter().map(segment))
    }

    fn grefs(pool: &InflightPages, pages: &Pages) -> Vec<u32> {
        pool.iter(pages).map(|page| page.gref.0).collect()
    }

    #[test]
    fn requests_share_the_room_for_pages() {
        let mut pool = InflightPages::new(4).unwrap();
        let (mut one, mut two) = (Pages::EMPTY, Pages::EMPTY);
        for gref in 1..3 {
            assert_eq!(push(&mut pool, &mut one, &[gref]), Ok(4096));
            assert_eq!(push(&mut pool, &mut two, &[gref + 10]), Ok(4096));
        }
        assert_eq!(pool.free(), 0, "four pages are all");
        assert_eq!(grefs(&pool, &one), [1, 2]);
        assert_eq!(grefs(&pool, &two), [11, 12]);
        let mut given_back = 0;
        pool.drain(&mut one, |_| given_back += 1);
        assert_eq!((given_back, one.len(), pool.free()), (2, 0, 2));
        assert_eq!(push(&mut pool, &mut two, &[13, 14]), Ok(8192));
        assert_eq!(grefs(&pool, &two), [11, 12, 13, 14]);
        pool.drain(&mut two, |_| ());
        pool.drain(&mut one, |_| ());
        assert_eq!(pool.free(), 4);
    }

    #[test]
    fn the_pages_before_a_bad_segment_are_the_requests_and_are_given_back() {
        let mut pool = InflightPages::new(4).unwrap();
        let mut pages = Pages::EMPTY;
        assert_eq!(push(&mut pool, &mut pages, &[0]), Err(()));
        assert_eq!((pages.len(), pool.free()), (0, 4));
        assert_eq!(push(&mut pool, &mut pages, &[7, 8, 0, 9]), Err(()));
        assert_eq!(grefs(&pool, &pages), [7, 8]);
        assert_eq!(pool.free(), 2);
        pool.drain(&mut pages, |_| ());
        assert_eq!(pool.free(), 4);
        assert_eq!(push(&mut pool, &mut pages, &[1, 2, 3, 4]), Ok(4 * 4096));
        assert_eq!(grefs(&pool, &pages), [1, 2, 3, 4]);
    }
}
