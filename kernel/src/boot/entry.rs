//! The first instructions of both ways to boot, and the ELF notes that announce them. The page that
//! Xen fills with hypercalls lies where `link.ld` says.
//!
//! PVH (`docs/misc/pvh.pandoc` of Xen, `hvm/start_info.h`): 32-bit protected mode, flat segments,
//! paging off, `ebx` = start info. PV (`xen.h`): 64-bit mode on the builder's page tables and
//! stack, `rsi` = start info. Both continue in Rust on our own stack, with SSE enabled. Other vCPUs
//! start as we tell Xen: see `smp`.

use core::arch::global_asm;

/// Bytes of the first vCPU's stack.
const STACK_BYTES: usize = 128 * 1024;

// The numbers are those of elfnote.h and features.h.
global_asm!(
    r#"
    .macro xen_note kind, size
    .long 4, \size, \kind
    .ascii "Xen\0"
    .endm
    .macro xen_note_number kind, value
    xen_note \kind, 8
    .quad \value
    .endm
    .macro xen_note_text kind, text
    .long 4, 2f - 1f, \kind
    .ascii "Xen\0"
1:  .asciz "\text"
2:  .balign 4
    .endm

    .section .note.Xen, "a", @note
    .balign 4
    xen_note_text   6, "Bulkhead"           /* GUEST_OS */
"#,
    // GUEST_VERSION, by which one sees what a file is.
    concat!(
        "xen_note_text 7, \"Bulkhead ",
        env!("CARGO_PKG_VERSION"),
        " (",
        env!("BULKHEAD_COMMIT"),
        ")\""
    ),
    r#"
    xen_note_text   5, "xen-3.0"            /* XEN_VERSION */
    xen_note_text   8, "generic"            /* LOADER */
    xen_note_text   9, "yes"                /* PAE_MODE */
    xen_note_number 3, 0                    /* VIRT_BASE */
    xen_note_number 4, 0                    /* PADDR_OFFSET */
    xen_note_number 1, pv_start             /* ENTRY */
    xen_note_number 2, hypercall_page       /* HYPERCALL_PAGE */
    xen_note_number 18, pvh_start           /* PHYS32_ENTRY */
    /* As PVH: writable descriptor tables, translated memory, ring 0, upcalls by vector. */
    xen_note_text   10, "writable_descriptor_tables|auto_translated_physmap|supervisor_mode_kernel|hvm_callback_vector"
    xen_note_number 17, 0x10e               /* SUPPORTED_FEATURES: the same as bits */

    .section .bss.stack, "aw", @nobits
    .balign 4096
    .globl boot_stack_guard
boot_stack_guard:
    .skip 4096
    .skip {stack_bytes}
    .globl boot_stack_top
boot_stack_top:

    .section .bss.boot_tables, "aw", @nobits
    .balign 4096
    .globl boot_pml4
boot_pml4:      .skip 4096
boot_pdpt:      .skip 4096
boot_pd:        .skip 4 * 4096
    .globl boot_pts
boot_pts:       .skip 2 * 4096
    .globl boot_tables_end
boot_tables_end:
    .globl boot_tsc
boot_tsc:       .skip 8

    .section .rodata.boot_gdt, "a", @progbits
    .balign 8
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff                /* 0x08: 64-bit code */
    .quad 0x00cf93000000ffff                /* 0x10: data */
boot_gdt_end:
boot_gdt_pointer:
    .word boot_gdt_end - boot_gdt - 1
    .quad boot_gdt

    .section .text.boot, "ax", @progbits
    .code32
    .globl pvh_start
pvh_start:
    cld
    movl %ebx, %esi
    rdtsc
    movl %eax, boot_tsc
    movl %edx, boot_tsc + 4
    movl $boot_stack_top, %esp

    /* Identity-map 4 GiB with 2 MiB pages: present, writable, large. */
    movl $boot_pdpt + 3, boot_pml4
    movl $boot_pd + 0x0003, boot_pdpt
    movl $boot_pd + 0x1003, boot_pdpt + 8
    movl $boot_pd + 0x2003, boot_pdpt + 16
    movl $boot_pd + 0x3003, boot_pdpt + 24
    movl $boot_pd, %edi
    movl $0x83, %eax
1:  movl %eax, (%edi)
    addl $8, %edi
    addl $0x200000, %eax
    jnc 1b

    movl $0x620, %eax                       /* CR4: PAE, OSFXSR, OSXMMEXCPT */
    movl %eax, %cr4
    movl $boot_pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx                  /* EFER: LME */
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl $0x80010033, %eax                  /* CR0: PG, WP, NE, ET, MP, PE */
    movl %eax, %cr0
    lgdt boot_gdt_pointer
    ljmp $0x08, $2f

    .code64
2:  movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    fninit
    movl %esi, %edi
    xorl %ebp, %ebp
    movq $boot_stack_top, %rsp
    call {pvh_main}
    ud2

    .globl pv_start
pv_start:
    cld
    rdtsc
    shlq $32, %rdx
    orq %rdx, %rax
    movq %rax, boot_tsc
    movq %rsi, %rdi
    xorl %ebp, %ebp
    movq $boot_stack_top, %rsp
    call {pv_main}
    ud2

    /* Another vCPU: its stack is set, rdi is what it starts with. On PVH it is in 64-bit mode, with
       flat segments that have no descriptors yet: the selectors follow. */
    .globl pvh_vcpu_start
pvh_vcpu_start:
    lgdt boot_gdt_pointer
    pushq $0x08
    pushq $1f
    lretq
1:  movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    .globl pv_vcpu_start
pv_vcpu_start:
    cld
    fninit
    xorl %ebp, %ebp
    call {vcpu_main}
    ud2
    .text
"#,
    stack_bytes = const STACK_BYTES,
    pvh_main = sym super::pvh::pvh_main,
    pv_main = sym super::pv::pv_main,
    vcpu_main = sym super::smp::vcpu_main,
    options(att_syntax),
);

const _: () = assert!(STACK_BYTES.is_multiple_of(bulkhead_xen::PAGE_SIZE));
