//! `io/pciif.h`: the page through which a PCI frontend asks its backend for operations on the devices that it was
//! given.

/// `XEN_PCI_MAGIC`, the version of the protocol: the value of the node `magic`.
pub const MAGIC: &str = "7";

/// `XEN_PCIF_active`: the frontend has written an [`Op`], and the backend has not answered it yet.
pub const FRONTEND_ACTIVE: u32 = 1 << 0;
/// `XEN_PCIB_AERHANDLER`: the frontend handles errors that devices report.
pub const AER_HANDLER: u32 = 1 << 1;
/// `XEN_PCIB_active`: the backend has written an [`AerOp`], and the frontend has not answered it yet.
pub const BACKEND_ACTIVE: u32 = 1 << 2;

/// `XEN_PCI_OP_conf_read`.
pub const CONF_READ: u32 = 0;
/// `XEN_PCI_OP_conf_write`.
pub const CONF_WRITE: u32 = 1;
/// `XEN_PCI_OP_enable_msi`: the interrupt comes back in `value`.
pub const ENABLE_MSI: u32 = 2;
/// `XEN_PCI_OP_disable_msi`.
pub const DISABLE_MSI: u32 = 3;
/// `XEN_PCI_OP_enable_msix`: the interrupts of `value` entries come back in them.
pub const ENABLE_MSIX: u32 = 4;
/// `XEN_PCI_OP_disable_msix`.
pub const DISABLE_MSIX: u32 = 5;

/// `XEN_PCI_ERR_success`.
pub const SUCCESS: i32 = 0;
/// `XEN_PCI_ERR_dev_not_found`.
pub const DEV_NOT_FOUND: i32 = -1;
/// `XEN_PCI_ERR_invalid_offset`.
pub const INVALID_OFFSET: i32 = -2;
/// `XEN_PCI_ERR_access_denied`.
pub const ACCESS_DENIED: i32 = -3;
/// `XEN_PCI_ERR_not_implemented`.
pub const NOT_IMPLEMENTED: i32 = -4;
/// `XEN_PCI_ERR_op_failed`.
pub const OP_FAILED: i32 = -5;

/// `PCI_ERS_RESULT_NONE` of Linux's pci.h, as an answer to an [`AerOp`]: the frontend does nothing about errors.
pub const AER_RESULT_NONE: i32 = 1;

/// `SH_INFO_MAX_VEC`: the largest number of entries of an operation on MSI-X.
pub const MAX_VECTORS: usize = 128;

/// `struct xen_msix_entry`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct MsixEntry {
    /// Out: the physical interrupt.
    pub vector: u16,
    /// In: its number in the device's table.
    pub entry: u16,
}

/// `struct xen_pci_op`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Op {
    /// In: `XEN_PCI_OP_*`.
    pub cmd: u32,
    /// Out: `XEN_PCI_ERR_*`, or an error number of Linux's, negative.
    pub err: i32,
    /// In: the device's PCI domain.
    pub domain: u32,
    /// In: its bus.
    pub bus: u32,
    /// In: its number on the bus, times 8, and the function.
    pub devfn: u32,
    /// In: the offset of the register in configuration space.
    pub offset: i32,
    /// In: its size in bytes: 1, 2 or 4.
    pub size: i32,
    /// In or out: the value.
    pub value: u32,
    /// In: more about the operation.
    pub info: u32,
    /// In and out: the interrupts.
    pub msix_entries: [MsixEntry; MAX_VECTORS],
}

/// `struct xen_pcie_aer_op`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct AerOp {
    /// In: `XEN_PCI_OP_aer_*`.
    pub cmd: u32,
    /// In: the device's state; out: `PCI_ERS_RESULT_*`.
    pub err: i32,
    /// In: the device's PCI domain.
    pub domain: u32,
    /// In: its bus.
    pub bus: u32,
    /// In: its number on the bus, times 8, and the function.
    pub devfn: u32,
}

/// `struct xen_pci_sharedinfo`: the page.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct PciSharedInfo {
    /// `XEN_PCIF_*` and `XEN_PCIB_*`.
    pub flags: u32,
    /// The frontend's request.
    pub op: Op,
    /// The backend's request.
    pub aer_op: AerOp,
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<MsixEntry>() == 4);
    assert!(offset_of!(Op, offset) == 20);
    assert!(offset_of!(Op, value) == 28);
    assert!(offset_of!(Op, msix_entries) == 36);
    assert!(size_of::<Op>() == 548);
    assert!(size_of::<AerOp>() == 20);
    assert!(offset_of!(PciSharedInfo, op) == 4);
    assert!(offset_of!(PciSharedInfo, aer_op) == 552);
    assert!(size_of::<PciSharedInfo>() == 572);
};
