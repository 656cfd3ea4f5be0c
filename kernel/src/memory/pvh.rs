//! The page tables of a PVH domain: those in the image, and their changes at boot and later.

use super::image::image_parts;
use super::{page_table, pages};
use crate::cpu::pvh as cpu;
use bulkhead_xen::PAGE_SIZE;
use core::arch::asm;

const MSR_EFER: u32 = 0xc000_0080;
const EFER_NXE: u64 = 1 << 11;

/// The most large pages that have a part of the image: `entry` makes a table for each, and `link.ld` checks that these
/// are enough.
const IMAGE_TABLES: usize = 2;

unsafe extern "C" {
    static mut boot_pdpt: [u64; 512];
    static mut boot_pd: [u64; 4 * 512];
    static mut boot_pts: [[u64; 512]; IMAGE_TABLES];
}

/// Allows page tables to forbid execution, if the processor can. Returns whether it can.
///
/// # Safety
/// At boot, on page tables that do not use that bit yet.
pub unsafe fn forbid_execution() -> bool {
    let can = image_parts().no_execute;
    if can {
        // SAFETY: the processor has the bit; the entry code left the rest as it is to be.
        unsafe { cpu::write_msr(MSR_EFER, cpu::read_msr(MSR_EFER) | EFER_NXE) };
    }
    can
}

/// Replaces the large pages of the image by small ones, so that neither code nor tables can be written, data
/// cannot be executed, and neither page 0 nor the page below the stack is mapped.
///
/// # Safety
/// Once, on the boot page tables, which only `set_entry` changes afterwards.
pub unsafe fn protect_image() {
    // SAFETY: no other code writes the tables; entries change to ones that still let everything
    // running go on. Only the tables are written while write protection is lifted: the first of these entries forbid
    // that, wherever the tables are.
    unsafe {
        let protection = cpu::lift_write_protection();
        map_below_4g();
        flush();
        cpu::restore_write_protection(protection);
    }
}

/// Fills the tables for the memory below 4 GiB: small pages where the image is, large ones behind it.
///
/// # Safety
/// Write protection is lifted, and all that runs can go on with these entries.
unsafe fn map_below_4g() {
    let image = image_parts();
    let (large, small) = (&raw mut boot_pd, &raw mut boot_pts);
    for page in 0..4 * 512 {
        let start = page as u64 * page_table::LARGE_PAGE;
        // SAFETY: the tables are in the image, at their own addresses; the rest is the contract.
        unsafe {
            (*large)[page] = if page < image.large_pages() {
                let table = &raw mut (*small)[page];
                for (place, address) in (start..).step_by(PAGE_SIZE).take(512).enumerate() {
                    (*table)[place] = image.entry(address);
                }
                page_table::table(table as u64)
            } else {
                page_table::large(start, image.no_execute)
            };
        }
    }
}

/// Maps all memory below 4 GiB as it was at boot, whatever was there: the tables may be damaged.
///
/// # Safety
/// Nothing goes on that depends on pages that are not mapped, or cannot be written.
#[cfg(feature = "recover")]
pub unsafe fn repair() {
    // SAFETY: by the contract; the tables are in the image, at their own addresses.
    unsafe {
        let protection = cpu::lift_write_protection();
        map_below_4g();
        let (middle, large) = (&raw mut boot_pdpt, &raw mut boot_pd);
        for gib in 0..4 {
            let table = (&raw mut (*large)[gib * 512]) as u64;
            (*middle)[gib] = page_table::table(table);
        }
        flush();
        cpu::restore_write_protection(protection);
    }
}

/// Damages the page-table entries of the memory after the image, which has the heap, and reads there. For tests.
///
/// # Safety
/// Meant to crash.
#[cfg(feature = "recover")]
pub unsafe fn damage() {
    /// Bits of an address that no processor has, in a present entry.
    const IMPOSSIBLE: u64 = 0x000f_f000_0000_0001;
    const PAGES: usize = 2;
    let image = image_parts();
    let first = image.large_pages();
    let behind = image.all.end..first as u64 * page_table::LARGE_PAGE;
    // SAFETY: by the contract.
    unsafe {
        let protection = cpu::lift_write_protection();
        let (large, small) = (&raw mut boot_pd, &raw mut boot_pts);
        for page in first..first + PAGES {
            (*large)[page] = IMPOSSIBLE;
        }
        for address in behind.clone().step_by(PAGE_SIZE) {
            (*small)[first - 1][page_table::index(address, 1)] = IMPOSSIBLE;
        }
        flush();
        cpu::restore_write_protection(protection);
        (behind.start as *const u64).read_volatile();
    }
}

/// Maps everything from 4 GiB up to `end` with large pages.
///
/// # Safety
/// Once, on the boot page tables, with the frame allocator running. They may forbid execution if
/// `no_execute` says so.
pub unsafe fn map_above_4g(end: u64, no_execute: bool) {
    let gibs = end.div_ceil(page_table::GIB);
    assert!(gibs <= 512, "more than 512 GiB of addresses");
    for gib in 4..gibs {
        let table = pages::allocate_pages(1).expect("no memory for page tables");
        let entries = table.cast::<u64>().as_ptr();
        for page in 0..512 {
            let address = gib * page_table::GIB + page * page_table::LARGE_PAGE;
            // SAFETY: a fresh page, mapped below 4 GiB.
            unsafe {
                entries
                    .add(page as usize)
                    .write(page_table::large(address, no_execute))
            };
        }
        // SAFETY: no other code writes the table; the entry was empty.
        unsafe { boot_pdpt[gib as usize] = page_table::table(table.as_ptr() as u64) };
    }
}

/// Maps the pages that Xen shares with us, before there is memory for page tables above 4 GiB; [`map_above_4g`] does it
/// again.
///
/// # Safety
/// Once, on the boot page tables, before `map_above_4g`. `special` is a multiple of a gibibyte from 4 GiB on.
#[cfg(feature = "recover")]
pub unsafe fn map_special_pages(special: u64) {
    #[repr(align(4096))]
    struct Table([u64; 512]);
    static mut TABLE: Table = Table([0; 512]);
    let gib = special / page_table::GIB;
    assert!((4..512).contains(&gib), "more than 512 GiB of addresses");
    let table = &raw mut TABLE;
    // SAFETY: no other code uses the table; the entry for it was empty, so that no TLB has anything there.
    unsafe {
        (*table).0[0] = page_table::large(special, false);
        boot_pdpt[gib as usize] = page_table::table(table as u64);
    }
}

/// Unmaps a page of memory.
///
/// # Safety
/// Nothing uses it, and only the calling vCPU runs.
pub unsafe fn unmap(address: u64) -> Option<()> {
    // SAFETY: by the contract.
    unsafe { set_entry(address, 0) }
}

/// Makes a page of memory read-only.
///
/// # Safety
/// Nothing writes to it any more, and only the calling vCPU runs.
pub unsafe fn protect(address: u64) -> Option<()> {
    let entry = page_table::constant(address, image_parts().no_execute);
    // SAFETY: by the contract.
    unsafe { set_entry(address, entry) }
}

/// # Safety
/// All users of the page can use it with this entry; only the calling vCPU runs.
unsafe fn set_entry(address: u64, new: u64) -> Option<()> {
    let [third, second, first] = [3, 2, 1].map(|level| page_table::index(address, level));
    let mut added = None;
    // SAFETY: the page tables are mapped at their own addresses, and no other code changes them; only
    // they are written while write protection is lifted. Splitting a large page changes nothing
    // except in this one page.
    unsafe {
        let middle = page_table::address_of(boot_pdpt[third]) as *mut u64;
        let entry = middle.add(second);
        let parts = page_table::split(entry.read());
        if parts.is_some() {
            added = Some(pages::allocate_pages(1)?.cast::<u64>().as_ptr());
        }
        let protection = cpu::lift_write_protection();
        if let (Some(parts), Some(table)) = (parts, added) {
            for (place, part) in parts.enumerate() {
                table.add(place).write(part);
            }
            entry.write(page_table::table(table as u64));
        }
        let table = page_table::address_of(entry.read()) as *mut u64;
        table.add(first).write(new);
        flush();
        cpu::restore_write_protection(protection);
    }
    match added {
        // SAFETY: a page table, which only this function writes.
        Some(table) => unsafe { protect(table as u64) },
        None => Some(()),
    }
}

/// Flushes the calling vCPU's TLB.
unsafe fn flush() {
    // SAFETY: reloads the page tables in use.
    unsafe { asm!("mov {0}, cr3", "mov cr3, {0}", out(reg) _, options(nostack)) };
}
