//! The handles of other domains' pages that are mapped, so that a restart can unmap them: one number for each page of
//! the region for such pages. A page that is mapped for devices alone has no page there, but a bus address: for these,
//! there is one number for each handle. Xen gives handles out from 0 on, and again when they are free.

use super::obstacles::{self, Obstacle};
use crate::memory::{map, pages};
use crate::vcpu::{self, Vcpu};
use crate::{hypercall, reporter};
use bulkhead_xen::abi::grant_table::{MapGrantRef, UnmapGrantRef};
use bulkhead_xen::abi::memory;
use bulkhead_xen::{DmaAddr, GrantHandle, PAGE_SIZE};
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

/// For each page its handle plus one; 0 if nothing is mapped. Null if no restart is wanted.
static HANDLES: AtomicPtr<AtomicU32> = AtomicPtr::new(ptr::null_mut());

/// For each handle of a page that is mapped for devices alone its machine frame plus one; 0 for other handles. Null if
/// there are no devices.
static DEVICE_FRAMES: AtomicPtr<AtomicU32> = AtomicPtr::new(ptr::null_mut());

/// Pages that are unmapped by one hypercall.
const BATCH: usize = 64;

/// Remembers handles from now on; nothing is mapped yet. Returns false if there is no memory for them.
pub fn start() -> bool {
    take_numbers(&HANDLES)
}

/// Remembers pages that are mapped for devices alone from now on; there are none yet. Returns false if there is no
/// memory for that.
pub fn start_for_devices() -> bool {
    !DEVICE_FRAMES.load(Ordering::Acquire).is_null() || take_numbers(&DEVICE_FRAMES)
}

/// Takes zeroed memory for a number for each page of the region for other domains' pages.
fn take_numbers(numbers: &AtomicPtr<AtomicU32>) -> bool {
    let bytes = map::get().space.foreign_pages as usize * size_of::<AtomicU32>();
    let Some(first) = pages::allocate_pages(bytes.div_ceil(PAGE_SIZE)) else {
        return false;
    };
    // SAFETY: pages that are this module's from here on.
    unsafe { first.write_bytes(0, bytes.div_ceil(PAGE_SIZE) * PAGE_SIZE) };
    numbers.store(first.cast().as_ptr(), Ordering::Release);
    true
}

fn handles() -> Option<&'static [AtomicU32]> {
    taken(&HANDLES)
}

fn device_frames() -> Option<&'static [AtomicU32]> {
    taken(&DEVICE_FRAMES)
}

fn taken(numbers: &AtomicPtr<AtomicU32>) -> Option<&'static [AtomicU32]> {
    let first = numbers.load(Ordering::Acquire);
    if first.is_null() {
        // Perhaps before the memory is known.
        return None;
    }
    let pages = map::get().space.foreign_pages as usize;
    // SAFETY: `take_numbers` has put that many zeroed numbers there, for good.
    Some(unsafe { core::slice::from_raw_parts(first, pages) })
}

/// Returns the index of an address among the handles; too large a number if it is not in the region.
fn place(address: u64) -> usize {
    let page = address.wrapping_sub(map::get().space.foreign) / PAGE_SIZE as u64;
    usize::try_from(page).unwrap_or(usize::MAX)
}

/// A guard while the calling vCPU has Xen map or unmap pages and notes the outcome. A vCPU that ends this boot waits
/// until it is dropped.
pub struct MappingChange(&'static Vcpu);

impl MappingChange {
    /// Begins a change. If another vCPU is ending this boot (crash or upgrade), this waits to be stopped, or until that
    /// is cancelled.
    pub fn begin() -> MappingChange {
        let here = vcpu::current();
        here.changes_mappings.store(true, Ordering::Release);
        while reporter::is_another() {
            here.changes_mappings.store(false, Ordering::Release);
            give_way();
            here.changes_mappings.store(true, Ordering::Release);
        }
        MappingChange(here)
    }
}

impl Drop for MappingChange {
    fn drop(&mut self) {
        self.0.changes_mappings.store(false, Ordering::Release);
        give_way();
    }
}

/// Waits to be stopped by the vCPU that ends this boot, or until that one cancels it.
fn give_way() {
    while reporter::is_another() {
        reporter::pause();
    }
}

/// Notes what a hypercall has mapped.
pub fn mapped(batch: &[MapGrantRef]) {
    let Some(handles) = handles() else { return };
    for entry in batch.iter().filter(|entry| entry.status.is_okay()) {
        if let Some(handle) = handles.get(place(entry.host_addr)) {
            handle.store(entry.handle.0.wrapping_add(1), Ordering::Relaxed);
        } else {
            mapped_for_device(entry);
        }
    }
}

/// Notes a page that is mapped for devices alone.
fn mapped_for_device(entry: &MapGrantRef) {
    let number = (entry.dev_bus_addr / PAGE_SIZE as u64 + 1).try_into();
    let frame = device_frames().and_then(|all| all.get(entry.handle.0 as usize));
    match frame.zip(number.ok()) {
        Some((frame, number)) => frame.store(number, Ordering::Relaxed),
        // A restart could not unmap it.
        None => obstacles::add(Obstacle::Devices),
    }
}

/// Notes what a hypercall has unmapped.
pub fn unmapped(batch: &[UnmapGrantRef]) {
    let Some(handles) = handles() else { return };
    for entry in batch.iter().filter(|entry| entry.status.is_okay()) {
        if let Some(handle) = handles.get(place(entry.host_addr)) {
            handle.store(0, Ordering::Relaxed);
        } else if let Some(frame) = device_frames().and_then(|all| all.get(entry.handle.0 as usize))
        {
            frame.store(0, Ordering::Relaxed);
        }
    }
}

/// Unmaps everything, and returns the number of pages that were unmapped and of those that were not.
///
/// # Safety
/// Nothing uses the pages any more: neither code, nor a device, as all have stopped.
pub unsafe fn unmap_all() -> (usize, usize) {
    let foreign = || map::get().space.foreign;
    let numbers = |all: Option<&'static [AtomicU32]>| {
        let all = all.unwrap_or_default().iter().enumerate();
        all.filter_map(|(place, number)| {
            Some((place, number.load(Ordering::Relaxed).checked_sub(1)?))
        })
    };
    let mapped = numbers(handles()).map(|(page, handle)| {
        let address = foreign() + (page * PAGE_SIZE) as u64;
        UnmapGrantRef::new(address, GrantHandle(handle))
    });
    let for_devices = numbers(device_frames()).map(|(handle, frame)| {
        let address = DmaAddr::new(u64::from(frame) * PAGE_SIZE as u64);
        UnmapGrantRef::for_device(address, GrantHandle(handle as u32))
    });
    let mut left = mapped.chain(for_devices);
    let (mut done, mut failed) = (0, 0);
    loop {
        let mut batch: heapless::Vec<UnmapGrantRef, BATCH> = left.by_ref().take(BATCH).collect();
        if batch.is_empty() {
            return (done, failed);
        }
        let (requests, count) = (batch.as_mut_ptr() as u64, batch.len() as u64);
        // SAFETY: Xen reads and writes the batch, checks each handle against the page's address or frame, and unmaps what is
        // this domain's alone; by the contract, nothing uses it.
        let result = unsafe {
            hypercall::grant_table_op(memory::GNTTABOP_UNMAP_GRANT_REF.into(), requests, count)
        };
        let okay = batch.iter().filter(|entry| entry.status.is_okay()).count();
        let okay = if result.is_ok() { okay } else { 0 };
        done += okay;
        failed += batch.len() - okay;
    }
}
