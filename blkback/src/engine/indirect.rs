//! Indirect requests: their segments lie in pages of the frontend's, which are mapped persistently
//! or copied by the hypervisor, all those of a sweep at once.

use super::bounce::Bounce;
use super::descriptors::DescriptorCopy;
use super::mappings::Mappings;
use super::pages::{InflightPages, Pages};
use alloc::vec::Vec;
use bulkhead_grant::memory::room_for;
use bulkhead_grant::{CachedMapping, Copied, Direction, GrantAccess, GrantedBytes, OutOfMemory};
use bulkhead_ring::blkif::{
    BadSegment, INDIRECT_SEGMENT_SIZE, Indirect, SEGMENTS_PER_INDIRECT_PAGE,
};
use bulkhead_xen::{GrantRef, GrantStatus, Hypervisor};
use core::fmt;

/// The most descriptor pages that one sweep fetches.
pub(super) const MOST_DESCRIPTOR_PAGES: usize = 32;

/// A page of segments that is being fetched.
struct DescriptorPage {
    gref: GrantRef,
    fetched: Fetched,
    start: u16,
    count: u16,
}

enum Fetched {
    Cached(CachedMapping),
    Copied(Copied),
    /// The page could not be mapped, so it was copied by itself.
    Bounced(Result<(), GrantStatus>),
    Refused,
}

/// The place of an indirect request's segments, once they are fetched.
#[derive(Clone, Copy, Debug)]
pub struct DescriptorRange {
    start: u16,
    segments: u16,
    first_page: u16,
    pages: u16,
}

/// The reason why an indirect request's segments cannot be used.
#[derive(Clone, Copy, Debug)]
pub enum IndirectFault {
    /// A page that holds them cannot be read.
    Page(GrantStatus),
    /// A segment does not lie within a page.
    Segment(BadSegment),
}

impl fmt::Display for IndirectFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Page(status) => write!(f, "its segments cannot be read: {status}"),
            Self::Segment(error) => error.fmt(f),
        }
    }
}

/// Fetches the segments of a sweep's indirect requests into a private copy.
pub(super) struct Descriptors {
    copy: DescriptorCopy,
    pages: Vec<DescriptorPage>,
}

impl Descriptors {
    /// Returns room for `segments` segments a sweep.
    pub fn new(segments: usize) -> Result<Self, OutOfMemory> {
        Ok(Descriptors {
            copy: DescriptorCopy::new(segments)?,
            pages: room_for(MOST_DESCRIPTOR_PAGES)?,
        })
    }

    /// Notes the descriptor pages of a request to be fetched; `None` if this sweep has no room.
    pub fn queue<H: Hypervisor>(
        &mut self,
        mappings: &mut Mappings<H>,
        indirect: &Indirect,
    ) -> Option<DescriptorRange> {
        let (segments, pages) = (indirect.segments(), indirect.pages());
        let first_page = self.pages.len();
        if first_page + pages.len() > MOST_DESCRIPTOR_PAGES {
            return None;
        }
        let start = self.copy.take(segments)?;
        for (number, &gref) in pages.iter().enumerate() {
            let done = number * SEGMENTS_PER_INDIRECT_PAGE;
            let count = (segments - done).min(SEGMENTS_PER_INDIRECT_PAGE);
            let fetched = match mappings {
                Mappings::Persistent(cache) => cache
                    .hold(gref, GrantAccess::ReadOnly)
                    .map_or(Fetched::Refused, Fetched::Cached),
                Mappings::PerRequest { descriptors, .. }
                | Mappings::ForDevice { descriptors, .. } => {
                    let bytes = GrantedBytes {
                        gref,
                        offset: 0,
                        len: count * INDIRECT_SEGMENT_SIZE,
                    };
                    let to = self.copy.address(start + done);
                    // SAFETY: room for so many segments, taken above; it is not read before the
                    // batch has run, and lives as long as the batch.
                    unsafe { descriptors.queue(Direction::FromGranted, bytes, to) }
                        .map_or(Fetched::Refused, Fetched::Copied)
                }
            };
            self.pages.push(DescriptorPage {
                gref,
                fetched,
                // A queue has fewer segments than 65,536 in a sweep.
                start: (start + done) as u16,
                count: count as u16,
            });
        }
        Some(DescriptorRange {
            start: start as u16,
            segments: segments as u16,
            first_page: first_page as u16,
            pages: pages.len() as u16,
        })
    }

    /// Fetches all descriptor pages noted: at most one hypercall.
    pub fn fetch<H: Hypervisor>(&mut self, mappings: &mut Mappings<H>, bounce: &mut Bounce<H>) {
        match mappings {
            Mappings::Persistent(cache) => {
                cache.map_queued();
                for page in &mut self.pages {
                    let address = match &page.fetched {
                        Fetched::Cached(cached) => cache.address(cached),
                        _ => Err(GrantStatus::NO_SPACE),
                    };
                    if let Ok(address) = address {
                        // SAFETY: a mapped page, held until `clear`; a page holds so many.
                        unsafe {
                            self.copy
                                .copy_from(page.start.into(), page.count.into(), address)
                        };
                    } else if address == Err(GrantStatus::NO_SPACE) {
                        let bytes = GrantedBytes {
                            gref: page.gref,
                            offset: 0,
                            len: usize::from(page.count) * INDIRECT_SEGMENT_SIZE,
                        };
                        // SAFETY: room for so many segments, taken in `queue`; nothing reads it now.
                        let outcome =
                            unsafe { bounce.fetch(bytes, self.copy.address(page.start.into())) };
                        let before =
                            core::mem::replace(&mut page.fetched, Fetched::Bounced(outcome));
                        if let Fetched::Cached(cached) = before {
                            cache.release(cached);
                        }
                    }
                }
            }
            Mappings::PerRequest { descriptors, .. } | Mappings::ForDevice { descriptors, .. } => {
                descriptors.run()
            }
        }
    }

    /// Reads the segments of a request from the private copy into `pages`, and returns the number of their bytes.
    pub fn read<H: Hypervisor>(
        &self,
        mappings: &Mappings<H>,
        place: DescriptorRange,
        pool: &mut InflightPages,
        pages: &mut Pages,
    ) -> Result<usize, IndirectFault> {
        let fetched = &self.pages[place.first_page.into()..][..place.pages.into()];
        for page in fetched {
            match (mappings, &page.fetched) {
                (Mappings::Persistent(cache), Fetched::Cached(cached)) => {
                    cache.address(cached).map(|_| ())
                }
                (
                    Mappings::PerRequest { descriptors, .. }
                    | Mappings::ForDevice { descriptors, .. },
                    Fetched::Copied(copied),
                ) => descriptors.status(copied),
                (Mappings::Persistent(_), Fetched::Bounced(outcome)) => *outcome,
                _ => Err(GrantStatus::GENERAL_ERROR),
            }
            .map_err(IndirectFault::Page)?;
        }
        let segments = self
            .copy
            .segments(place.start.into(), place.segments.into());
        pool.push(pages, segments).map_err(IndirectFault::Segment)
    }

    /// Forgets the descriptor pages of this sweep.
    pub fn clear<H: Hypervisor>(&mut self, mappings: &mut Mappings<H>) {
        for page in self.pages.drain(..) {
            if let (Mappings::Persistent(cache), Fetched::Cached(cached)) =
                (&mut *mappings, page.fetched)
            {
                cache.release(cached);
            }
        }
        if let Mappings::PerRequest { descriptors, .. } | Mappings::ForDevice { descriptors, .. } =
            mappings
        {
            descriptors.clear();
        }
        self.copy.clear();
    }
}
