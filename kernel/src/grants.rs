//! This domain's grant table, mapped when it is first asked for.

use crate::memory::{map, pv};
use crate::{domain, hypercall};
use bulkhead_xen::abi::grant_table::EntryV1;
#[cfg(feature = "recover")]
use bulkhead_xen::abi::grant_table::RESERVED_ENTRIES;
use bulkhead_xen::abi::memory::{self, AddToPhysmap, QuerySize, SetupTable};
use bulkhead_xen::{DomId, Errno, GrantStatus, PAGE_SIZE};
#[cfg(feature = "recover")]
use core::ops::Range;
use core::sync::atomic::{AtomicBool, Ordering};

static TAKEN: AtomicBool = AtomicBool::new(false);

/// The entries, once the table is mapped.
#[cfg(feature = "recover")]
static MAPPED: spin::Once<&'static [EntryV1]> = spin::Once::new();

/// The largest number of frames that is used: xl's default limit.
const MAX_FRAMES: u32 = 64;

/// Returns all entries that Xen lets this domain have; `None` after the first call, or if there is no table.
pub fn own_table() -> Option<&'static [EntryV1]> {
    if TAKEN.swap(true, Ordering::Relaxed) {
        return None;
    }
    match map(map::get().space.special) {
        Ok(entries) => Some(entries),
        Err(error) => {
            log::error!("cannot set up the grant table: {error}");
            None
        }
    }
}

/// Returns the page frames in all entries by which a boot before this one has granted pages to other domains. An entry
/// may name a frame that is not this domain's memory. `special` is the address for pages that Xen shares with this
/// domain, where there are page tables already.
///
/// # Panics
/// If Xen gives no table.
#[cfg(feature = "recover")]
pub fn granted_before(special: u64) -> impl Iterator<Item = u64> + Clone {
    let entries = match crate::recovery::region::is_restart() {
        true => map(special).expect("cannot see what was granted before the restart"),
        false => &[],
    };
    granted(entries)
}

/// Returns whether an entry of the table, of this boot or of one before, grants another domain a page of this domain at
/// these addresses.
#[cfg(feature = "recover")]
pub fn has_granted(addresses: Range<u64>) -> bool {
    let page = PAGE_SIZE as u64;
    let frames = addresses.start / page..addresses.end.div_ceil(page);
    granted(MAPPED.get().copied().unwrap_or_default()).any(|frame| frames.contains(&frame))
}

/// Returns the page frames that entries name.
#[cfg(feature = "recover")]
fn granted(entries: &[EntryV1]) -> impl Iterator<Item = u64> + Clone {
    let used = entries.iter().skip(RESERVED_ENTRIES as usize);
    let used = used.filter(|entry| entry.flags.load(Ordering::Acquire) != 0);
    used.map(|entry| page_frame(entry.frame.load(Ordering::Relaxed).into()))
}

/// Returns the page frame that a grant of this domain names: on PV, the grant names the machine frame.
#[cfg(feature = "recover")]
pub fn page_frame(frame: u64) -> u64 {
    match domain::is_pvh() {
        true => frame,
        false => pv::pseudo_physical(frame),
    }
}

/// Maps the table: the first of the special pages is the shared info page, and the table follows.
fn map(special: u64) -> Result<&'static [EntryV1], Errno> {
    let address = special + PAGE_SIZE as u64;
    let frames = map_frames(address)?;
    let entries = frames as usize * PAGE_SIZE / size_of::<EntryV1>();
    // SAFETY: that many frames of the table are there, where they stay; entries are atomics through and through.
    let entries = unsafe { core::slice::from_raw_parts(address as *const EntryV1, entries) };
    #[cfg(feature = "recover")]
    MAPPED.call_once(|| entries);
    Ok(entries)
}

fn map_frames(address: u64) -> Result<u32, Errno> {
    let mut size = QuerySize {
        dom: DomId::SELF,
        nr_frames: 0,
        max_nr_frames: 0,
        status: GrantStatus::GENERAL_ERROR,
    };
    // SAFETY: Xen writes the sizes into the request.
    unsafe {
        hypercall::grant_table_op(
            memory::GNTTABOP_QUERY_SIZE.into(),
            hypercall::pointer(&mut size),
            1,
        )?;
    }
    if !size.status.is_okay() {
        return Err(Errno::INVAL);
    }
    let frames = size.max_nr_frames.min(MAX_FRAMES);
    if domain::is_pvh() {
        // From the last to the first, so that the table grows once.
        for index in (0..frames).rev() {
            add_to_physmap(
                memory::MAPSPACE_GRANT_TABLE,
                index.into(),
                address + u64::from(index) * PAGE_SIZE as u64,
            )?;
        }
        return Ok(frames);
    }
    let mut list = [0u64; MAX_FRAMES as usize];
    let mut setup = SetupTable {
        dom: DomId::SELF,
        nr_frames: frames,
        status: GrantStatus::GENERAL_ERROR,
        frame_list: list.as_mut_ptr(),
    };
    // SAFETY: Xen writes the frames into the list, which has room for them.
    unsafe {
        hypercall::grant_table_op(
            memory::GNTTABOP_SETUP_TABLE.into(),
            hypercall::pointer(&mut setup),
            1,
        )?;
    }
    if !setup.status.is_okay() {
        return Err(Errno::INVAL);
    }
    for (index, mfn) in list.iter().take(frames as usize).enumerate() {
        // SAFETY: a page of address space set aside for this.
        unsafe { pv::map_special(address + (index * PAGE_SIZE) as u64, *mfn)? };
    }
    Ok(frames)
}

/// Maps a page of Xen's at a guest-physical address (PVH).
pub fn add_to_physmap(space: u32, index: u64, address: u64) -> Result<(), Errno> {
    let mut request = AddToPhysmap {
        domid: DomId::SELF,
        size: 0,
        space,
        idx: index,
        gpfn: address / PAGE_SIZE as u64,
    };
    // SAFETY: callers name addresses without memory behind them.
    unsafe {
        hypercall::memory_op(
            memory::ADD_TO_PHYSMAP.into(),
            hypercall::pointer(&mut request),
        )
    }
    .map(|_| ())
}
