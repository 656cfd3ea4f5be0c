//! `xen.h`, `arch-x86/xen.h` and `callback.h`: the structures with which a PV domain and its vCPUs start, page-table
//! updates and callbacks.

/// `SIF_MOD_START_PFN`: `mod_start` is a page frame number, not an address.
pub const SIF_MOD_START_PFN: u32 = 1 << 3;

/// `struct start_info`, which the toolstack fills in when it builds a PV domain. Addresses are virtual unless they are
/// said to be machine addresses.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct PvStartInfo {
    /// `xen-<version>-<platform>`.
    pub magic: [u8; 32],
    /// The number of pages allocated to the domain.
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
    /// Address of the top-level page table.
    pub pt_base: u64,
    /// The number of page-table frames from there on.
    pub nr_pt_frames: u64,
    /// Address of the list of machine frames by page frame number (the P2M).
    pub mfn_list: u64,
    /// Address (or page frame, see [`SIF_MOD_START_PFN`]) of the module.
    pub mod_start: u64,
    /// The size of the module in bytes.
    pub mod_len: u64,
    /// The command line, ended by a zero byte.
    pub cmd_line: [u8; 1024],
    /// First page frame of the P2M if it is not mapped with the kernel.
    pub first_p2m_pfn: u64,
    /// The number of frames of the P2M.
    pub nr_p2m_frames: u64,
}

/// `MMU_NORMAL_PT_UPDATE`: the command in the low bits of [`MmuUpdate::ptr`] that writes an entry.
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

/// The address at which the machine-to-physical table is mapped for every PV domain (`__MACH2PHYS_VIRT_START`).
pub const MACH2PHYS_VIRT_START: u64 = 0xFFFF_8000_0000_0000;

/// `FLAT_KERNEL_CS`: the code segment that Xen provides for 64-bit kernels.
pub const FLAT_KERNEL_CS: u16 = 0xe033;

/// `FLAT_KERNEL_SS`: the stack segment that goes with it.
pub const FLAT_KERNEL_SS: u16 = 0xe02b;

/// `struct trap_info`: the handler of one exception.
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

/// `struct callback_register`: the handler of upcalls of one kind.
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

/// `UVMF_TLB_FLUSH | UVMF_ALL`: flushes the whole TLB of every vCPU.
pub const UVMF_TLB_FLUSH_ALL: u64 = 1 | (1 << 2);

/// `UVMF_INVLPG | UVMF_ALL`: flushes the TLB entry of the updated mapping on every vCPU.
pub const UVMF_INVLPG_ALL: u64 = 2 | (1 << 2);

/// `VGCF_in_kernel`: the vCPU starts in kernel mode, on the kernel's page tables and GS base.
pub const VGCF_IN_KERNEL: u64 = 1 << 2;

/// `struct cpu_user_regs`: a vCPU's general registers.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
#[allow(missing_docs, reason = "the processor's registers")]
pub struct UserRegs {
    /// r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi.
    pub others: [u64; 14],
    pub rdi: u64,
    pub error_code: u32,
    pub entry_vector: u32,
    pub rip: u64,
    pub cs: u16,
    pub pad0: u16,
    pub saved_upcall_mask: u8,
    pub pad1: [u8; 3],
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
    /// es, ds, fs, gs.
    pub data: [u64; 4],
}

/// `struct vcpu_guest_context`: the state in which a vCPU of a PV domain starts. Fields that are not needed are 0.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct GuestContext {
    /// Floating-point registers; Xen ignores them without `VGCF_i387_valid`.
    pub fpu: [u8; 512],
    /// `VGCF_*`.
    pub flags: u64,
    /// General registers.
    pub registers: UserRegs,
    /// The handlers of exceptions, by vector.
    pub traps: [TrapInfo; 256],
    /// Local descriptor table.
    pub ldt: [u64; 2],
    /// Machine frames of the global descriptor table.
    pub gdt_frames: [u64; 16],
    /// The number of entries of the global descriptor table.
    pub gdt_entries: u64,
    /// Stack segment for entries from user mode.
    pub kernel_ss: u64,
    /// Stack pointer for entries from user mode.
    pub kernel_sp: u64,
    /// cr0 to cr7; cr3 is the machine address of the top-level page table.
    pub control: [u64; 8],
    /// dr0 to dr7.
    pub debug: [u64; 8],
    /// The handler of upcalls.
    pub event_callback: u64,
    /// The handler for a segment register that cannot be loaded.
    pub failsafe_callback: u64,
    /// The handler of system calls.
    pub syscall_callback: u64,
    /// `VMASST_TYPE_*`.
    pub vm_assist: u64,
    /// FS base.
    pub fs_base: u64,
    /// GS base in kernel mode.
    pub gs_base_kernel: u64,
    /// GS base in user mode.
    pub gs_base_user: u64,
}

const _: () = {
    use core::mem::offset_of;
    assert!(offset_of!(UserRegs, rip) == 128);
    assert!(offset_of!(UserRegs, saved_upcall_mask) == 140);
    assert!(size_of::<UserRegs>() == 200);
    assert!(offset_of!(GuestContext, registers) == 520);
    assert!(offset_of!(GuestContext, kernel_sp) == 4976);
    assert!(size_of::<GuestContext>() == 5168);
    assert!(offset_of!(PvStartInfo, store_mfn) == 56);
    assert!(offset_of!(PvStartInfo, console_mfn) == 72);
    assert!(offset_of!(PvStartInfo, pt_base) == 88);
    assert!(offset_of!(PvStartInfo, cmd_line) == 128);
    assert!(offset_of!(PvStartInfo, first_p2m_pfn) == 1152);
    assert!(size_of::<PvStartInfo>() == 1168);
    assert!(size_of::<MmuUpdate>() == 16);
    assert!(size_of::<TrapInfo>() == 16);
    assert!(size_of::<CallbackRegister>() == 16);
};
