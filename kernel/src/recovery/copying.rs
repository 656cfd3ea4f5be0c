//! The instructions that put another image in the place of this one, without paging.

use super::flat_mode::{paging_off, to_32_bits};
use super::pristine;
use core::arch::global_asm;

global_asm!(
    r#"
    .section .text.boot, "ax", @progbits
    .code64
    /* rdi: start info, rsi: list, rdx: the code that copies. All below 4 GiB. */
    .globl upgrade_leave
upgrade_leave:
    cli
    cld
    movl %edi, %ebx
    movl %edx, %edi
"#,
    to_32_bits!(),
    paging_off!(),
    r#"
    jmp *%edi

    /* Runs wherever it is copied to. esi: list of source, destination, bytes to copy, bytes to clear after them;
       the last one has no destination, and the first instruction as its source. ebx: start info. */
    .globl upgrade_copy
upgrade_copy:
    movl %esi, %edx
1:  movl (%edx), %esi
    movl 4(%edx), %edi
    movl 8(%edx), %ecx
    movl 12(%edx), %ebp
    addl $16, %edx
    testl %edi, %edi
    jz 2f
    shrl $2, %ecx
    rep movsl
    movl %ebp, %ecx
    shrl $2, %ecx
    xorl %eax, %eax
    rep stosl
    jmp 1b
2:  jmp *%esi
    .globl upgrade_copy_end
upgrade_copy_end:
    .code64
    .text
"#,
    options(att_syntax),
);

unsafe extern "C" {
    fn upgrade_leave(start: u64, list: u64, code: u64) -> !;
    static upgrade_copy: u8;
    static upgrade_copy_end: u8;
}

/// Returns the code that copies, which runs from wherever it is put.
pub(super) fn code() -> &'static [u8] {
    // SAFETY: code, which is read.
    unsafe {
        let (start, end) = (&raw const upgrade_copy, &raw const upgrade_copy_end);
        core::slice::from_raw_parts(start, end.offset_from_unsigned(start))
    }
}

/// Leaves this boot for good: does what the list at `list` says, with the [`code`] that is at `code`.
///
/// # Safety
/// On PVH, on the only vCPU, when Xen knows nothing of this boot any more. Both are below 4 GiB, and no step of the list
/// overwrites them.
pub(super) unsafe fn leave(list: u32, code: u32) -> ! {
    // SAFETY: by the contract.
    unsafe { upgrade_leave(pristine::start(), list.into(), code.into()) }
}
