//! `memory.h`, and the part of `grant_table.h` that sets up the domain's own table.

use crate::{DomId, GrantStatus};

/// `XENMEM_decrease_reservation`.
pub const DECREASE_RESERVATION: u32 = 1;
/// `XENMEM_current_reservation`: returns the number of pages that a domain has. Takes the domain's number.
pub const CURRENT_RESERVATION: u32 = 3;
/// `XENMEM_populate_physmap`.
pub const POPULATE_PHYSMAP: u32 = 6;
/// `XENMEM_add_to_physmap`.
pub const ADD_TO_PHYSMAP: u32 = 7;

/// `struct xen_memory_reservation`: memory that a domain gives back or asks for.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct MemoryReservation {
    /// The frames. Frames that are given back are gfns, which are mfns on PV. Where frames are asked for, these are the
    /// page frame numbers of the pages that get them; Xen replaces them by the new mfns for a PV domain.
    pub extent_start: *mut u64,
    /// The number of extents.
    pub nr_extents: u64,
    /// The number of pages of each extent, as a power of two.
    pub extent_order: u32,
    /// `XENMEMF_*`.
    pub mem_flags: u32,
    /// The domain, normally [`DomId::SELF`].
    pub domid: DomId,
}

/// `XENMAPSPACE_shared_info`.
pub const MAPSPACE_SHARED_INFO: u32 = 0;
/// `XENMAPSPACE_grant_table`.
pub const MAPSPACE_GRANT_TABLE: u32 = 1;

/// `struct xen_add_to_physmap`: maps a page of Xen's into the guest-physical address space.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct AddToPhysmap {
    /// The domain, normally [`DomId::SELF`].
    pub domid: DomId,
    /// The number of pages, for `XENMAPSPACE_gmfn_range` only.
    pub size: u16,
    /// `XENMAPSPACE_*`.
    pub space: u32,
    /// The number of the page in that space.
    pub idx: u64,
    /// The guest frame at which it is to appear.
    pub gpfn: u64,
}

/// `GNTTABOP_map_grant_ref`.
pub const GNTTABOP_MAP_GRANT_REF: u32 = 0;
/// `GNTTABOP_unmap_grant_ref`.
pub const GNTTABOP_UNMAP_GRANT_REF: u32 = 1;
/// `GNTTABOP_setup_table`.
pub const GNTTABOP_SETUP_TABLE: u32 = 2;
/// `GNTTABOP_transfer`.
pub const GNTTABOP_TRANSFER: u32 = 4;
/// `GNTTABOP_copy`.
pub const GNTTABOP_COPY: u32 = 5;
/// `GNTTABOP_query_size`.
pub const GNTTABOP_QUERY_SIZE: u32 = 6;

/// `struct gnttab_setup_table`: grows the domain's own table, and returns its frames (PV).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct SetupTable {
    /// In: the domain, normally [`DomId::SELF`].
    pub dom: DomId,
    /// In: the number of frames.
    pub nr_frames: u32,
    /// Out: the outcome.
    pub status: GrantStatus,
    /// Out: the frames.
    pub frame_list: *mut u64,
}

/// `struct gnttab_query_size`: the present and the largest size of the domain's own table.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct QuerySize {
    /// In: the domain, normally [`DomId::SELF`].
    pub dom: DomId,
    /// Out: the number of its frames.
    pub nr_frames: u32,
    /// Out: the largest number of frames.
    pub max_nr_frames: u32,
    /// Out: the outcome.
    pub status: GrantStatus,
}

const _: () = {
    assert!(size_of::<AddToPhysmap>() == 24);
    assert!(size_of::<SetupTable>() == 24);
    assert!(size_of::<MemoryReservation>() == 32);
    assert!(size_of::<QuerySize>() == 16);
};
