//! The page tables of a PV domain while it runs: mapping and unmapping of its own pages, of pages that Xen shares, and
//! of registers.

#[cfg(feature = "recover")]
use super::layout::{AddressSpace, Ranges};
use super::p2m::P2m;
use super::page_table::{ACCESSED, DIRTY, PRESENT, WRITABLE, registers};
#[cfg(feature = "recover")]
use super::pv_tables::Unmapped;
use super::pv_tables::{PageTables, PvMemory};
use crate::hypercall;
#[cfg(feature = "recover")]
use crate::vcpu;
#[cfg(feature = "recover")]
use bulkhead_xen::abi::pv::PvStartInfo;
use bulkhead_xen::abi::pv::{MACH2PHYS_VIRT_START, MmuUpdate, UVMF_INVLPG_ALL, UVMF_TLB_FLUSH_ALL};
use bulkhead_xen::{DomId, Errno, PAGE_SIZE};
use core::ops::Range;
use spin::Mutex;

const PAGE: u64 = PAGE_SIZE as u64;

static TABLES: Mutex<Option<PageTables<OwnMemory>>> = Mutex::new(None);

/// Returns the page frame of a machine frame of this domain (`machine_to_phys_mapping`, xen-x86_64.h).
pub fn pseudo_physical(mfn: u64) -> u64 {
    // SAFETY: Xen maps the table there for every PV domain, readable; the frame exists.
    unsafe {
        (MACH2PHYS_VIRT_START as *const u64)
            .add(mfn as usize)
            .read()
    }
}

/// The domain's memory, for its page tables.
pub struct OwnMemory(pub P2m);

// SAFETY: the lists are Xen's, and an `mmu_update` that succeeds was made as a whole.
unsafe impl PvMemory for OwnMemory {
    unsafe fn read(&self, address: u64) -> u64 {
        // SAFETY: by the contract. Volatile: Xen changes page tables on our behalf.
        unsafe { (address as *const u64).read_volatile() }
    }

    unsafe fn write(&mut self, address: u64, value: u64) {
        // SAFETY: by the contract.
        unsafe { (address as *mut u64).write(value) }
    }

    fn machine_frame(&self, pfn: u64) -> Option<u64> {
        self.0.machine_frame(pfn).map(|mfn| mfn.0)
    }

    fn page_frame(&self, mfn: u64) -> u64 {
        pseudo_physical(mfn)
    }

    unsafe fn update(&mut self, batch: &mut [MmuUpdate]) -> Result<(), Errno> {
        let (requests, count) = (batch.as_mut_ptr() as u64, batch.len() as u64);
        // SAFETY: Xen reads the batch; what it changes is the caller's promise.
        unsafe { hypercall::mmu_update(requests, count, 0, DomId::SELF.0.into()) }.map(|_| ())
    }
}

/// Begins to use the page tables that boot has extended.
pub fn set_tables(tables: PageTables<OwnMemory>) {
    *TABLES.lock() = Some(tables);
}

/// Returns the top table's machine address, as cr3 holds it.
pub fn top_machine_address() -> Option<u64> {
    TABLES
        .lock()
        .as_ref()
        .and_then(PageTables::top_machine_address)
}

/// Finds the page tables in use by the start info, without the state of this boot, which may be damaged.
///
/// # Safety
/// `start` is the start info, and nothing else changes page tables meanwhile.
#[cfg(feature = "recover")]
unsafe fn find_tables(start: *const PvStartInfo) -> PageTables<OwnMemory> {
    // SAFETY: by the contract; the list is the builder's, and no frame is free for new tables.
    unsafe {
        let p2m = P2m::new((*start).mfn_list as *mut u64, (*start).nr_pages);
        PageTables::new((*start).pt_base, OwnMemory(p2m), &Ranges::new())
    }
}

/// Returns whether a page table lies at these addresses.
///
/// # Safety
/// As for [`open`].
#[cfg(feature = "recover")]
pub unsafe fn has_table_in(start: *const PvStartInfo, addresses: &Range<u64>) -> bool {
    // SAFETY: by the contract.
    let (tables, pages) = unsafe { (find_tables(start), (*start).nr_pages) };
    let space = AddressSpace::above(pages * PAGE, pages, false);
    tables.has_table_in(addresses, space.end())
}

/// Maps the pages below the stacks of all vCPUs but the first again: they are ordinary memory for the next boot.
///
/// # Safety
/// As for [`open`].
#[cfg(feature = "recover")]
pub unsafe fn map_guards(start: *const PvStartInfo) -> Result<(), Unmapped> {
    // SAFETY: by the contract.
    let mut tables = unsafe { find_tables(start) };
    let mut guards = vcpu::all().skip(1).map(|vcpu| vcpu.guard());
    guards.try_for_each(|guard| tables.populate(guard.start / PAGE..guard.end / PAGE))
}

/// Allows another image to be put at the addresses of `room`, and the page at `code` to be executed.
///
/// # Safety
/// `start` is the start info, and nothing else changes page tables meanwhile.
#[cfg(feature = "recover")]
pub unsafe fn open(start: *const PvStartInfo, room: Range<u64>, code: u64) -> Result<(), Unmapped> {
    // SAFETY: by the contract.
    unsafe { find_tables(start) }.open(room, code)?;
    // Address 0 was unmapped at boot, as `forget` needs an empty entry.
    forget(0);
    Ok(())
}

/// Makes the page at `code` non-executable again.
#[cfg(feature = "recover")]
pub fn forbid_code(code: u64) {
    let mut tables = TABLES.lock();
    let tables = tables.as_mut().expect("page tables are set up first");
    if let Err(error) = tables.forbid_code(code) {
        panic!("{error}");
    }
    forget(0);
}

/// Unmaps page frames of this domain, and makes sure that no vCPU reaches them any more.
///
/// # Safety
/// Nothing uses them.
pub unsafe fn unmap(frames: Range<u64>) {
    let Some(last) = frames.clone().last() else {
        return;
    };
    let mut tables = TABLES.lock();
    let tables = tables.as_mut().expect("page tables are set up first");
    if let Err(error) = tables.unmap(frames) {
        panic!("{error}");
    }
    forget(last * PAGE);
}

/// Flushes the TLBs of all vCPUs. `empty` is an address whose page-table entry exists and is empty.
pub fn forget(empty: u64) {
    // SAFETY: the entry is empty already, so that only the TLBs change.
    unsafe { hypercall::update_va_mapping(empty, 0, UVMF_TLB_FLUSH_ALL) }
        .expect("translations cannot be forgotten");
}

/// Maps page frames of this domain that are not mapped.
pub fn populate(frames: Range<u64>) {
    let mut tables = TABLES.lock();
    let tables = tables.as_mut().expect("page tables are set up first");
    if let Err(error) = tables.populate(frames) {
        panic!("{error}");
    }
}

/// Maps a page that Xen shares with this domain.
///
/// # Safety
/// `address` is a page of the special addresses where nothing is mapped.
pub unsafe fn map_special(address: u64, mfn: u64) -> Result<(), Errno> {
    let entry = (mfn * PAGE) | PRESENT | WRITABLE | ACCESSED | DIRTY;
    // SAFETY: by the contract; its table is there.
    unsafe { hypercall::update_va_mapping(address, entry, UVMF_INVLPG_ALL) }.map(|_| ())
}

/// Maps a page of a device's registers. Returns whether it can be written: Xen makes the pages of an MSI-X table
/// read-only without an error.
///
/// # Safety
/// `address` is a page of those for devices, where nothing is mapped.
pub unsafe fn map_registers(address: u64, mfn: u64) -> Result<bool, Errno> {
    // With recovery, the boot before may have left another mapping there, which may still be in a TLB.
    let flush = match cfg!(feature = "recover") {
        true => UVMF_INVLPG_ALL,
        false => 0,
    };
    // SAFETY: by the contract; its table is there, and no TLB has a translation of what is not mapped.
    unsafe { hypercall::update_va_mapping(address, registers(mfn * PAGE), flush) }?;
    let tables = TABLES.lock();
    let entry = tables.as_ref().and_then(|tables| tables.entry_of(address));
    Ok(entry.is_some_and(|entry| entry & WRITABLE != 0))
}

/// Unmaps a page of a device's registers.
///
/// # Safety
/// `address` is one of the pages for devices, and nothing uses it any more.
pub unsafe fn unmap_registers(address: u64) {
    // SAFETY: by the contract; the table is there.
    unsafe { hypercall::update_va_mapping(address, 0, UVMF_INVLPG_ALL) }
        .expect("an entry can be emptied");
}
