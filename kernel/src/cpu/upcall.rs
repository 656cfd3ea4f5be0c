//! Blocking the vCPU, and the upcall that ends it.
//!
//! Rust code is not interrupted by upcalls: they are masked, or held back (`tick`), except in the two routines
//! below. These are assembly and keep nothing below the stack pointer, so that a frame that is pushed there overwrites
//! nothing (compiled code may keep live data in the 128 bytes below its stack pointer). Wherever an upcall interrupts
//! them, the routine then returns to its caller with upcalls masked again. No event is handled here; `take_pending`
//! does that later, as an ordinary call. On PVH, an upcall that interrupts any other code changes nothing: its handler has
//! a stack of its own. Xen raises one there if it was noting an event when upcalls were held, and a faulty emulator may
//! at any time.

#[cfg(feature = "recover")]
use super::halting;
use crate::vcpu;
use bulkhead_xen::abi::shared_info::VcpuInfo;
use core::arch::global_asm;
use core::mem::offset_of;

/// The interrupt vector that Xen raises for an upcall on PVH.
pub const UPCALL_VECTOR: u8 = 0xf3;

/// The value of rbx while a vCPU sleeps in `pvh_block`. Compiled code finds its own there when that returns, so that no
/// other code has it by chance but a copy of this number.
const SLEEPS: u64 = u64::from_le_bytes(*b"sleeping");

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
    pushq %rbx
    movq pvh_block_sleeps(%rip), %rbx
pvh_block_sleep:
    sti
    hlt
pvh_block_end:
    cli
    movq -8(%rbp), %rbx
    movq %rbp, %rsp
    popq %rbp
pvh_block_return:
    ret
    .balign 8
pvh_block_sleeps:
    .quad {sleeps}

    /* On its own stack: see cpu::pvh. While the vCPU sleeps, rbx says so, and rbp says all else there
       is to know: nothing in the frame matters. Other code is interrupted where interrupts are on
       (`tick`) and Xen has just noted an event: it goes on, and Xen raises no more of them.
       But QEMU's emulation of SVM may deliver an upcall a second time, later, whatever the flags
       say: in any code, which goes on as if nothing had happened; or while this handler runs for
       the first one. Then the frame of the first one is overwritten. If it has not interrupted a
       sleep, there is no way back. */
    .globl pvh_upcall
pvh_upcall:
"#,
            $before,
            r#"
    cmpq pvh_block_sleeps(%rip), %rbx
    je pvh_block_end
    cmpq $pvh_upcall, (%rsp)                /* rip */
    jb 1f
    cmpq $pvh_upcall_end, (%rsp)
    jb pvh_upcall_lost
1:  testl $0x200, 16(%rsp)                  /* rflags: IF */
    jz 2f
    pushq %rax
    movq %gs:0, %rax
    movq {info}(%rax), %rax
    movb $0, {pending}(%rax)
    popq %rax
2:  iretq
pvh_upcall_end:
    .globl pvh_upcall_lost
pvh_upcall_lost:
    ud2

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
            sleeps = const SLEEPS,
            info = const vcpu::INFO,
            pending = const offset_of!(VcpuInfo, evtchn_upcall_pending),
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
    /// The instruction that ends the domain where an upcall was delivered twice, and what it interrupted is lost; never
    /// called.
    fn pvh_upcall_lost();
    /// The event callback; never called.
    pub fn pv_upcall();
    /// The failsafe callback; never called.
    pub fn pv_failsafe();
}

/// Returns whether the exception with that instruction says that an upcall was delivered within its own handler, which no
/// processor does, and that what was interrupted is lost.
pub fn interrupted_itself(rip: u64) -> bool {
    rip == pvh_upcall_lost as unsafe extern "C" fn() as usize as u64
}
