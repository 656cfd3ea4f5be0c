//! Entry points of CPU exceptions, which call the report of the failure.

use super::exceptions::{ExceptionFrame, VECTORS};
use core::arch::global_asm;

/// Pushes the registers of an `ExceptionFrame`, above what the processor and the entry have pushed.
macro_rules! push_registers {
    () => {
        r#"
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
"#
    };
}

#[cfg(feature = "recover")]
pub(super) use push_registers;

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
"#,
    push_registers!(),
    r#"
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
    report = sym crate::panic::exception,
    options(att_syntax),
);

unsafe extern "C" {
    static exception_entries: [[u64; 2]; VECTORS];
}

/// Returns the entry point of a vector on PVH.
pub fn pvh_entry(vector: usize) -> u64 {
    // SAFETY: a constant table of the assembly above.
    unsafe { exception_entries[vector][0] }
}

/// Returns the entry point of a vector on PV.
pub fn pv_entry(vector: usize) -> u64 {
    // SAFETY: a constant table of the assembly above.
    unsafe { exception_entries[vector][1] }
}

const _: () = assert!(size_of::<ExceptionFrame>() == 22 * 8);
