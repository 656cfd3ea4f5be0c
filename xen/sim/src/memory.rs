//! The machine's memory: frames that domains own, and address space to map other domains' frames.
//!
//! All frames of a simulated machine live in one memory file. A domain's own memory is a shared
//! mapping of its part; mapping a grant maps the very same page of the file once more, so both
//! domains see one page, a read-only mapping cannot be written, and an address where nothing is
//! mapped (any more) faults. This is the one module of the simulated Xen that maps memory.

use super::numbering::{MACHINE_PAGES, machine_page};
use super::own_memory::OwnMemory;
use super::world::DomainKind;
use bulkhead_xen::{Gfn, Mfn, PAGE_SIZE};
use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, ftruncate, memfd_create};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap, mmap_anonymous, mprotect, munmap};
use std::os::fd::OwnedFd;
use std::ptr;
use std::sync::atomic::AtomicU32;

/// Pages of the file that belong to no domain, between those of two domains: a frame number that is off by
/// a little names no page.
const GAP: u64 = 64;

/// All frames there are, and every piece of address space in use for them.
pub(super) struct Machine {
    file: OwnedFd,
    /// The first page of the file that no domain has had.
    next_page: u64,
    /// `(address, bytes)` of all that is to be unmapped in the end. Nothing is unmapped earlier:
    /// a test may hold on to a dead domain's pointers.
    mapped: Vec<(usize, usize)>,
    /// Changes that the current hypercall makes in reserved address space: see [`Machine::settle`].
    changes: Vec<Change>,
}

/// The new state of a page of reserved address space: mapped to a page of the memory file, writable or not;
/// or unmapped, so that an access faults.
#[derive(Clone, Copy)]
struct Change {
    address: usize,
    mapped: Option<(u64, bool)>,
}

impl Machine {
    pub(super) fn new() -> Machine {
        let file = memfd_create("bulkhead-sim", MemfdFlags::CLOEXEC)
            .expect("the host gives no memory file");
        Machine {
            file,
            next_page: GAP,
            mapped: Vec::new(),
            changes: Vec::new(),
        }
    }

    /// Returns whether an address is on the process's heap, and no domain's memory or address space.
    pub(super) fn is_heap(&self, address: usize) -> bool {
        let is_mine = |&(start, bytes): &(usize, usize)| (start..start + bytes).contains(&address);
        !self.mapped.iter().any(is_mine)
    }

    /// Gives a domain its memory: zeroed pages with consecutive guest frames, if it is a PVH domain.
    fn populate(&mut self, kind: DomainKind, pages: usize) -> OwnMemory {
        let first = self.next_page;
        self.next_page += pages as u64 + GAP;
        assert!(self.next_page < MACHINE_PAGES, "the machine is full");
        ftruncate(&self.file, self.next_page * PAGE_SIZE as u64)
            .expect("the memory file does not grow");
        let bytes = pages * PAGE_SIZE;
        // SAFETY: the kernel picks unused addresses.
        let base = unsafe {
            mmap(
                ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::NORESERVE,
                &self.file,
                first * PAGE_SIZE as u64,
            )
        }
        .expect("the host gives no address space") as usize;
        self.mapped.push((base, bytes));
        OwnMemory::new(kind, base, first, pages)
    }

    /// Gives a domain its memory, and address space behind it for memory that it may have later.
    pub(super) fn populate_partly(
        &mut self,
        kind: DomainKind,
        now: usize,
        later: usize,
    ) -> OwnMemory {
        let mut memory = self.populate(kind, now + later);
        for page in now..now + later {
            let given = memory.give_up(memory.base + page * PAGE_SIZE);
            let (frame, _) = given.expect("just populated");
            self.release(memory.base + page * PAGE_SIZE, memory.machine_frame(frame));
        }
        memory.set_limit(now);
        memory
    }

    /// Gives the frames of a domain that is gone back to the host. What is read there afterwards
    /// is zero.
    pub(super) fn discard(&self, memory: &OwnMemory) {
        let neighbours = |one: &u64, next: &u64| *next == one + 1;
        for run in memory.file_pages().chunk_by(neighbours) {
            self.punch(run[0], run.len());
        }
    }

    /// Gives a page of the file back to the host: no domain owns it any more.
    pub(super) fn discard_page(&self, file_page: u64) {
        self.punch(file_page, 1);
    }

    /// Takes a page of a domain's own memory away from it, and leaves its content to the next owner.
    pub(super) fn take_away(&self, address: usize) {
        self.unmap_pages(address, 1);
    }

    fn punch(&self, first: u64, pages: usize) {
        fallocate(
            &self.file,
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            first * PAGE_SIZE as u64,
            (pages * PAGE_SIZE) as u64,
        )
        .expect("the memory file gives nothing back");
    }

    /// Takes a page of a domain's own memory away from it: every access faults.
    pub(super) fn release(&self, address: usize, frame: Mfn) {
        self.unmap_pages(address, 1);
        self.punch(file_page(frame), 1);
    }

    /// Gives a page of a domain's own memory back to it.
    pub(super) fn get_back(&self, address: usize, frame: Mfn) {
        self.map_pages(address, file_page(frame), 1, true);
    }

    /// Address space of `pages` pages where every access faults.
    pub(super) fn reserve(&mut self, pages: usize) -> usize {
        let bytes = pages * PAGE_SIZE;
        // SAFETY: the kernel picks unused addresses.
        let base = unsafe {
            mmap_anonymous(
                ptr::null_mut(),
                bytes,
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }
        .expect("the host gives no address space") as usize;
        self.mapped.push((base, bytes));
        base
    }

    /// Maps a frame at a page of reserved address space, with the next [`settle`](Self::settle).
    pub(super) fn map_frame(&mut self, address: usize, frame: Mfn, writable: bool) {
        let mapped = Some((file_page(frame), writable));
        self.changes.push(Change { address, mapped });
    }

    /// Makes a page of reserved address space fault again, with the next [`settle`](Self::settle).
    pub(super) fn unmap_page(&mut self, address: usize) {
        let mapped = None;
        self.changes.push(Change { address, mapped });
    }

    /// Does what was noted, at the end of a hypercall: neighbours together, because asking the host's
    /// kernel is what takes time.
    pub(super) fn settle(&mut self) {
        self.changes.sort_unstable_by_key(|change| change.address);
        let runs = self.changes.chunk_by(|one, next| one.is_before(next));
        for run in runs {
            match run[0].mapped {
                Some((page, writable)) => {
                    self.map_pages(run[0].address, page, run.len(), writable);
                }
                None => self.protect_pages(run[0].address, run.len()),
            }
        }
        self.changes.clear();
    }

    /// Maps neighbouring pages of the memory file.
    fn map_pages(&self, address: usize, first: u64, pages: usize, writable: bool) {
        let access = if writable {
            ProtFlags::READ | ProtFlags::WRITE
        } else {
            ProtFlags::READ
        };
        // SAFETY: the caller found the pages inside a domain's foreign region, which came from
        // `reserve` and holds nothing but what is mapped here, or they are pages of a domain's
        // own memory that were released.
        let mapped = unsafe {
            mmap(
                address as *mut _,
                pages * PAGE_SIZE,
                access,
                MapFlags::SHARED | MapFlags::FIXED,
                &self.file,
                first * PAGE_SIZE as u64,
            )
        };
        mapped.expect("the host maps no more pages (vm.max_map_count?)");
    }

    /// Lets every access to these pages fault. They stay what they were mapped to, which is less work for the
    /// host's kernel than to join them with the neighbours, and to part them again with the next mapping.
    fn protect_pages(&self, address: usize, pages: usize) {
        // SAFETY: as for `map_pages`; whoever unmaps promises the simulated Xen, as it would the
        // real one, that nothing accesses the pages any more.
        let protected =
            unsafe { mprotect(address as *mut _, pages * PAGE_SIZE, MprotectFlags::empty()) };
        protected.expect("the host does not unmap");
    }

    fn unmap_pages(&self, address: usize, pages: usize) {
        // SAFETY: as for `protect_pages`.
        let unmapped = unsafe {
            mmap_anonymous(
                address as *mut _,
                pages * PAGE_SIZE,
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED,
            )
        };
        unmapped.expect("the host does not unmap");
    }
}

impl Change {
    /// Returns whether another change goes on where this one ends.
    fn is_before(&self, next: &Change) -> bool {
        let same = match (self.mapped, next.mapped) {
            (None, None) => true,
            (Some((page, writable)), Some(next)) => next == (page + 1, writable),
            _ => false,
        };
        same && next.address == self.address + PAGE_SIZE
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for &(address, bytes) in &self.mapped {
            // SAFETY: mapped by this machine and nobody else. Every vCPU, domain handle and
            // mapping keeps its machine alive, so nothing is left that could look here.
            let unmapped = unsafe { munmap(address as *mut _, bytes) };
            unmapped.expect("the host does not unmap");
        }
    }
}

/// Returns where a frame lies in the file.
fn file_page(frame: Mfn) -> u64 {
    machine_page(frame).expect("a frame of the machine's memory")
}

/// One end of a copy inside the machine: a page of some domain and an offset in it.
pub(super) struct Location<'m> {
    pub(super) memory: &'m OwnMemory,
    pub(super) frame: Gfn,
    pub(super) offset: u16,
}

impl Location<'_> {
    fn address(&self, bytes: usize) -> usize {
        assert!(usize::from(self.offset) + bytes <= PAGE_SIZE);
        let page = self.memory.address_of(self.frame);
        page.expect("the frame was checked") + usize::from(self.offset)
    }
}

/// Copies inside the machine, as the hypervisor does it.
pub(super) fn copy(from: &Location<'_>, to: &Location<'_>, bytes: usize) {
    let source = from.address(bytes) as *const u8;
    let dest = to.address(bytes) as *mut u8;
    // SAFETY: both are own memory of domains, which stays mapped as long as the machine lives, or
    // what the caller has on the heap and promises to be there (`Hypervisor::copy_grants`), and
    // neither leaves its page. Domains see it through raw pointers alone. They may overlap.
    unsafe { ptr::copy(source, dest, bytes) };
}

/// Returns a word of a page that domains share.
pub(super) fn word<'m>(address: usize) -> &'m AtomicU32 {
    let at = ptr::with_exposed_provenance_mut::<u32>(address);
    // SAFETY: own memory of a domain, which the machine keeps, and the caller has pinned the page. Everybody
    // accesses such pages atomically.
    unsafe { AtomicU32::from_ptr(at) }
}

/// Reads memory as a device does.
pub(super) fn device_reads(address: usize, bytes: &mut [u8]) {
    let source = ptr::with_exposed_provenance::<u8>(address);
    // SAFETY: own memory of a domain or a mapping of it, which the machine keeps, or what a driver has on the
    // heap and promised to be there when it named it to its device. Nobody refers to it.
    unsafe { ptr::copy(source, bytes.as_mut_ptr(), bytes.len()) };
}

/// Writes memory as a device does.
pub(super) fn device_writes(address: usize, bytes: &[u8]) {
    let dest = ptr::with_exposed_provenance_mut::<u8>(address);
    // SAFETY: as in `device_reads`, and writable.
    unsafe { ptr::copy(bytes.as_ptr(), dest, bytes.len()) };
}
