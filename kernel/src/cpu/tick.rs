//! A timer that interrupts the only vCPU of a PVH domain, so that a task that never returns is noticed.
//!
//! Tasks run with interrupts enabled then. Hardly anything but the timer interrupts them: Xen raises no upcall while all
//! bits of the selector of event channels are set (`evtchn_2l_set_pending` in Xen), and they are clear only while the vCPU
//! looks for the last time and sleeps. For an event that Xen is noting when they are set, it raises one after that
//! ([`upcall`](super::upcall)). The handler has a stack of its own, as compiled code may keep live data below its
//! stack pointer, and gives back every register that it uses.
//!
//! ```text
//!   every TICK ──► came back since the last one?  yes ──► set the timer again
//!                                                 no  ──► `silent`: how long has it run since? ──► the report of a hang
//!                  asleep?                        yes ──► the timer is off until it wakes
//! ```
//!
//! The timer is the local APIC's, in x2APIC mode, whose registers need no page table (Intel SDM volume 3, chapter 12).
//! Xen emulates it; each of these accesses costs an exit. They are made twice a second while the vCPU is at work.

use super::exceptions::ExceptionFrame;
use super::pvh::{read_msr, write_msr};
use crate::{domain, vcpu};
use core::arch::asm;
use core::arch::x86_64::__cpuid;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};

/// The interrupt vector of the timer.
pub const TICK_VECTOR: u8 = 0xf2;

// Model-specific registers (Intel SDM volume 3, table 12-6), and what is in them.
const APIC_BASE: u32 = 0x1b;
const ENABLED_AS_X2APIC: u64 = 3 << 10;
pub(super) const EOI: u32 = 0x80b;
const SPURIOUS: u32 = 0x80f;
const SOFTWARE_ENABLED: u64 = 0x1ff;
const SOFTWARE_DISABLED: u64 = 0xff;
const LOCAL_TIMER: u32 = 0x832;
pub(super) const INITIAL_COUNT: u32 = 0x838;
const DIVIDE: u32 = 0x83e;
const BY_128: u64 = 0b1010;

/// The timer's count for half a second: Xen's bus has 100 MHz (`APIC_BUS_CYCLE_NS`). It need not be exact: how long a
/// vCPU has run is measured by Xen's runstate.
pub(super) const TICK: u32 = 100_000_000 / 128 / 2;

/// True while the timer watches this vCPU, and upcalls are held.
static ON: AtomicBool = AtomicBool::new(false);
/// The number of times that the vCPU came back to its tasks, and that number at the last tick.
pub(super) static ROUNDS: AtomicU32 = AtomicU32::new(0);
pub(super) static ROUNDS_SEEN: AtomicU32 = AtomicU32::new(0);
/// 1 if the last tick has found the vCPU asleep, so that the timer was not set again.
pub(super) static ASLEEP: AtomicU8 = AtomicU8::new(0);

unsafe extern "C" {
    // The handler's first byte, and the end of its last one (`tick_entry`).
    static pvh_tick_begin: u8;
    static pvh_tick_end: u8;
}

/// Returns whether a PVH domain has a local APIC (`apic=` in its configuration), in the form of an x2APIC (Intel SDM
/// volume 2, CPUID leaf 1).
pub fn is_possible() -> bool {
    let leaf = __cpuid(1);
    domain::is_pvh() && leaf.edx & 1 << 9 != 0 && leaf.ecx & 1 << 21 != 0
}

/// Starts the timer, and enables interrupts.
///
/// # Safety
/// The timer [is possible](is_possible). The caller is the only vCPU, whose events are set up.
pub unsafe fn start() {
    let info = vcpu::current().info();
    // SAFETY: by the contract. The handler is installed; nothing else uses the local APIC. Upcalls are held before
    // interrupts are enabled.
    unsafe {
        write_msr(APIC_BASE, read_msr(APIC_BASE) | ENABLED_AS_X2APIC);
        write_msr(SPURIOUS, SOFTWARE_ENABLED);
        write_msr(DIVIDE, BY_128);
        write_msr(LOCAL_TIMER, TICK_VECTOR.into());
        domain::bitmaps().hold_upcalls(info);
        ON.store(true, Ordering::Relaxed);
        write_msr(INITIAL_COUNT, TICK.into());
        enable_interrupts();
    }
}

/// Stops the timer, if it was started, for good, and disables interrupts.
pub fn stop() {
    if !ON.load(Ordering::Relaxed) {
        return;
    }
    disable_interrupts();
    ON.store(false, Ordering::Relaxed);
    // SAFETY: it was set up by `start`.
    unsafe { write_msr(SPURIOUS, SOFTWARE_DISABLED) };
    // `Bitmaps::take` is used from now on: the flag and the selector, all of whose bits are set, have it look at all
    // words.
    let info = vcpu::current().info();
    // SAFETY: this vCPU's own part of the shared page, only accessed atomically.
    unsafe { AtomicU8::from_ptr(&raw mut (*info).evtchn_upcall_pending) }
        .store(1, Ordering::SeqCst);
}

/// Returns the number of times that the vCPU came back to its tasks.
pub fn rounds() -> u32 {
    ROUNDS.load(Ordering::Relaxed)
}

/// Returns whether the timer watches this vCPU, and upcalls are held.
#[inline]
pub fn is_on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// Notes that the vCPU has come back to its tasks.
#[inline]
pub fn came_back() {
    // Only this vCPU writes it.
    let rounds = ROUNDS.load(Ordering::Relaxed);
    ROUNDS.store(rounds.wrapping_add(1), Ordering::Relaxed);
}

/// Returns whether the last tick has found the vCPU asleep, so that the timer was not set again.
pub fn is_off() -> bool {
    ASLEEP.load(Ordering::Relaxed) != 0
}

/// Notes that the vCPU is awake.
pub fn woke() {
    if ASLEEP.swap(0, Ordering::Relaxed) != 0 {
        // SAFETY: the timer was set up by `start`.
        unsafe { write_msr(INITIAL_COUNT, TICK.into()) };
    }
}

/// Allows the timer to interrupt the code that follows.
///
/// # Safety
/// Upcalls are held, and the handlers are installed.
pub unsafe fn enable_interrupts() {
    // SAFETY: by the contract. What was written before is not moved behind it.
    unsafe { asm!("sti", options(nostack)) };
}

/// Keeps the timer from interrupting the code that follows.
pub fn disable_interrupts() {
    // SAFETY: nothing depends on interrupts.
    unsafe { asm!("cli", options(nostack)) };
}

/// Returns whether the handler has interrupted itself. It runs with interrupts disabled, so that no real processor does
/// this; a faulty emulator may (`docs/emulator-faults.md`). The handler has one stack, so the state that it first
/// interrupted is lost then.
pub fn interrupted_itself(frame: &ExceptionFrame) -> bool {
    (&raw const pvh_tick_begin as u64..&raw const pvh_tick_end as u64).contains(&frame.rip)
}
