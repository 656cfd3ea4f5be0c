//! `hvm/params.h`, `hvm/hvm_op.h`, `hvm/hvm_vcpu.h` and `arch-x86/hvm/start_info.h`: the structures with which a PVH
//! domain starts, and its parameters.

use crate::DomId;

/// `XEN_HVM_START_MAGIC_VALUE`.
pub const START_MAGIC: u32 = 0x336e_c578;

/// `struct hvm_start_info`, to which `ebx` points when a PVH domain starts. All addresses are guest-physical.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct HvmStartInfo {
    /// [`START_MAGIC`].
    pub magic: u32,
    /// The memory map is there from version 1 on.
    pub version: u32,
    /// `SIF_*`.
    pub flags: u32,
    /// The number of [`ModuleEntry`]s.
    pub nr_modules: u32,
    /// Their address.
    pub modlist_paddr: u64,
    /// The command line, ended by a zero byte; 0 if there is none.
    pub cmdline_paddr: u64,
    /// The ACPI root pointer.
    pub rsdp_paddr: u64,
    /// The address of the [`MemmapEntry`]s.
    pub memmap_paddr: u64,
    /// Their number.
    pub memmap_entries: u32,
    /// Zero.
    pub reserved: u32,
}

/// `struct hvm_modlist_entry`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct ModuleEntry {
    /// The address of the module.
    pub paddr: u64,
    /// Its size in bytes.
    pub size: u64,
    /// Its command line, ended by a zero byte; 0 if there is none.
    pub cmdline_paddr: u64,
    /// Zero.
    pub reserved: u64,
}

/// `XEN_HVM_MEMMAP_TYPE_RAM`.
pub const MEMMAP_TYPE_RAM: u32 = 1;

/// `struct hvm_memmap_table_entry`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct MemmapEntry {
    /// The address of the first byte.
    pub addr: u64,
    /// The size in bytes.
    pub size: u64,
    /// `XEN_HVM_MEMMAP_TYPE_*`.
    pub kind: u32,
    /// Zero.
    pub reserved: u32,
}

/// `HVMOP_set_param`.
pub const HVMOP_SET_PARAM: u32 = 0;
/// `HVMOP_get_param`.
pub const HVMOP_GET_PARAM: u32 = 1;

/// A numbered setting of an HVM or PVH domain (`HVM_PARAM_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Param {
    /// `HVM_PARAM_CALLBACK_IRQ`: the way in which event upcalls are delivered.
    CallbackIrq = 0,
    /// `HVM_PARAM_STORE_PFN`: the xenstore ring's frame.
    StorePfn = 1,
    /// `HVM_PARAM_STORE_EVTCHN`: its port.
    StoreEvtchn = 2,
    /// `HVM_PARAM_CONSOLE_PFN`: the console ring's frame.
    ConsolePfn = 17,
    /// `HVM_PARAM_CONSOLE_EVTCHN`: its port.
    ConsoleEvtchn = 18,
}

/// `HVM_PARAM_CALLBACK_TYPE_VECTOR` in the top byte of [`Param::CallbackIrq`]: the low byte is an
/// interrupt vector, delivered to every vCPU without a local APIC in between.
pub const CALLBACK_TYPE_VECTOR: u64 = 2 << 56;

/// `struct xen_hvm_param`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct HvmParam {
    /// The domain, normally [`DomId::SELF`].
    pub domid: DomId,
    /// Padding.
    pub pad: u16,
    /// The number of the [`Param`].
    pub index: u32,
    /// In or out: its value.
    pub value: u64,
}

/// `VCPU_HVM_MODE_32B`: the vCPU starts in 32-bit mode.
pub const VCPU_HVM_MODE_32B: u32 = 0;
/// `VCPU_HVM_MODE_64B`: the vCPU starts in 64-bit mode.
pub const VCPU_HVM_MODE_64B: u32 = 1;

/// `struct vcpu_hvm_x86_64`: the registers that a vCPU starts with in 64-bit mode; its segments
/// are flat.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
#[allow(missing_docs, reason = "the processor's registers")]
pub struct VcpuRegisters {
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rbx: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rip: u64,
    pub rflags: u64,
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
}

/// `struct vcpu_hvm_context`: the state in which a vCPU of a PVH domain starts.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct VcpuContext {
    /// [`VCPU_HVM_MODE_64B`].
    pub mode: u32,
    /// Padding.
    pub pad: u32,
    /// The registers.
    pub registers: VcpuRegisters,
    /// State that only a start in 32-bit mode uses.
    pub rest: u64,
}

/// `struct vcpu_hvm_x86_32` in a `struct vcpu_hvm_context`: the state in which a vCPU starts in 32-bit mode.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
#[allow(missing_docs, reason = "the processor's registers")]
pub struct VcpuContext32 {
    /// [`VCPU_HVM_MODE_32B`].
    pub mode: u32,
    /// Padding.
    pub pad: u32,
    pub eax: u32,
    pub ecx: u32,
    pub edx: u32,
    pub ebx: u32,
    pub esp: u32,
    pub ebp: u32,
    pub esi: u32,
    pub edi: u32,
    pub eip: u32,
    pub eflags: u32,
    pub cr0: u32,
    pub cr3: u32,
    pub cr4: u32,
    /// Zero.
    pub pad1: u32,
    pub efer: u64,
    /// The base addresses of the segments cs, ds, ss, es and tr.
    pub bases: [u32; 5],
    /// Their limits.
    pub limits: [u32; 5],
    /// Their attributes: bits 40 to 47 and 52 to 55 of a descriptor.
    pub attributes: [u16; 5],
    /// Zero.
    pub pad2: [u16; 3],
}

const _: () = {
    use core::mem::offset_of;
    assert!(offset_of!(VcpuContext, registers) == 8);
    assert!(size_of::<VcpuContext>() == 128);
    assert!(offset_of!(VcpuContext32, efer) == 64);
    assert!(size_of::<VcpuContext32>() == size_of::<VcpuContext>());
    assert!(size_of::<HvmStartInfo>() == 56);
    assert!(offset_of!(HvmStartInfo, memmap_paddr) == 40);
    assert!(size_of::<ModuleEntry>() == 32);
    assert!(size_of::<MemmapEntry>() == 24);
    assert!(size_of::<HvmParam>() == 16);
};
