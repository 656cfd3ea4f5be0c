//! Hypercalls, through the page that Xen fills with the right instruction for either kind of
//! domain (xen.h: number in the page's slot, up to five arguments, result in rax).

use bulkhead_xen::Errno;
use core::arch::asm;

macro_rules! hypercalls {
    ($($(#[$doc:meta])* $name:ident = $number:literal ($($arg:ident in $reg:tt),*);)*) => {
        $(
            $(#[$doc])*
            ///
            /// # Safety
            /// The arguments must be what xen.h says for this hypercall, and what Xen does on
            /// their account must be sound for the memory they name.
            pub unsafe fn $name($($arg: u64),*) -> Result<u64, Errno> {
                let result: i64;
                // SAFETY: the page is Xen's; it preserves everything but rax and the argument
                // registers. The stack may be used, so nothing lies below its pointer here.
                unsafe {
                    asm!(
                        "call hypercall_page + {slot}",
                        slot = const $number * 32,
                        out("rax") result,
                        $(inout($reg) $arg => _,)*
                    );
                }
                Errno::from_return(result)
            }
        )*
    };
}

hypercalls! {
    /// `set_trap_table`.
    set_trap_table = 0 (table in "rdi");
    /// `mmu_update`.
    mmu_update = 1 (requests in "rdi", count in "rsi", done in "rdx", domain in "r10");
    /// `memory_op`.
    memory_op = 12 (command in "rdi", argument in "rsi");
    /// `update_va_mapping`.
    update_va_mapping = 14 (address in "rdi", entry in "rsi", flags in "rdx");
    /// `grant_table_op`.
    grant_table_op = 20 (command in "rdi", batch in "rsi", count in "rdx");
    /// `vcpu_op`.
    vcpu_op = 24 (command in "rdi", vcpu in "rsi", argument in "rdx");
    /// `set_segment_base`.
    set_segment_base = 25 (which in "rdi", base in "rsi");
    /// `sched_op`.
    sched_op = 29 (command in "rdi", argument in "rsi");
    /// `callback_op`.
    callback_op = 30 (command in "rdi", argument in "rsi");
    /// `event_channel_op`.
    event_channel_op = 32 (command in "rdi", argument in "rsi");
    /// `physdev_op`.
    physdev_op = 33 (command in "rdi", argument in "rsi");
    /// `hvm_op`.
    hvm_op = 34 (command in "rdi", argument in "rsi");
}

/// Returns the address of `argument` in the form that hypercalls take.
pub fn pointer<T>(argument: &mut T) -> u64 {
    &raw mut *argument as u64
}
