//! Halting other vCPUs for good on PVH, before they are reset.
//!
//! A reset does not take back what Xen has already chosen to deliver to a vCPU. That lies in a field of the processor's
//! which says what comes with the next entry (SVM's EVENTINJ, the VM-entry interruption information of VMX). `svm_intr_assist` and
//! `vmx_intr_assist` set it before they look whether the vCPU is to stop, and neither INIT (`vcpu_reset`) nor
//! `VCPUOP_initialise` clears it (seen in the sources of Xen 4.17.7 and of its development branch). A vCPU that was woken and stopped at once would take its upcall before its
//! first instruction after that, without an interrupt table: a triple fault.
//!
//! So each gets an NMI first, and runs once more. While halting is on, the handler of an upcall waits for that NMI. The NMI's handler
//! halts with interrupts off, for which Xen stops the vCPU (`hvm_hlt`) and has nothing to deliver: no interrupt is accepted,
//! and NMIs are over.

use core::arch::global_asm;
use core::sync::atomic::{AtomicU32, Ordering};

/// The value of [`IS_ON`] while NMIs halt: "halt", so that hardly any damage does.
pub const ON: u32 = u32::from_le_bytes(*b"halt");

/// Says whether NMIs halt.
pub static IS_ON: AtomicU32 = AtomicU32::new(0);

/// The number of vCPUs that have halted.
static HALTED: AtomicU32 = AtomicU32::new(0);

global_asm!(
    r#"
    .text
    /* An upcall's handler. Xen delivers the NMI at an exit. */
    .globl pvh_upcall_before_halt
pvh_upcall_before_halt:
    xorl %eax, %eax
    cpuid
    jmp pvh_upcall_before_halt

    /* The NMI's handler, which is over before it halts: Xen holds back other NMIs until then. */
    .globl pvh_halt
pvh_halt:
    lock incl {halted}(%rip)
    leaq 1f(%rip), %rax
    movq %rax, (%rsp)                       /* rip */
    andl $~0x200, 16(%rsp)                  /* rflags: IF */
    iretq
1:  hlt
    jmp 1b
"#,
    halted = sym HALTED,
    options(att_syntax),
);

/// Has NMIs halt their vCPU from now on.
pub fn begin() {
    HALTED.store(0, Ordering::Relaxed);
    IS_ON.store(ON, Ordering::SeqCst);
}

/// Has NMIs be counted again, and nothing else.
pub fn end() {
    IS_ON.store(0, Ordering::SeqCst);
}

/// Returns the number of vCPUs that an NMI has halted since [`begin`].
pub fn halted() -> usize {
    HALTED.load(Ordering::Acquire) as usize
}
