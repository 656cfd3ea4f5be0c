//! The way from one boot to the next: instructions that put an image into its place, and enter it as Xen did. A restart in
//! place on PVH puts the data of this image there, an upgrade all of another one.
//!
//! It is the first vCPU that boots again. On PVH that is with paging off, so that even damaged page tables are of no
//! importance; if another one has brought the domain here, that one resets the first and starts it anew. On PV, it is on
//! the page tables that Xen has checked, which let everything be written where images go (`memory::pv::open`); another
//! vCPU has parked the first in the stage.

use super::leaving::say;
use super::{others, parking, pristine};
use crate::memory::{self, image};
use crate::{domain, vcpu};
use bulkhead_xen::VcpuId;
use bulkhead_xen::abi::pv::PvStartInfo;
use core::arch::{asm, global_asm};

global_asm!(
    r#"
    .section .text.boot, "ax", @progbits
    .code64
    /* rdi: start info, rsi: list, rdx: the code that copies. All below 4 GiB. */
    .globl pvh_leave
pvh_leave:
    cli
    cld
    movl %edi, %ebx
    movl %edx, %edi
    lgdt flat_gdt_pointer(%rip)
    pushq $0x08
    leaq 1f(%rip), %rax
    pushq %rax
    lretq
    .code32
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
    jmp *%edi

    /* The first vCPU starts here if another one starts it: in 32-bit mode, with flat segments and paging off.
       ebx: start info, esi: list, edi: the code that copies. */
    .globl pvh_leave_flat
pvh_leave_flat:
    /* INIT to all others, whatever they do: this vCPU goes on when they are reset (vlapic.c in Xen). */
    movl $0x1b, %ecx                        /* APIC_BASE: enabled, x2APIC */
    rdmsr
    orl $0xc00, %eax
    wrmsr
    movl $0x830, %ecx                       /* ICR: all but self, assert, INIT */
    xorl %edx, %edx
    movl $0xc4500, %eax
    wrmsr
    jmp *%edi

    /* Runs wherever it is copied to. esi: list of source, destination, end of what is copied there, end of what is
       cleared behind that; the last one has no destination, and the first instruction as its source.
       ebx: start info. */
    .globl pvh_copy
pvh_copy:
    movl %esi, %edx
1:  movl (%edx), %esi
    movl 4(%edx), %edi
    testl %edi, %edi
    jz 2f
    movl 8(%edx), %ecx
    subl %edi, %ecx
    shrl $2, %ecx
    rep movsl
    movl 12(%edx), %ecx
    subl %edi, %ecx
    shrl $2, %ecx
    xorl %eax, %eax
    rep stosl
    addl $16, %edx
    jmp 1b
2:  jmp *%esi
    .globl pvh_copy_end
pvh_copy_end:
    .code64

    /* The same on PV. rdi: list, rsp: start info. */
    .globl pv_copy
pv_copy:
    cld
    movq %rdi, %rdx
1:  movl (%rdx), %esi
    movl 4(%rdx), %edi
    testl %edi, %edi
    jz 2f
    movl 8(%rdx), %ecx
    subl %edi, %ecx
    shrl $2, %ecx
    rep movsl
    movl 12(%rdx), %ecx
    subl %edi, %ecx
    shrl $2, %ecx
    xorl %eax, %eax
    rep stosl
    addq $16, %rdx
    jmp 1b
2:  movl %esi, %eax
    movq %rsp, %rsi
    jmp *%rax
    .globl pv_copy_end
pv_copy_end:

    /* Constants of the image. */
    .section .rodata.leaving, "a", @progbits
    .balign 8
flat_gdt:
    .quad 0
    .quad 0x00cf9b000000ffff                /* 0x08: 32-bit code */
    .quad 0x00cf93000000ffff                /* 0x10: data */
flat_gdt_end:
flat_gdt_pointer:
    .word flat_gdt_end - flat_gdt - 1
    .quad flat_gdt
    .balign 4
    .globl pvh_restart_list
pvh_restart_list:
    .long __pristine, __data_start, __data_end, __bss_end
    .long pvh_start, 0
    .text
"#,
    options(att_syntax),
);

unsafe extern "C" {
    fn pvh_leave(start: u64, list: u64, code: u64) -> !;
    /// Never called.
    fn pvh_leave_flat();
    static pvh_copy: u8;
    static pvh_copy_end: u8;
    static pv_copy: u8;
    static pv_copy_end: u8;
    static pvh_restart_list: u32;
}

/// A step of a list: source, destination, the end of what is copied there, and the end of what is cleared behind that. The
/// last step has the first instruction as its source, and no destination. Ends are at multiples of four bytes from the
/// destination.
pub(super) type Step = [u32; 4];

/// Returns the code that copies, which runs from wherever it is put.
pub(super) fn code() -> &'static [u8] {
    // SAFETY: code, which is read.
    unsafe {
        let (start, end) = match domain::is_pvh() {
            true => (&raw const pvh_copy, &raw const pvh_copy_end),
            false => (&raw const pv_copy, &raw const pv_copy_end),
        };
        core::slice::from_raw_parts(start, end.offset_from_unsigned(start))
    }
}

/// Boots this image again on PVH, with its data as it was loaded. Returns, with the reason in the log, if Xen does not
/// start the first vCPU.
///
/// # Safety
/// As for [`leave_pvh`].
pub(super) unsafe fn restart() {
    let (list, code) = (&raw const pvh_restart_list, &raw const pvh_copy);
    // SAFETY: by the contract. Both are constants of the image.
    unsafe { leave_pvh(list as u32, code as u32) }
}

/// Leaves this boot for good: carries out the steps of the list at `list`, with the [`code`] at the beginning of the
/// stage. Returns, with the reason in the log, if Xen refuses something.
///
/// # Safety
/// When the other vCPUs have stopped, and on PV are parked, and Xen knows nothing of this boot any more. No step of the list
/// overwrites the stage.
pub(super) unsafe fn leave(list: u32, stage: u32) {
    // SAFETY: by the contract.
    unsafe {
        match domain::is_pvh() {
            true => leave_pvh(list, stage),
            false => leave_pv(list, stage.into()),
        }
    }
}

/// # Safety
/// As for [`leave`]; what was damaged may have been page tables.
unsafe fn leave_pv(list: u32, stage: u64) {
    let (start, own) = (pristine::start(), vcpu::current().id());
    // SAFETY: by the contract. Nothing but these lines changes page tables any more.
    unsafe {
        if let Err(error) = memory::pv::open(start as *const PvStartInfo, image::room(), stage) {
            return say(format_args!(
                "no image can be put into its place: {error}\n"
            ));
        }
        if let Err(why) = others::wait_in(stage) {
            return say(format_args!("no image can be put into its place: {why}\n"));
        }
        if own == VcpuId(0) {
            asm!("mov rsp, {start}", "jmp {stage}", start = in(reg) start, stage = in(reg) stage,
                 in("rdi") u64::from(list), options(noreturn))
        }
        parking::hand_over_in(stage, own, stage, start, list.into())
    }
}

/// Carries out the steps of the list at `list`, with the code at `code`. Returns, with the reason in the log, if Xen
/// does not start the first vCPU.
///
/// # Safety
/// On PVH, when the other vCPUs have stopped and Xen knows nothing of this boot any more. Both are below 4 GiB, and no step of
/// the list overwrites them.
unsafe fn leave_pvh(list: u32, code: u32) {
    let start = pristine::start();
    // SAFETY: by the contract.
    unsafe {
        if vcpu::current().id() == VcpuId(0) {
            if others::exist() {
                others::reset();
            }
            pvh_leave(start, list.into(), code.into())
        }
        let entry = pvh_leave_flat as *const () as u32;
        let Err(error) = others::start_first(entry, start as u32, list, code);
        say(format_args!("the first vCPU does not start: {error}\n"));
    }
}
