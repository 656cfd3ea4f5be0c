//! Our own grant table, mapped when it is first asked for.

use crate::memory::{map, pv};
#[cfg(feature = "recover")]
use crate::recovery::obstacles::{self, Obstacle};
use crate::{domain, hypercall};
use bulkhead_xen::abi::grant_table::EntryV1;
use bulkhead_xen::abi::memory::{self, AddToPhysmap, QuerySize, SetupTable};
use bulkhead_xen::{DomId, Errno, GrantStatus, PAGE_SIZE};
use core::sync::atomic::{AtomicBool, Ordering};

static TAKEN: AtomicBool = AtomicBool::new(false);

/// The most frames we ask for: xl's own default limit.
const MAX_FRAMES: u32 = 64;

/// All entries that Xen lets us have; `None` after the first call, or if there is no table.
pub fn own_table() -> Option<&'static [EntryV1]> {
    if TAKEN.swap(true, Ordering::Relaxed) {
        return None;
    }
    #[cfg(feature = "recover")]
    obstacles::add(Obstacle::Grants);
    match map() {
        Ok(frames) => {
            let entries = frames as usize * PAGE_SIZE / size_of::<EntryV1>();
            // SAFETY: `map` has put that many frames of the table there, where they stay; entries
            // are atomics through and through.
            Some(unsafe { core::slice::from_raw_parts(address() as *const EntryV1, entries) })
        }
        Err(error) => {
            log::error!("cannot set up the grant table: {error}");
            None
        }
    }
}

/// The first page of the special ones is the shared info page; the table follows.
fn address() -> u64 {
    map::get().space.special + PAGE_SIZE as u64
}

fn map() -> Result<u32, Errno> {
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
                address() + u64::from(index) * PAGE_SIZE as u64,
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
        unsafe { pv::map_special(address() + (index * PAGE_SIZE) as u64, *mfn)? };
    }
    Ok(frames)
}

/// Makes a page of Xen's appear at a guest-physical address (PVH).
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
