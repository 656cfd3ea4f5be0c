//! Pages of our own that a backend may use: taken from the domain's memory, granted during a connection, and
//! used again afterwards.

use crate::memory::{filled, room_for};
use crate::{Grant, GrantAccess, GrantTable};
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_xen::{DomId, GrantRef, Hypervisor, PAGE_SIZE, Reservation};
use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::AtomicU32;
use spin::Mutex;

/// A run of pages that nothing else uses.
struct Run {
    base: NonNull<u8>,
    pages: usize,
}

// SAFETY: the pages are this domain's memory, mapped on every vCPU, and the run is their only owner.
unsafe impl Send for Run {}

/// Pages that no disk uses at the moment. Clones share them.
#[derive(Clone)]
pub struct PagePool(Arc<Shared>);

struct Shared {
    source: Arc<dyn Reservation>,
    unused: Mutex<Vec<Run>>,
}

impl PagePool {
    /// Returns a pool that takes its pages from the domain's memory.
    pub fn new(source: Arc<dyn Reservation>) -> PagePool {
        let unused = Mutex::default();
        PagePool(Arc::new(Shared { source, unused }))
    }

    /// Returns the number of pages that the domain's memory has besides.
    pub fn free_pages(&self) -> usize {
        self.0.source.free_pages()
    }

    fn take(&self, pages: usize) -> Option<Run> {
        let mut unused = self.0.unused.lock();
        let mut fitting: Option<usize> = None;
        for (at, run) in unused.iter().enumerate() {
            let smaller = fitting.is_none_or(|other| run.pages < unused[other].pages);
            if run.pages >= pages && smaller {
                fitting = Some(at);
            }
        }
        if let Some(at) = fitting {
            return Some(unused.swap_remove(at));
        }
        let base = self.0.source.allocate_to_grant(pages)?;
        Some(Run { base, pages })
    }

    fn give_back(&self, run: Run) {
        self.0.unused.lock().push(run);
    }
}

/// Contiguous pages that a backend may be granted. Dropping this ends the grants and gives the pages back; pages
/// that the backend still uses then are never used again.
pub struct SharedMemory<H: Hypervisor> {
    run: Option<Run>,
    base: NonNull<u8>,
    pages: usize,
    grants: Vec<Grant<H>>,
    /// What the grants allow.
    access: GrantAccess,
    /// Pages that were granted, and that the backend is kept off at the moment.
    withdrawn: Vec<bool>,
    table: GrantTable<H>,
    pool: PagePool,
}

// SAFETY: as for `Run`; the pages are accessed by raw pointers alone, whose users see to it that they do not
// use the same bytes at the same time.
unsafe impl<H: Hypervisor> Send for SharedMemory<H> {}

/// The reason why memory cannot be shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotShared {
    /// There is no memory left.
    NoMemory {
        /// The bytes that were asked for.
        bytes: usize,
    },
    /// All entries of the grant table are in use.
    NoGrants,
}

impl fmt::Display for NotShared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMemory { bytes } => write!(
                f,
                "the driver domain has no {bytes} bytes of memory for it (memory= in its configuration)"
            ),
            Self::NoGrants => f.write_str("the driver domain's grant table is full"),
        }
    }
}

impl core::error::Error for NotShared {}

impl<H: Hypervisor> SharedMemory<H> {
    /// Takes that many pages, and clears them. No backend is granted them yet. The pages may be the first ones of
    /// a longer run that was given back before.
    pub fn new(pool: &PagePool, table: &GrantTable<H>, pages: usize) -> Result<Self, NotShared> {
        let bytes = pages * PAGE_SIZE;
        let no_memory = |_| NotShared::NoMemory { bytes };
        let grants = room_for(pages).map_err(no_memory)?;
        let withdrawn = filled(pages, |_| false).map_err(no_memory)?;
        let run = pool.take(pages).ok_or(NotShared::NoMemory { bytes })?;
        let memory = SharedMemory {
            base: run.base,
            run: Some(run),
            pages,
            grants,
            access: GrantAccess::ReadWrite,
            withdrawn,
            table: table.clone(),
            pool: pool.clone(),
        };
        memory.clear();
        Ok(memory)
    }

    /// Takes up pages in a row that a boot before this one has granted to a backend, which goes on using them. `None` if there
    /// are none such. Until they are [`drained`](Self::drained), or taken back, no number of a grant of before is given out.
    pub fn left(
        pool: &PagePool,
        table: &GrantTable<H>,
        backend: DomId,
        grefs: &[GrantRef],
    ) -> Option<Self> {
        let pages = grefs.len();
        let (mut grants, withdrawn) = (room_for(pages).ok()?, filled(pages, |_| false).ok()?);
        let base = table.keep_left(backend, grefs, &mut grants)?;
        Some(SharedMemory {
            run: Some(Run { base, pages }),
            base,
            pages,
            grants,
            access: GrantAccess::ReadWrite,
            withdrawn,
            table: table.clone(),
            pool: pool.clone(),
        })
    }

    /// Notes that the backend is done with all messages of before in pages that were [taken up](Self::left): it uses no
    /// number any more that it has found there.
    pub fn drained(&self) {
        let grefs: Vec<GrantRef> = self.grants.iter().map(Grant::gref).collect();
        self.table.drained(&grefs);
    }

    /// Returns the address of the first page.
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Returns the number of pages.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Overwrites the pages with zeros, so that the next user of them finds nothing of the last one's.
    pub fn clear(&self) {
        // SAFETY: own memory of that size; a backend that writes to it meanwhile only spoils its own data.
        unsafe { self.base.write_bytes(0, self.pages * PAGE_SIZE) };
    }

    /// Grants all pages to a backend, for reading and writing. It has none of them yet, or all.
    pub fn grant(&mut self, hypervisor: &H, backend: DomId) -> Result<(), NotShared> {
        self.grant_for(hypervisor, backend, GrantAccess::ReadWrite)
    }

    /// Grants all pages to a backend, for reading alone. It has none of them yet, or all.
    pub fn grant_for_reading(&mut self, hypervisor: &H, backend: DomId) -> Result<(), NotShared> {
        self.grant_for(hypervisor, backend, GrantAccess::ReadOnly)
    }

    fn grant_for(
        &mut self,
        hypervisor: &H,
        backend: DomId,
        access: GrantAccess,
    ) -> Result<(), NotShared> {
        if self.grants.is_empty() {
            self.access = access;
        }
        debug_assert_eq!(self.access, access);
        while self.grants.len() < self.pages {
            // SAFETY: within the pages.
            let page = unsafe { self.base.add(self.grants.len() * PAGE_SIZE) };
            let frame = hypervisor.frame_of(page.as_ptr());
            let frame = frame.ok_or(NotShared::NoGrants)?;
            // SAFETY: own memory that holds what is meant for the backend alone, is accessed by raw pointers (by
            // references only while the backend cannot write to it), and stays this value's until the grant has ended
            // (`drop`).
            let granted = unsafe { self.table.grant(backend, frame, self.access) };
            self.grants.push(granted.map_err(|_| NotShared::NoGrants)?);
        }
        Ok(())
    }

    /// Returns the grant of a page; `None` if the backend has none of them.
    #[inline]
    pub fn gref(&self, page: usize) -> Option<GrantRef> {
        self.grants.get(page).map(Grant::gref)
    }

    /// Returns the grants of the pages from `first` on, as far as the backend has them.
    #[inline]
    pub fn grefs(&self, first: usize) -> impl Iterator<Item = GrantRef> {
        let grants = self.grants.get(first..).unwrap_or_default();
        grants.iter().map(Grant::gref)
    }

    /// Ends the grants. Returns false if the backend still uses some pages: the caller calls it again.
    pub fn revoke(&mut self) -> bool {
        while let Some(grant) = self.grants.pop() {
            if let Err(in_use) = grant.end() {
                self.grants.push(in_use.0);
                return false;
            }
            if let Some(withdrawn) = self.withdrawn.get_mut(self.grants.len()) {
                *withdrawn = false;
            }
        }
        true
    }

    /// Leaves the pages to the backend for good, if it has been granted them: neither they nor the numbers of their grants are
    /// used for anything else.
    pub fn abandon(mut self) {
        if self.grants.is_empty() {
            return;
        }
        log::error!(
            "{} page(s) that a backend may still use are lost",
            self.pages
        );
        core::mem::forget(core::mem::take(&mut self.grants));
        self.run = None;
    }

    /// Keeps the backend off a page until [`give`](Self::give). Returns false while the backend uses it.
    #[inline]
    pub fn withdraw(&mut self, page: usize) -> bool {
        let (Some(grant), Some(withdrawn)) = (self.grants.get(page), self.withdrawn.get_mut(page))
        else {
            return false;
        };
        *withdrawn = *withdrawn || grant.suspend();
        *withdrawn
    }

    /// Lets the backend have a page again that was withdrawn, with whatever it holds now.
    #[inline]
    pub fn give(&mut self, page: usize) {
        if let (Some(grant), Some(withdrawn)) =
            (self.grants.get(page), self.withdrawn.get_mut(page))
            && core::mem::take(withdrawn)
        {
            // SAFETY: it was suspended, and what `grant_for` promised holds on.
            unsafe { grant.resume(self.access) };
        }
    }

    /// Returns bytes of the pages, unless a backend may write to one of them.
    ///
    /// # Panics
    /// If they are past the end.
    #[inline]
    pub fn bytes(&mut self, offset: usize, len: usize) -> Option<&mut [u8]> {
        let from = self.range(offset, len);
        let pages = offset / PAGE_SIZE..(offset + len).div_ceil(PAGE_SIZE);
        let read_only = self.access == GrantAccess::ReadOnly;
        let granted = pages.start < self.grants.len();
        if granted && !read_only && !self.withdrawn[pages].iter().all(|withdrawn| *withdrawn) {
            return None;
        }
        // SAFETY: within the pages, which were cleared when they were taken. No other domain can write to them, and
        // none will before the borrow of this value ends: granting needs the value. Users of `base` answer for
        // themselves.
        Some(unsafe { core::slice::from_raw_parts_mut(from.as_ptr(), len) })
    }

    /// Returns a word of the pages, which the backend may change at any time.
    ///
    /// # Panics
    /// If the position is past the end, or not a multiple of 4.
    pub fn word(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4) && offset + 4 <= self.pages * PAGE_SIZE);
        // SAFETY: within the pages, as just checked, and aligned; this value keeps them, and nothing but atomic
        // and volatile accesses is made to them.
        unsafe { AtomicU32::from_ptr(self.base.add(offset).cast().as_ptr()) }
    }

    /// Writes words of eight bytes into a page, from its start on: as many as it has room for.
    ///
    /// # Panics
    /// If there is no such page.
    #[inline]
    pub fn write_words(&self, page: usize, words: impl Iterator<Item = [u8; 8]>) {
        let start = self.range(page * PAGE_SIZE, PAGE_SIZE).cast::<u64>();
        for (number, word) in (0..PAGE_SIZE / 8).zip(words) {
            // SAFETY: within the page, and aligned.
            let at = unsafe { start.add(number) };
            // SAFETY: own memory, seen through no reference.
            unsafe { at.write_volatile(u64::from_ne_bytes(word)) };
        }
    }

    /// Copies bytes out of the pages. The backend may change them meanwhile, and the copy is what is looked at.
    ///
    /// # Panics
    /// If that is past the end.
    pub fn copy_out(&self, offset: usize, into: &mut [u8]) {
        let from = self.range(offset, into.len());
        // SAFETY: within the pages, which are seen through no reference; the copy is this domain's alone.
        unsafe { from.copy_to_nonoverlapping(NonNull::from(&mut *into).cast(), into.len()) };
    }

    /// Copies bytes into the pages.
    ///
    /// # Panics
    /// If that is past the end.
    pub fn copy_in(&self, offset: usize, from: &[u8]) {
        let to = self.range(offset, from.len());
        // SAFETY: within the pages, which are seen through no reference.
        unsafe { to.copy_from_nonoverlapping(NonNull::from(from).cast(), from.len()) };
    }

    fn range(&self, offset: usize, len: usize) -> NonNull<u8> {
        let end = offset.checked_add(len);
        assert!(end.is_some_and(|end| end <= self.pages * PAGE_SIZE));
        // SAFETY: within the pages, as just checked.
        unsafe { self.base.add(offset) }
    }
}

impl<H: Hypervisor> Drop for SharedMemory<H> {
    fn drop(&mut self) {
        let revoked = self.revoke();
        if let Some(run) = self.run.take() {
            match revoked {
                true => self.pool.give_back(run),
                false => log::error!(
                    "{} page(s) that a backend does not let go of are lost",
                    run.pages
                ),
            }
        }
    }
}
