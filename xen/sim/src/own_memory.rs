//! One domain's own memory: which pages are in use, pinned by grants or given back, and what frame and what
//! address each has.

use super::numbering::{heap_frame, heap_page, machine_frame, machine_page};
use super::world::DomainKind;
use bulkhead_xen::{Gfn, Mfn, PAGE_SIZE};
use std::ptr;

/// Guest frames of a PVH domain from here on stand for pages of the process itself, by their addresses: what
/// a driver under test allocates is on the process's heap, where on a real Xen it is its domain's memory.
/// They can be one end of a copy and nothing else, as version 1 entries cannot name them.
const HEAP: u64 = 1 << 32;

/// The memory of one domain.
pub(super) struct OwnMemory {
    kind: DomainKind,
    pub(super) base: usize,
    /// Its first page in the file.
    pub(super) first: u64,
    used: Vec<bool>,
    /// For each page, the number of grants that pin it.
    pins: Vec<u32>,
    /// For each page, whether it was given back to the machine.
    released: Vec<bool>,
    /// The number of pages that were given back.
    absent: usize,
    /// The number of pages that the domain may own.
    limit: usize,
    hint: usize,
}

impl OwnMemory {
    /// Takes the process's memory from `base` on, which is `pages` pages of the file from `first` on.
    pub(super) fn new(kind: DomainKind, base: usize, first: u64, pages: usize) -> Self {
        OwnMemory {
            kind,
            base,
            first,
            used: vec![false; pages],
            pins: vec![0; pages],
            released: vec![false; pages],
            absent: 0,
            limit: pages,
            hint: 0,
        }
    }

    /// Returns how many pages it has room for, those included that were given back.
    pub(super) fn pages(&self) -> usize {
        self.used.len()
    }

    /// Allocates `count` contiguous pages and zeroes them; returns the first one's
    /// address.
    pub(super) fn allocate(&mut self, count: usize) -> Option<usize> {
        let pages = self.used.len();
        let free = |page: usize| page < pages && !self.used[page] && !self.released[page];
        let start = (self.hint..pages)
            .chain(0..self.hint)
            .find(|&at| (at..at + count).all(free))?;
        self.used[start..start + count].fill(true);
        self.hint = start + count;
        let address = self.base + start * PAGE_SIZE;
        // SAFETY: these pages are own memory, mapped, and until now nobody's.
        unsafe { ptr::write_bytes(address as *mut u8, 0, count * PAGE_SIZE) };
        Some(address)
    }

    /// Takes back pages that [`allocate`](Self::allocate) gave. Names the first one that another
    /// domain still has mapped, if any.
    pub(super) fn free(&mut self, address: usize, count: usize) -> Option<Gfn> {
        let start = (address - self.base) / PAGE_SIZE;
        for page in start..start + count {
            assert!(self.used[page], "page {page} is freed but not in use");
            self.used[page] = false;
        }
        let shared = (start..start + count).find(|&page| self.pins[page] > 0)?;
        Some(self.frame(shared))
    }

    pub(super) fn pages_in_use(&self) -> usize {
        self.used.iter().filter(|used| **used).count()
    }

    /// The frame of one of its pages, as the domain names it.
    fn frame(&self, page: usize) -> Gfn {
        let page = self.first + page as u64;
        match self.kind {
            DomainKind::Pvh => Gfn(page),
            DomainKind::Pv => machine_frame(page).into(),
        }
    }

    fn index(&self, frame: Gfn) -> Option<usize> {
        let page = match self.kind {
            DomainKind::Pvh => frame.0,
            DomainKind::Pv => machine_page(Mfn(frame.0))?,
        };
        let index = usize::try_from(page.checked_sub(self.first)?).ok()?;
        (index < self.used.len()).then_some(index)
    }

    /// The frame that stands for a page on the process's heap.
    pub(super) fn heap_frame(&self, address: usize) -> Gfn {
        let page = (address / PAGE_SIZE) as u64;
        match self.kind {
            DomainKind::Pvh => Gfn(HEAP + page),
            DomainKind::Pv => heap_frame(page).into(),
        }
    }

    /// The address of the heap page that a frame stands for.
    fn heap_address(&self, frame: Gfn) -> Option<usize> {
        let page = match self.kind {
            DomainKind::Pvh => frame.0.checked_sub(HEAP)?,
            DomainKind::Pv => heap_page(Mfn(frame.0))?,
        };
        Some(page as usize * PAGE_SIZE)
    }

    pub(super) fn owns(&self, frame: Gfn) -> bool {
        self.is_present(frame) || self.heap_address(frame).is_some()
    }

    /// Returns whether a frame is a page of the domain's that was not released.
    pub(super) fn is_present(&self, frame: Gfn) -> bool {
        self.index(frame).is_some_and(|index| !self.released[index])
    }

    /// The machine frame of one of the domain's own frames.
    pub(super) fn machine_frame(&self, frame: Gfn) -> Mfn {
        match self.kind {
            DomainKind::Pvh => machine_frame(frame.0),
            DomainKind::Pv => Mfn(frame.0),
        }
    }

    /// The frame behind an address; none if that page was released.
    pub(super) fn frame_of(&self, address: usize) -> Option<Gfn> {
        let page = self.page(address)?;
        (!self.released[page]).then(|| self.frame(page))
    }

    fn page(&self, address: usize) -> Option<usize> {
        let page = address.checked_sub(self.base)? / PAGE_SIZE;
        (page < self.used.len()).then_some(page)
    }

    /// Returns the last free page, if more than `reserve` are unused.
    pub(super) fn spare(&self, reserve: usize) -> Option<usize> {
        let is_spare = |page: &usize| !self.used[*page] && !self.released[*page];
        let spare = (0..self.used.len()).rev().filter(is_spare);
        let last = spare.clone().next()?;
        (spare.count() > reserve).then(|| self.base + last * PAGE_SIZE)
    }

    /// Returns the free pages that were given back.
    pub(super) fn missing(&self) -> impl Iterator<Item = usize> {
        let is_missing = |page: &usize| !self.used[*page] && self.released[*page];
        let all = (0..self.used.len()).filter(is_missing);
        all.map(|page| self.base + page * PAGE_SIZE)
    }

    /// Returns how many allocated pages were given back.
    pub(super) fn lent_back(&self) -> usize {
        let both = self.used.iter().zip(&self.released);
        both.filter(|(used, released)| **used && **released).count()
    }

    /// Returns how many pages the domain owns.
    pub(super) fn present(&self) -> usize {
        self.used.len() - self.absent
    }

    pub(super) fn set_limit(&mut self, pages: usize) {
        self.limit = pages;
    }

    /// The frame of a page that the domain is about to lose, and whether a domain has it mapped.
    /// `None` if it has no such page.
    pub(super) fn give_up(&mut self, address: usize) -> Option<(Gfn, bool)> {
        let frame = self.frame_of(address)?;
        let page = self.page(address)?;
        self.released[page] = true;
        self.absent += 1;
        Some((frame, self.pins[page] > 0))
    }

    /// Returns whether the page at that address was released.
    pub(super) fn is_released(&self, address: usize) -> bool {
        self.page(address).is_some_and(|page| self.released[page])
    }

    /// Lets a released page be memory again and returns its frame, unless the domain owns all it
    /// may.
    pub(super) fn get_back(&mut self, address: usize) -> Option<Gfn> {
        if self.present() >= self.limit {
            return None;
        }
        let page = self.page(address)?;
        self.released[page] = false;
        self.absent -= 1;
        self.frame_of(address)
    }

    /// Returns where the process finds one of the domain's own frames.
    pub(super) fn address_of(&self, frame: Gfn) -> Option<usize> {
        match self.index(frame) {
            Some(index) => Some(self.base + index * PAGE_SIZE),
            None => self.heap_address(frame),
        }
    }

    pub(super) fn pin(&mut self, frame: Gfn) {
        let index = self.index(frame).expect("only own frames are pinned");
        self.pins[index] += 1;
    }

    pub(super) fn unpin(&mut self, frame: Gfn) {
        let index = self.index(frame).expect("only own frames are pinned");
        self.pins[index] -= 1;
    }
}
