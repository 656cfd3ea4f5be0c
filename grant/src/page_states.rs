//! The states of a pool's pages, and which of them are free.

use crate::memory::{OutOfMemory, filled};
use alloc::vec::Vec;
use bulkhead_xen::{GrantHandle, GrantStatus};

/// The end of the list of free pages.
const NONE: u32 = u32::MAX;

/// The state of a page. There is one for each page of every queue, so its numbers are kept as bytes, which
/// need no alignment: 5 bytes instead of 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageState {
    /// Free, and the next free page after it.
    Free([u8; 4]),
    /// Queued for mapping, or refused with a status.
    Unmapped([u8; 2]),
    /// Mapped, and the grant handle.
    Mapped([u8; 4]),
    /// Queued for unmapping.
    Leaving,
    /// Unmapping was refused, or is not allowed any more: Xen may still have the page there. Never used again.
    Stuck,
}

const _: () = assert!(size_of::<PageState>() == 5);

impl PageState {
    fn free(next: u32) -> PageState {
        PageState::Free(next.to_ne_bytes())
    }

    #[inline]
    pub(crate) fn unmapped(status: GrantStatus) -> PageState {
        PageState::Unmapped(status.0.to_ne_bytes())
    }

    #[inline]
    pub(crate) fn mapped(handle: GrantHandle) -> PageState {
        PageState::Mapped(handle.0.to_ne_bytes())
    }
}

/// The states of all pages of a pool.
pub(crate) struct PageStates {
    states: Vec<PageState>,
    /// The first free page; each names the next.
    free: u32,
    free_count: usize,
}

impl PageStates {
    /// Returns the states of `pages` free pages.
    pub(crate) fn new(pages: usize) -> Result<PageStates, OutOfMemory> {
        let next = |page: usize| {
            if page + 1 < pages {
                page as u32 + 1
            } else {
                NONE
            }
        };
        Ok(PageStates {
            states: filled(pages, |page| PageState::free(next(page)))?,
            free: if pages > 0 { 0 } else { NONE },
            free_count: pages,
        })
    }

    /// Returns the number of pages.
    pub(crate) fn len(&self) -> usize {
        self.states.len()
    }

    /// Returns the number of free pages.
    #[inline]
    pub(crate) fn free_pages(&self) -> usize {
        self.free_count
    }

    /// Returns whether all pages are free.
    pub(crate) fn are_all_free(&self) -> bool {
        self.free_count == self.states.len()
    }

    #[inline]
    pub(crate) fn get(&self, page: usize) -> PageState {
        self.states[page]
    }

    #[inline]
    pub(crate) fn set(&mut self, page: usize, state: PageState) {
        self.states[page] = state;
    }

    /// Takes a free page, whose state is to be set.
    #[inline]
    pub(crate) fn take_free(&mut self) -> Option<usize> {
        let page = self.free as usize;
        let PageState::Free(next) = *self.states.get(page)? else {
            return None;
        };
        self.free = u32::from_ne_bytes(next);
        self.free_count -= 1;
        Some(page)
    }

    #[inline(always)]
    pub(crate) fn set_free(&mut self, page: usize) {
        self.states[page] = PageState::free(self.free);
        self.free = page as u32;
        self.free_count += 1;
    }

    /// Leaves every page that is mapped as it is for ever. Returns how many these are.
    pub(crate) fn leave_mapped(&mut self) -> usize {
        let mapped = self.states.iter_mut();
        let mapped = mapped.filter(|state| matches!(state, PageState::Mapped(_)));
        mapped.map(|state| *state = PageState::Stuck).count()
    }
}
