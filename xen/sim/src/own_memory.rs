//! The memory of one domain: its pages that are in use, pinned by grants or given back, and the frame and the address
//! of each.

use super::numbering::{heap_frame, heap_page, machine_frame, machine_page};
use super::world::DomainKind;
use bulkhead_xen::{Gfn, Mfn, PAGE_SIZE, Pfn};
use std::collections::{BTreeMap, BTreeSet};
use std::ptr;

/// The first guest frame of a PVH domain that stands for a page of the process itself, by its address: memory that a
/// driver under test allocates is on the process's heap, where on a real Xen it is its domain's memory. Such frames can
/// be one end of a copy and nothing else, as version 1 entries cannot name them.
const HEAP: u64 = 1 << 32;

/// The memory of one domain.
pub(super) struct OwnMemory {
    kind: DomainKind,
    pub(super) base: usize,
    /// The page frame number of its first page, which is also that page's place in the file at the start.
    first: u64,
    /// For each page, the page of the file that is behind it, or would be.
    behind: Vec<u64>,
    /// The pages of those that are not in their place at the start, by the page of the file.
    moved: BTreeMap<u64, usize>,
    used: Vec<bool>,
    /// The pages that the domain itself has taken.
    taken: Vec<bool>,
    /// The pages among them that a boot before the present one had granted when it crashed.
    granted_before: Vec<bool>,
    /// For each page, the number of grants that pin it.
    pins: Vec<u32>,
    /// For each page, whether it was given back to the machine.
    released: Vec<bool>,
    /// The number of pages that were given back.
    absent: usize,
    /// Pages whose frame another domain has given, and that have not adopted it yet: the domain owns the
    /// frame, and has nothing at the address.
    arrived: Vec<usize>,
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
            behind: (first..first + pages as u64).collect(),
            moved: BTreeMap::new(),
            used: vec![false; pages],
            taken: vec![false; pages],
            granted_before: vec![false; pages],
            pins: vec![0; pages],
            released: vec![false; pages],
            absent: 0,
            arrived: Vec::new(),
            limit: pages,
            hint: 0,
        }
    }

    /// Returns the pages of the file that are behind its pages, or would be.
    pub(super) fn file_pages(&self) -> &[u64] {
        &self.behind
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
        // SAFETY: these pages are own memory, mapped, and unused until now.
        unsafe { ptr::write_bytes(address as *mut u8, 0, count * PAGE_SIZE) };
        Some(address)
    }

    /// The same for the domain itself: a restart in place gives these back.
    pub(super) fn take(&mut self, count: usize) -> Option<usize> {
        let address = self.allocate(count)?;
        let start = (address - self.base) / PAGE_SIZE;
        self.taken[start..start + count].fill(true);
        Some(address)
    }

    /// Makes free what the domain itself has taken, but for pages with these frames, which it had granted. Names the first
    /// page that becomes free while another domain has it mapped, if any.
    pub(super) fn restart(&mut self, granted: &BTreeSet<Gfn>) -> Option<Gfn> {
        let mut shared = None;
        for page in 0..self.used.len() {
            if !self.taken[page] {
                continue;
            }
            let frame = self.frame(page);
            let stays = granted.contains(&frame);
            (self.used[page], self.taken[page]) = (stays, stays);
            self.granted_before[page] = stays;
            if !stays && self.pins[page] > 0 {
                shared = shared.or(Some(frame));
            }
        }
        shared
    }

    /// Makes a page free that was granted before a restart. Returns whether another domain still has it mapped.
    pub(super) fn free_granted_before(&mut self, frame: Gfn) -> bool {
        let Some(page) = self.index(frame) else {
            return false;
        };
        if !std::mem::take(&mut self.granted_before[page]) {
            return false;
        }
        (self.used[page], self.taken[page]) = (false, false);
        self.pins[page] > 0
    }

    /// Leaves a page to the domain that was granted before a restart, and returns its address.
    pub(super) fn keep_granted_before(&mut self, frame: Gfn) -> Option<usize> {
        let page = self.index(frame)?;
        let was = std::mem::take(&mut self.granted_before[page]);
        was.then(|| self.base + page * PAGE_SIZE)
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

    /// Returns the number of pages that can be allocated.
    pub(super) fn free_pages(&self) -> usize {
        let pages = self.used.iter().zip(&self.released);
        pages
            .filter(|(used, released)| !**used && !**released)
            .count()
    }

    pub(super) fn pages_in_use(&self) -> usize {
        self.used.iter().filter(|used| **used).count()
    }

    /// The frame of one of its pages, as the domain names it.
    fn frame(&self, page: usize) -> Gfn {
        match self.kind {
            DomainKind::Pvh => Gfn(self.first + page as u64),
            DomainKind::Pv => machine_frame(self.behind[page]).into(),
        }
    }

    fn index(&self, frame: Gfn) -> Option<usize> {
        let page = match self.kind {
            DomainKind::Pvh => return self.index_of(Pfn(frame.0)),
            DomainKind::Pv => machine_page(Mfn(frame.0))?,
        };
        match self.moved.get(&page) {
            Some(&index) => Some(index),
            None => self
                .index_of(Pfn(page))
                .filter(|&index| self.behind[index] == page),
        }
    }

    /// The page that has a page frame number.
    fn index_of(&self, pfn: Pfn) -> Option<usize> {
        let index = usize::try_from(pfn.0.checked_sub(self.first)?).ok()?;
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
        match (self.kind, self.index(frame)) {
            (DomainKind::Pvh, Some(index)) => machine_frame(self.behind[index]),
            (DomainKind::Pvh, None) => machine_frame(frame.0),
            (DomainKind::Pv, _) => Mfn(frame.0),
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

    /// Returns the number of allocated pages that were given back.
    pub(super) fn lent_back(&self) -> usize {
        let both = self.used.iter().zip(&self.released);
        both.filter(|(used, released)| **used && **released).count()
    }

    /// Returns the number of pages that the domain owns.
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

    /// Returns whether the page at that address was released and nothing came since.
    pub(super) fn is_released(&self, address: usize) -> bool {
        self.page(address)
            .is_some_and(|page| self.released[page] && !self.arrived.contains(&page))
    }

    /// Returns whether the domain owns all that it may.
    pub(super) fn is_full(&self) -> bool {
        self.present() >= self.limit
    }

    /// Returns the page frame number of the page at an address.
    pub(super) fn page_frame(&self, address: usize) -> Option<Pfn> {
        Some(Pfn(self.first + self.page(address)? as u64))
    }

    /// Returns the address of a page that has nothing behind it, by its page frame number.
    pub(super) fn hole(&self, pfn: Pfn) -> Option<usize> {
        let address = self.base + self.index_of(pfn)? * PAGE_SIZE;
        self.is_released(address).then_some(address)
    }

    /// Returns whether grants pin the page at an address.
    pub(super) fn is_pinned(&self, address: usize) -> bool {
        self.page(address).is_some_and(|page| self.pins[page] > 0)
    }

    /// Puts another page of the file behind the page at an address; returns the one that was.
    pub(super) fn put_behind(&mut self, address: usize, file_page: u64) -> u64 {
        let page = self.page(address).expect("an own page");
        let before = std::mem::replace(&mut self.behind[page], file_page);
        if self.moved.get(&before) == Some(&page) {
            self.moved.remove(&before);
        }
        if file_page != self.first + page as u64 {
            self.moved.insert(file_page, page);
        }
        before
    }

    /// Returns the page of the file behind the page at an address.
    pub(super) fn file_page(&self, address: usize) -> u64 {
        self.behind[self.page(address).expect("an own page")]
    }

    /// Returns the machine frame behind the page at an address, mapped or not.
    pub(super) fn machine_frame_at(&self, address: usize) -> Mfn {
        machine_frame(self.file_page(address))
    }

    /// Notes that another domain has given a frame for the page at an address.
    pub(super) fn arrive(&mut self, address: usize) {
        let page = self.page(address).expect("an own page");
        self.absent -= 1;
        self.arrived.push(page);
    }

    /// Lets the page at an address have the frame that came for it; returns false if that did not come.
    pub(super) fn adopt(&mut self, address: usize, frame: Gfn) -> bool {
        let page = self.page(address);
        let waiting = self.arrived.iter().position(|&at| Some(at) == page);
        let Some((page, waiting)) = page.zip(waiting) else {
            return false;
        };
        if self.frame(page) != frame {
            return false;
        }
        self.arrived.swap_remove(waiting);
        self.released[page] = false;
        true
    }

    /// Lets a released page be memory again and returns its frame, unless the domain owns all it
    /// may.
    pub(super) fn get_back(&mut self, address: usize) -> Option<Gfn> {
        if self.is_full() {
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
