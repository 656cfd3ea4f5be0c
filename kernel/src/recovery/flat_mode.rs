//! The way to the mode in which Xen starts a PVH domain: 32 bits, flat segments, no paging. For code that boots again, or
//! puts another image in the place of this one.

use core::arch::global_asm;

/// Goes on behind this in 32-bit code, at the label `1` of [`paging_off`]. The code, and the descriptors, are mapped at
/// their physical addresses.
macro_rules! to_32_bits {
    () => {
        r#"
    lgdt flat_gdt_pointer(%rip)
    pushq $0x08
    leaq 1f(%rip), %rax
    pushq %rax
    lretq
    .code32
"#
    };
}

/// Loads the flat data segment and turns paging off. Changes `eax`, `ecx` and `edx`.
macro_rules! paging_off {
    () => {
        r#"
1:  movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl %cr0, %eax                         /* PG, WP */
    andl $0x7ffeffff, %eax
    movl %eax, %cr0
    movl $0xc0000080, %ecx                  /* EFER: LME */
    rdmsr
    andl $0xfffffeff, %eax
    wrmsr
"#
    };
}

pub(super) use {paging_off, to_32_bits};

// Constants of the image.
global_asm!(
    r#"
    .section .rodata.flat_gdt, "a", @progbits
    .balign 8
flat_gdt:
    .quad 0
    .quad 0x00cf9b000000ffff                /* 0x08: 32-bit code */
    .quad 0x00cf93000000ffff                /* 0x10: data */
flat_gdt_end:
    .globl flat_gdt_pointer
flat_gdt_pointer:
    .word flat_gdt_end - flat_gdt - 1
    .quad flat_gdt

    .text
"#,
    options(att_syntax),
);
