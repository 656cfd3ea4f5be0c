//! The non-maskable interrupt, which an operator sends with `xl trigger DOMAIN nmi`. Its only effect is a line in the
//! log.
//!
//! On PVH it may interrupt any code. Its handler has a stack of its own, increments a count, and
//! returns; the processor holds the next NMI back until then. The line is logged later, by ordinary code. During a
//! restart, an NMI halts the vCPU for good ([`halting`](super::halting)).
//!
//! On PV there is no handler. Xen would push its frame right below the interrupted stack pointer, where
//! compiled code may keep live data, and nothing but a handler that runs could hold the NMI back.
//! Without one, Xen drops the NMI, with a line in its own log ("Unhandled: vec 2, NMI").

#[cfg(feature = "recover")]
use super::halting;
use core::arch::global_asm;
use core::sync::atomic::{AtomicU32, Ordering};

/// The exception's number.
pub const VECTOR: usize = 2;

/// Number of NMIs since the last line about them in the log.
static RECEIVED: AtomicU32 = AtomicU32::new(0);

/// Defines the handler, which begins with the instructions in `before`.
macro_rules! define_handler {
    ($before:literal $(, $($operands:tt)+)?) => {
        global_asm!(
            r#"
    .text
    .globl pvh_nmi
pvh_nmi:
"#,
            $before,
            r#"
    lock incl {received}(%rip)
    iretq
"#,
            received = sym RECEIVED,
            $($($operands)+,)?
            options(att_syntax),
        );
    };
}

#[cfg(not(feature = "recover"))]
define_handler!("");
#[cfg(feature = "recover")]
define_handler!(
    "cmpl ${on}, {is_on}(%rip); je pvh_halt",
    on = const halting::ON,
    is_on = sym halting::IS_ON
);

unsafe extern "C" {
    /// The handler; never called.
    pub fn pvh_nmi();
}

/// Logs the number of NMIs that have come since the last call.
pub fn log_received() {
    if RECEIVED.load(Ordering::Relaxed) != 0 {
        let received = RECEIVED.swap(0, Ordering::Relaxed);
        log::warn!("{received} NMI received and ignored");
    }
}
