//! CPU exceptions: what each is called, where each enters, and the report that ends the domain.

/// The names of the exceptions, by vector (Intel SDM volume 3, table 6-1).
pub fn name(vector: u64) -> &'static str {
    match vector {
        0 => "divide error",
        1 => "debug",
        2 => "non-maskable interrupt",
        3 => "breakpoint",
        4 => "overflow",
        5 => "bound range exceeded",
        6 => "invalid opcode",
        7 => "device not available",
        8 => "double fault",
        10 => "invalid TSS",
        11 => "segment not present",
        12 => "stack fault",
        13 => "general protection",
        14 => "page fault",
        16 => "x87 floating point",
        17 => "alignment check",
        18 => "machine check",
        19 => "SIMD floating point",
        20 => "virtualization",
        21 => "control protection",
        _ => "unexpected vector",
    }
}

/// What the entry stubs leave on the stack.
#[derive(Debug)]
#[repr(C)]
pub struct ExceptionFrame {
    /// r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rdx, rcx, rbx, rax.
    pub registers: [u64; 15],
    /// Which exception.
    pub vector: u64,
    /// The processor's error code, or 0.
    pub error_code: u64,
    /// Where.
    pub rip: u64,
    /// Code segment.
    pub cs: u64,
    /// Flags.
    pub rflags: u64,
    /// The stack pointer.
    pub rsp: u64,
    /// Stack segment.
    pub ss: u64,
}

impl ExceptionFrame {
    /// The names of `registers`, in order.
    pub const NAMES: [&'static str; 15] = [
        "r15", "r14", "r13", "r12", "r11", "r10", "r9", "r8", "rdi", "rsi", "rbp", "rdx", "rcx",
        "rbx", "rax",
    ];

    /// The frame pointer, from which a backtrace starts.
    pub fn rbp(&self) -> u64 {
        self.registers[10]
    }
}

/// Vectors 0 to 31 have an entry.
pub const VECTORS: usize = 32;

#[cfg(feature = "unikernel")]
mod entry {
    use super::{ExceptionFrame, VECTORS};
    use core::arch::global_asm;

    // Which vectors push an error code: Intel SDM volume 3, table 6-1. On PV, rcx and r11 lie on
    // top of the frame (arch-x86/xen-x86_64.h).
    global_asm!(
        r#"
    .text
    .macro exception_stubs vector, has_error
pvh_exception_\vector:
    .if !\has_error
    pushq $0
    .endif
    pushq $\vector
    jmp exception_common
pv_exception_\vector:
    popq %rcx
    popq %r11
    .if !\has_error
    pushq $0
    .endif
    pushq $\vector
    jmp exception_common
    .endm

    .irp vector, 0,1,2,3,4,5,6,7,9,15,16,18,19,20,22,23,24,25,26,27,28,31
    exception_stubs \vector, 0
    .endr
    .irp vector, 8,10,11,12,13,14,17,21,29,30
    exception_stubs \vector, 1
    .endr

exception_common:
    cld
    pushq %rax
    pushq %rbx
    pushq %rcx
    pushq %rdx
    pushq %rbp
    pushq %rsi
    pushq %rdi
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, %rdi
    andq $-16, %rsp
    xorl %ebp, %ebp
    call {report}
    ud2

    .section .rodata.exceptions, "a", @progbits
    .balign 8
    .macro exception_address vector
    .quad pvh_exception_\vector, pv_exception_\vector
    .endm
exception_entries:
    .irp vector, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    exception_address \vector
    .endr
    .text
"#,
        report = sym crate::report::exception,
        options(att_syntax),
    );

    unsafe extern "C" {
        static exception_entries: [[u64; 2]; VECTORS];
    }

    /// Where a vector enters on PVH.
    pub fn pvh_entry(vector: usize) -> u64 {
        // SAFETY: a constant table of the assembly above.
        unsafe { exception_entries[vector][0] }
    }

    /// Where a vector enters on PV.
    pub fn pv_entry(vector: usize) -> u64 {
        // SAFETY: a constant table of the assembly above.
        unsafe { exception_entries[vector][1] }
    }

    const _: () = assert!(size_of::<ExceptionFrame>() == 22 * 8);
}

#[cfg(feature = "unikernel")]
pub use entry::{pv_entry, pvh_entry};
