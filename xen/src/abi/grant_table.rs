//! `grant_table.h`: grant operations as the hypervisor reads them, and version 1 grant entries.

use crate::{DmaAddr, DomId, Gfn, GrantHandle, GrantRef, GrantStatus};

bitflags::bitflags! {
    /// `GNTMAP_*`: the kind of a mapping.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct MapFlags: u32 {
        /// Keep the page where devices can use it, also when nothing maps it for the CPU any more. Without
        /// [`HOST_MAP`](Self::HOST_MAP), there is no mapping for the CPU. Refused to PVH domains.
        const DEVICE_MAP = 1 << 0;
        /// Map into the caller's address space at `host_addr`.
        const HOST_MAP = 1 << 1;
        /// Map for reading only.
        const READONLY = 1 << 2;
    }
}

bitflags::bitflags! {
    /// `GTF_*`: the flags of a version 1 grant entry.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct EntryFlags: u16 {
        /// The named domain may map and copy the frame.
        const PERMIT_ACCESS = 1 << 0;
        /// The named domain may only read.
        const READONLY = 1 << 2;
        /// Set by Xen while the frame is mapped, or being copied, for reading.
        const READING = 1 << 3;
        /// Set by Xen while the frame is mapped, or being copied, for writing.
        const WRITING = 1 << 4;
    }
}

bitflags::bitflags! {
    /// `GTF_*`: the flags of a version 1 grant entry that accepts a frame. Its bits have other meanings than
    /// those of [`EntryFlags`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct TransferFlags: u16 {
        /// The named domain may transfer one frame to this domain.
        const ACCEPT_TRANSFER = 1 << 1;
        /// Set by Xen when a transfer has begun: the entry is Xen's until it is completed.
        const COMMITTED = 1 << 2;
        /// Set by Xen when the transfer is done and the entry names the frame.
        const COMPLETED = 1 << 3;
    }
}

/// `GTF_type_mask`: the bits of an entry's flags that say what the entry is for.
pub const TYPE_MASK: u16 = 3;

bitflags::bitflags! {
    /// `GNTCOPY_*`: which ends of a copy are grant references.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct CopyFlags: u16 {
        /// The source names a grant reference.
        const SOURCE_GREF = 1 << 0;
        /// The destination names a grant reference.
        const DEST_GREF = 1 << 1;
    }
}

/// `struct gnttab_map_grant_ref`: one mapping of a batch, with room for its outcome.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct MapGrantRef {
    /// In: where to map (guest-physical on PVH, virtual on PV; Bulkhead keeps both equal).
    pub host_addr: u64,
    /// In: [`MapFlags`].
    pub flags: u32,
    /// In: the grant.
    pub gref: GrantRef,
    /// In: the granting domain.
    pub domain: DomId,
    /// Out: the outcome.
    pub status: GrantStatus,
    /// Out: the handle by which it is unmapped.
    pub handle: GrantHandle,
    /// Out: the bus address of the page, in bytes; [`dma_addr`](Self::dma_addr) has it as a type.
    pub dev_bus_addr: u64,
}

impl MapGrantRef {
    /// Returns a request to map `gref` of `domain` at `host_addr`.
    pub fn new(host_addr: u64, flags: MapFlags, gref: GrantRef, domain: DomId) -> Self {
        MapGrantRef {
            host_addr,
            flags: flags.bits(),
            gref,
            domain,
            status: GrantStatus::GENERAL_ERROR,
            handle: GrantHandle(u32::MAX),
            dev_bus_addr: 0,
        }
    }

    /// Returns a request to map `gref` of `domain` for devices alone: `flags` are without [`MapFlags::HOST_MAP`].
    pub fn for_device(flags: MapFlags, gref: GrantRef, domain: DomId) -> Self {
        Self::new(0, flags, gref, domain)
    }

    /// Returns the bus address of the page for devices of a PV domain, once it is mapped. `None` before that.
    ///
    /// The header promises it with [`MapFlags::DEVICE_MAP`] alone. Xen (4.17 to 4.20, `map_grant_ref` in
    /// common/grant_table.c) fills in the machine address of the page for every mapping, whatever its flags
    /// and its domain; and if a PV domain has devices, every mapping of a foreign page is in their IOMMU
    /// tables at that address, read-only ones for reading (`gnttab_need_iommu_mapping`). In a PVH domain the
    /// address is of no use: its devices, if Xen gave it any, would go through its guest frames.
    #[inline]
    pub fn dma_addr(&self) -> Option<DmaAddr> {
        DmaAddr::new(self.dev_bus_addr)
    }
}

/// `struct gnttab_unmap_grant_ref`: one unmapping of a batch, with room for its outcome.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct UnmapGrantRef {
    /// In: where it was mapped.
    pub host_addr: u64,
    /// In: the bus address if it was mapped for a device, else 0.
    pub dev_bus_addr: u64,
    /// In: the handle that the mapping gave.
    pub handle: GrantHandle,
    /// Out: the outcome.
    pub status: GrantStatus,
}

impl UnmapGrantRef {
    /// Returns a request to unmap what `handle` names from `host_addr`.
    pub fn new(host_addr: u64, handle: GrantHandle) -> Self {
        UnmapGrantRef {
            host_addr,
            dev_bus_addr: 0,
            handle,
            status: GrantStatus::GENERAL_ERROR,
        }
    }

    /// Returns a request to unmap what `handle` names, which was mapped for devices alone, from `address`. Without the
    /// address, Xen (4.17 to 4.20, `unmap_common`) leaves the mapping as it is, and reports no error.
    pub fn for_device(address: Option<DmaAddr>, handle: GrantHandle) -> Self {
        UnmapGrantRef {
            host_addr: 0,
            dev_bus_addr: address.map_or(0, DmaAddr::get),
            handle,
            status: GrantStatus::GENERAL_ERROR,
        }
    }
}

/// One end of a grant copy (`struct gnttab_copy_ptr`).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct CopyEnd {
    /// A grant reference (in the low 32 bits) or a frame of the domain, as the flags say.
    pub what: u64,
    /// The domain that owns it; [`DomId::SELF`] for an own frame.
    pub domain: DomId,
    /// The offset of the first byte in the page, 0 to 4095.
    pub offset: u16,
}

impl CopyEnd {
    /// Bytes from `offset` of a page that `domain` granted.
    pub fn granted(gref: GrantRef, domain: DomId, offset: u16) -> Self {
        CopyEnd {
            what: u64::from(gref.0),
            domain,
            offset,
        }
    }

    /// Bytes from `offset` of an own page.
    pub fn own(frame: Gfn, offset: u16) -> Self {
        CopyEnd {
            what: frame.0,
            domain: DomId::SELF,
            offset,
        }
    }
}

/// `struct gnttab_copy`: one copy of a batch, with room for its outcome. It never crosses a page.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct GrantCopy {
    /// In: the source.
    pub source: CopyEnd,
    /// In: the destination.
    pub dest: CopyEnd,
    /// In: the number of bytes, 1 to 4096.
    pub len: u16,
    /// In: [`CopyFlags`].
    pub flags: u16,
    /// Out: the outcome.
    pub status: GrantStatus,
}

/// `struct gnttab_transfer`: one frame of a batch that is given away, with room for its outcome.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct GrantTransfer {
    /// In: the caller's frame.
    pub frame: Gfn,
    /// In: the domain that is to have it.
    pub domain: DomId,
    /// In: that domain's entry that accepts it.
    pub gref: GrantRef,
    /// Out: the outcome.
    pub status: GrantStatus,
}

/// `struct grant_entry_v1`: one entry of our own grant table. It lives in memory shared with Xen:
/// `flags` is only ever touched atomically.
#[derive(Debug)]
#[repr(C)]
pub struct EntryV1 {
    /// [`EntryFlags`]; written last when granting, compared-and-swapped when revoking.
    pub flags: core::sync::atomic::AtomicU16,
    /// The domain that may access the frame.
    pub domain: core::sync::atomic::AtomicU16,
    /// The granted frame (a gfn on PVH, an mfn on PV). In an entry that accepts a transfer, the page frame number of
    /// the page that is to get the transferred frame; when the transfer is completed, a PV domain finds the frame's mfn
    /// here.
    pub frame: core::sync::atomic::AtomicU32,
}

/// The number of entries at the start of the table that are the toolstack's (`GNTTAB_NR_RESERVED_ENTRIES`).
pub const RESERVED_ENTRIES: u32 = 8;

const _: () = {
    assert!(size_of::<MapGrantRef>() == 32);
    assert!(size_of::<UnmapGrantRef>() == 24);
    assert!(size_of::<GrantCopy>() == 40);
    assert!(size_of::<GrantTransfer>() == 24);
    assert!(size_of::<EntryV1>() == 8);
};
