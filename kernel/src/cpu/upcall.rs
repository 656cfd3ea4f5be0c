//! Blocking the vCPU, and the upcall that ends it.
//!
//! Rust code is not interrupted by upcalls: they are masked, or held back (`tick`), except in the two routines
//! below. These are assembly and keep nothing below the stack pointer, so that a frame that is pushed there overwrites
//! nothing (compiled code may keep live data in the 128 bytes below its stack pointer). Wherever an upcall interrupts
//! them, the routine then returns to its caller with upcalls masked again. No event is handled here; `take_pending`
//! does that later, as an ordinary call. On PVH, an upcall that interrupts any other code, as only a faulty emulator
//! delivers it, changes nothing: its handler has a stack of its own.

#[cfg(feature = "recover")]
use super::halting;
use core::arch::global_asm;

/// The interrupt vector that Xen raises for an upcall on PVH.
pub const UPCALL_VECTOR: u8 = 0xf3;

/// Defines the routines. The handler on PVH begins with the instructions in `before`.
macro_rules! define_routines {
    ($before:literal $(, $($operands:tt)+)?) => {
        global_asm!(
            r#"
    .text
    /* PVH. `sti` takes effect after the next instruction, so an upcall that is already pending
       ends the `hlt` at once: no wake-up is lost between looking and sleeping. */
    .globl pvh_block
pvh_block:
    pushq %rbp
    movq %rsp, %rbp
pvh_block_sleep:
    sti
    hlt
pvh_block_end:
    cli
    movq %rbp, %rsp
    popq %rbp
pvh_block_return:
    ret

    /* On its own stack: see cpu::pvh. While the vCPU sleeps, rbp says all there is to know, and
       nothing in the frame matters. Anywhere else an upcall is none: interrupts are off there.
       But QEMU's emulation of SVM may deliver one a second time, later, whatever the flags say:
       while this handler runs for the first one, which is then started again, or in any code
       after that, which goes on as if nothing had happened. */
    .globl pvh_upcall
pvh_upcall:
"#,
            $before,
            r#"
    cmpq $pvh_upcall, (%rsp)                /* rip */
    jb 1f
    cmpq $pvh_upcall_end, (%rsp)
    jb pvh_block_end
1:  cmpq $pvh_block_sleep, (%rsp)
    jb 2f
    cmpq $pvh_block_return, (%rsp)
    jb pvh_block_end
2:  iretq
pvh_upcall_end:

    /* PV. rdi: this vCPU's evtchn_upcall_mask. SCHEDOP_block clears the mask and looks for
       pending events in one step (sched.h), so no wake-up is lost either. */
    .globl pv_block
pv_block:
    pushq %rbp
    pushq %rbx
    movq %rsp, %rbp
    movq %rdi, %rbx
    movl $1, %edi                           /* SCHEDOP_block */
    xorl %esi, %esi
    call hypercall_page + 29 * 32           /* sched_op */
    movb $1, (%rbx)
pv_block_end:
    movq %rbp, %rsp
    popq %rbx
    popq %rbp
    ret

    /* Xen has set the mask and pushed a frame; there is nothing in it to go back to. */
    .globl pv_upcall
pv_upcall:
    jmp pv_block_end

    /* Xen calls this when a segment register cannot be loaded; all ours are null. */
    .globl pv_failsafe
pv_failsafe:
    ud2
"#,
            $($($operands)+,)?
            options(att_syntax),
        );
    };
}

#[cfg(not(feature = "recover"))]
define_routines!("");
// In a restart, a vCPU waits for the NMI that halts it.
#[cfg(feature = "recover")]
define_routines!(
    "cmpl ${on}, {is_on}(%rip); je pvh_upcall_before_halt",
    on = const halting::ON,
    is_on = sym halting::IS_ON
);

unsafe extern "C" {
    /// Sleeps until an upcall.
    ///
    /// # Safety
    /// PVH only, with the upcall vector installed and interrupts off.
    pub fn pvh_block();
    /// Sleeps until an upcall. `mask` is the calling vCPU's `evtchn_upcall_mask`.
    ///
    /// # Safety
    /// PV only, with the event callback registered and upcalls masked.
    pub fn pv_block(mask: *mut u8);
    /// The handler of [`UPCALL_VECTOR`]; never called.
    pub fn pvh_upcall();
    /// The event callback; never called.
    pub fn pv_upcall();
    /// The failsafe callback; never called.
    pub fn pv_failsafe();
}
