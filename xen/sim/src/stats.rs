//! Counts that the simulated Xen keeps for each domain, and the rules that it saw broken.

use bulkhead_xen::{DomId, Gfn, GrantHandle, Pfn, Port};
use std::fmt;
use std::ops::Sub;

macro_rules! counters {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: u64,)*
        }

        impl Sub for $name {
            type Output = $name;

            /// Returns what was counted since `earlier`.
            fn sub(self, earlier: $name) -> $name {
                $name { $($field: self.$field - earlier.$field,)* }
            }
        }
    };
}

counters! {
    /// Counts of what a domain asked of Xen. Subtract an earlier one to see what lies between.
    Stats {
        /// `GNTTABOP_map_grant_ref` hypercalls, however many entries each had.
        map_calls,
        /// Entries of those that were mapped.
        maps,
        /// Entries of those that were refused.
        maps_refused,
        /// `GNTTABOP_unmap_grant_ref` hypercalls.
        unmap_calls,
        /// Entries of those that were unmapped.
        unmaps,
        /// `GNTTABOP_copy` hypercalls.
        copy_calls,
        /// Entries of those that were copied.
        copies,
        /// Entries of those that were refused.
        copies_refused,
        /// Bytes that `GNTTABOP_copy` copied.
        bytes_copied,
        /// `EVTCHNOP_send` hypercalls.
        notifications_sent,
        /// Ports that became pending: each is one upcall or interrupt unless several fall together.
        notifications_received,
        /// `EVTCHNOP_bind_interdomain` and `EVTCHNOP_alloc_unbound` hypercalls.
        bind_calls,
        /// `EVTCHNOP_close` hypercalls.
        close_calls,
        /// `SCHEDOP_block` hypercalls: the domain asked to block while nothing was pending.
        block_calls,
        /// Interrupts sent to other vCPUs of the domain.
        wake_calls,
        /// `PHYSDEVOP_eoi` hypercalls.
        eoi_calls,
        /// `XENMEM_decrease_reservation` hypercalls.
        release_calls,
        /// Pages given back with something other than zeros in them, which Xen may show to their
        /// next owner.
        pages_released_uncleared,
        /// `XENMEM_populate_physmap` hypercalls.
        populate_calls,
        /// `GNTTABOP_transfer` hypercalls, however many entries each had.
        transfer_calls,
        /// Entries of those whose frames were transferred.
        transfers,
        /// Entries of those that were refused.
        transfers_refused,
    }
}

impl Stats {
    /// Returns all hypercalls together.
    pub fn hypercalls(&self) -> u64 {
        self.map_calls
            + self.unmap_calls
            + self.copy_calls
            + self.notifications_sent
            + self.bind_calls
            + self.close_calls
            + self.block_calls
            + self.wake_calls
            + self.eoi_calls
            + self.release_calls
            + self.populate_calls
            + self.transfer_calls
    }
}

/// A mistake that no hostile domain can bring about: the caller's own. The real Xen crashes the
/// caller for some of these, corrupts its address space with others, and merely returns an error
/// for the rest; tests assert that there are none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A grant was to be mapped outside the foreign region, or not at a page boundary.
    MapOutsideRegion {
        /// The domain that asked.
        domain: DomId,
        /// The address.
        address: u64,
    },
    /// A grant was to be mapped where one is mapped already.
    MapOccupied {
        /// The domain that asked.
        domain: DomId,
        /// The address.
        address: u64,
    },
    /// A grant was to be mapped with flags that this domain cannot use.
    MapFlags {
        /// The domain that asked.
        domain: DomId,
        /// The flags.
        flags: u32,
    },
    /// A handle was given to unmap that maps nothing.
    UnmapHandle {
        /// The domain that asked.
        domain: DomId,
        /// The handle.
        handle: GrantHandle,
    },
    /// A handle was given to unmap with an address where it is not mapped.
    UnmapAddress {
        /// The domain that asked.
        domain: DomId,
        /// The handle.
        handle: GrantHandle,
        /// The address.
        address: u64,
    },
    /// A copy was asked for that leaves the page.
    CopyBounds {
        /// The domain that asked.
        domain: DomId,
    },
    /// A port was used that is not open.
    ClosedPort {
        /// The domain that asked.
        domain: DomId,
        /// The port.
        port: Port,
    },
    /// A page was freed while another domain had it mapped.
    FreedWhileShared {
        /// The domain whose page it is.
        domain: DomId,
        /// The page.
        frame: Gfn,
    },
    /// A device was to access memory that its IOMMU tables do not have, or not for that.
    Dma {
        /// The domain whose device it is.
        domain: DomId,
        /// The bus address.
        address: u64,
    },
    /// MSI-X was enabled for a function that dom0 had not prepared for it, which ends the domain.
    UnpreparedMsix {
        /// The domain that has the function.
        domain: DomId,
    },
    /// A page was released that is not memory of the domain, or is not any more.
    ReleasedNothing {
        /// The domain that asked.
        domain: DomId,
        /// The page.
        address: u64,
    },
    /// A page was to be populated that was not released.
    PopulatedOccupied {
        /// The domain that asked.
        domain: DomId,
        /// The page.
        address: u64,
    },
    /// A frame was accepted for a page frame that has one, or that the domain does not have.
    AcceptedOccupied {
        /// The domain that accepted it.
        domain: DomId,
        /// The page frame.
        place: Pfn,
    },
    /// A page was to adopt a frame that was not transferred for it.
    AdoptedNothing {
        /// The domain that asked.
        domain: DomId,
        /// The page.
        address: u64,
    },
}

impl Violation {
    /// Returns the domain whose mistake it is.
    pub fn domain(&self) -> DomId {
        match *self {
            Violation::MapOutsideRegion { domain, .. }
            | Violation::MapOccupied { domain, .. }
            | Violation::MapFlags { domain, .. }
            | Violation::UnmapHandle { domain, .. }
            | Violation::UnmapAddress { domain, .. }
            | Violation::CopyBounds { domain }
            | Violation::ClosedPort { domain, .. }
            | Violation::FreedWhileShared { domain, .. }
            | Violation::Dma { domain, .. }
            | Violation::UnpreparedMsix { domain }
            | Violation::ReleasedNothing { domain, .. }
            | Violation::PopulatedOccupied { domain, .. }
            | Violation::AcceptedOccupied { domain, .. }
            | Violation::AdoptedNothing { domain, .. } => domain,
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "domain {}: ", self.domain())?;
        match self {
            Violation::MapOutsideRegion { address, .. } => {
                write!(
                    f,
                    "mapping at {address:#x}, which is not a page of the foreign region"
                )
            }
            Violation::MapOccupied { address, .. } => {
                write!(
                    f,
                    "mapping at {address:#x}, where a grant is mapped already"
                )
            }
            Violation::MapFlags { flags, .. } => write!(f, "mapping with flags {flags:#x}"),
            Violation::UnmapHandle { handle, .. } => {
                write!(f, "unmapping handle {handle}, which maps nothing")
            }
            Violation::UnmapAddress {
                handle, address, ..
            } => write!(
                f,
                "unmapping handle {handle} from {address:#x}, where it is not mapped"
            ),
            Violation::CopyBounds { .. } => f.write_str("copying beyond a page"),
            Violation::ClosedPort { port, .. } => write!(f, "using port {port}, which is not open"),
            Violation::FreedWhileShared { frame, .. } => {
                write!(
                    f,
                    "freeing frame {frame:?}, which another domain has mapped"
                )
            }
            Violation::Dma { address, .. } => {
                write!(
                    f,
                    "letting a device access bus address {address:#x}, which it may not"
                )
            }
            Violation::UnpreparedMsix { .. } => f.write_str("enabling MSI-X that was not prepared"),
            Violation::ReleasedNothing { address, .. } => {
                write!(f, "releasing {address:#x}, which is not its own memory")
            }
            Violation::PopulatedOccupied { address, .. } => {
                write!(f, "populating {address:#x}, which is not a released page")
            }
            Violation::AcceptedOccupied { place, .. } => {
                write!(
                    f,
                    "accepting a frame for page frame {place}, which is not free"
                )
            }
            Violation::AdoptedNothing { address, .. } => {
                write!(f, "adopting a frame at {address:#x}, for which none came")
            }
        }
    }
}
