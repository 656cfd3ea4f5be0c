//! `xen.h`, `arch-x86/xen.h` and `callback.h`: what a PV domain starts with and asks for.

/// `SIF_MOD_START_PFN`: `mod_start` is a page frame number, not an address.
pub const SIF_MOD_START_PFN: u32 = 1 << 3;

/// `struct start_info`: what the builder leaves for a PV domain.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct StartInfo {
    /// `xen-<version>-<platform>`.
    pub magic: [u8; 32],
    /// Pages allocated to the domain.
    pub nr_pages: u64,
    /// Machine address of the shared page.
    pub shared_info: u64,
    /// `SIF_*`.
    pub flags: u32,
    /// Machine frame of the xenstore ring.
    pub store_mfn: u64,
    /// Port of the xenstore ring.
    pub store_evtchn: u32,
    /// Machine frame of the console ring.
    pub console_mfn: u64,
    /// Port of the console ring.
    pub console_evtchn: u32,
    /// Address of the top page table.
    pub pt_base: u64,
    /// Page-table frames from there on.
    pub nr_pt_frames: u64,
    /// Address of the list that turns page frames into machine frames.
    pub mfn_list: u64,
    /// Address (or page frame, see [`SIF_MOD_START_PFN`]) of the module.
    pub mod_start: u64,
    /// Bytes in the module.
    pub mod_len: u64,
    /// The command line, ended by a zero byte.
    pub cmd_line: [u8; 1024],
    /// First page frame of the list if it is not mapped with the kernel.
    pub first_p2m_pfn: u64,
    /// Frames of the list.
    pub nr_p2m_frames: u64,
}

/// `MMU_NORMAL_PT_UPDATE`: the low bits of [`MmuUpdate::ptr`].
pub const MMU_NORMAL_PT_UPDATE: u64 = 0;

/// `struct mmu_update`: one page-table entry to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct MmuUpdate {
    /// Machine address of the entry, and the command in its low bits.
    pub ptr: u64,
    /// The new entry.
    pub val: u64,
}

/// Where the machine-to-physical table is mapped for every PV domain (`__MACH2PHYS_VIRT_START`).
pub const MACH2PHYS_VIRT_START: u64 = 0xFFFF_8000_0000_0000;

/// `FLAT_KERNEL_CS`: the code segment that Xen provides for 64-bit kernels.
pub const FLAT_KERNEL_CS: u16 = 0xe033;

/// `struct trap_info`: where one exception goes.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct TrapInfo {
    /// The exception's number.
    pub vector: u8,
    /// Bits 0-1: privilege that may raise it by instruction; bit 2: mask upcalls.
    pub flags: u8,
    /// Code segment of the handler.
    pub cs: u16,
    /// The handler; 0 ends the table.
    pub address: u64,
}

/// `CALLBACKOP_register`.
pub const CALLBACKOP_REGISTER: u32 = 0;
/// `CALLBACKTYPE_event`.
pub const CALLBACKTYPE_EVENT: u16 = 0;
/// `CALLBACKTYPE_failsafe`.
pub const CALLBACKTYPE_FAILSAFE: u16 = 1;

/// `struct callback_register`: where upcalls go.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct CallbackRegister {
    /// `CALLBACKTYPE_*`.
    pub kind: u16,
    /// `CALLBACKF_*`.
    pub flags: u16,
    /// The handler.
    pub address: u64,
}

/// `SEGBASE_GS_KERNEL`.
pub const SEGBASE_GS_KERNEL: u32 = 2;

/// `UVMF_TLB_FLUSH | UVMF_ALL`: all translations are forgotten on every vCPU.
pub const UVMF_TLB_FLUSH_ALL: u64 = 1 | (1 << 2);

/// `UVMF_INVLPG | UVMF_ALL`: an updated mapping is flushed on every vCPU.
pub const UVMF_INVLPG_ALL: u64 = 2 | (1 << 2);

const _: () = {
    use core::mem::offset_of;
    assert!(offset_of!(StartInfo, store_mfn) == 56);
    assert!(offset_of!(StartInfo, console_mfn) == 72);
    assert!(offset_of!(StartInfo, pt_base) == 88);
    assert!(offset_of!(StartInfo, cmd_line) == 128);
    assert!(offset_of!(StartInfo, first_p2m_pfn) == 1152);
    assert!(size_of::<StartInfo>() == 1168);
    assert!(size_of::<MmuUpdate>() == 16);
    assert!(size_of::<TrapInfo>() == 16);
    assert!(size_of::<CallbackRegister>() == 16);
};
