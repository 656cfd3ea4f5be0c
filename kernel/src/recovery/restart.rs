//! From a crash back to the first instruction.
//!
//! Damaged state is used only where Xen checks it: event channels are found by asking Xen for each port, and mappings
//! are ended by handles that Xen compares with their addresses. Then assembly restores `.data`, clears `.bss` with all
//! stacks, and enters the boot path as Xen did: on PVH with paging off, so that damaged page tables do not matter; on
//! PV on the page tables that Xen has checked, leaving out the pages that are read-only.
//!
//! It is the first vCPU that boots again. If another one has reported the crash, that one starts the first one: on PVH
//! reset and initialised anew, on PV from where it is parked.

use super::leaving::{let_go, say};
use super::obstacles::Obstacle;
use super::{copying, mappings, obstacles, others, parking, pristine, region, trial};
use crate::memory::{self, image};
use crate::{domain, vcpu};
use bulkhead_xen::VcpuId;
use core::arch::global_asm;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

/// True from [`enable`] on, until a crash: a crash before that, or during a restart, is final.
static ENABLED: AtomicBool = AtomicBool::new(false);
/// True once there may be PCI devices.
static HAS_DEVICES: AtomicBool = AtomicBool::new(false);
/// True once the report of this crash was begun in an undamaged region.
static REPORTING: AtomicBool = AtomicBool::new(false);
/// False if the number of restarts within a minute is not limited.
static LIMITED: AtomicBool = AtomicBool::new(true);

global_asm!(
    r#"
    .section .text.boot, "ax", @progbits
    .code64
    /* rdi: start info; the ranges to clear are in the region. Upcalls are masked. */
    .globl restart_pv
restart_pv:
    cld
    movq %rdi, %rbx
    leaq __pristine(%rip), %rsi
    leaq __data_start(%rip), %rdi
    leaq __data_end(%rip), %rcx
    subq %rdi, %rcx
    shrq $3, %rcx
    rep movsq
    leaq restart_ranges(%rip), %rdx
    xorl %eax, %eax
1:  movq (%rdx), %rdi
    movq 8(%rdx), %rcx
    addq $16, %rdx
    shrq $3, %rcx
    jz 2f
    rep stosq
    jmp 1b
2:  movq %rbx, %rsi
    jmp pv_start

    .section .survives, "aw", @nobits
    .balign 16
    .globl restart_ranges
restart_ranges:
    .skip 16 * {ranges}
    .text
"#,
    ranges = const RANGES,
    options(att_syntax),
);

/// Room for the ranges of `.bss` and the end of their list.
const RANGES: usize = 8;

unsafe extern "C" {
    fn restart_pv(start: u64) -> !;
    static mut restart_ranges: [[u64; 2]; RANGES];
}

/// Returns whether a crash is followed by a restart, if that is possible.
pub fn is_enabled() -> bool {
    ENABLED.load(Ordering::Relaxed)
}

/// Returns whether a domain with more than one vCPU can restart.
pub fn can_have_several_vcpus() -> bool {
    others::can_restart()
}

/// Enables restarts after a crash. Must be called once, when the domain is ready to serve and has mapped nothing yet.
/// The error is the reason why no restart is possible.
pub fn enable() -> Result<(), &'static str> {
    if let Some(obstacle) = obstacles::first() {
        return Err(obstacle);
    }
    if !mappings::start() {
        return Err("there is no memory for the handles of mapped pages");
    }
    ENABLED.store(true, Ordering::Release);
    obstacles::tell();
    Ok(())
}

/// Disables restarts: the next crash ends the domain, even while this version is on trial.
pub fn disable() {
    ENABLED.store(false, Ordering::SeqCst);
    trial::end();
}

/// Lifts the limit on restarts within a minute, for tests that crash the domain often.
pub fn lift_limit() {
    LIMITED.store(false, Ordering::Relaxed);
}

/// Returns the lasting reason why a crash would end the domain, if there is one.
pub fn obstacle() -> Option<&'static str> {
    obstacles::first()
}

/// Damages page tables on purpose, for tests: the entries for the memory after the image, which has the heap. Crashes
/// on PVH. On PV, where Xen lets no domain write to page tables, logs an error and returns.
pub fn damage_page_tables() {
    if domain::is_pvh() {
        // SAFETY: meant to crash.
        unsafe { memory::pvh::damage() }
    }
    log::error!("page tables cannot be damaged on PV");
}

/// Notes that the domain may have PCI devices of its own: a restart takes them up again, and so does a new version.
pub fn note_device() {
    if !mappings::start_for_devices() {
        obstacles::add(Obstacle::Devices);
    }
    HAS_DEVICES.store(true, Ordering::Relaxed);
}

/// Returns whether the domain may have PCI devices of its own.
pub(crate) fn has_devices() -> bool {
    HAS_DEVICES.load(Ordering::Relaxed)
}

pub use super::leaving::keep_port;

/// Begins the report of a crash.
pub(crate) fn begin_report() {
    if is_enabled() || trial::is_trying() {
        // SAFETY: the domain has crashed: only the vCPU that reports goes on.
        let intact = unsafe { region::change(|sealed| sealed.begin_report()) };
        REPORTING.store(intact, Ordering::Relaxed);
    }
}

/// Adds to the report of a crash.
pub(crate) fn note(text: fmt::Arguments<'_>) {
    if REPORTING.load(Ordering::Relaxed) {
        // What does not fit is dropped.
        // SAFETY: as in `begin_report`.
        let _ = unsafe { region::change(|sealed| sealed.write_fmt(text)) };
    }
}

/// Restarts the domain, or goes back to the version before if this one is on trial. Returns, with the reason in the
/// log, if that is not enabled or not possible. Must be called after the crash was reported and the devices have
/// stopped.
pub(crate) fn restart() {
    if trial::is_trying() {
        if REPORTING.load(Ordering::Relaxed) {
            trial::go_back();
        }
        return;
    }
    // A crash in here is final.
    if !ENABLED.swap(false, Ordering::SeqCst) {
        return;
    }
    let refused = if !REPORTING.load(Ordering::Relaxed) {
        Some("the region that survives is damaged")
    } else {
        // Obstacles are looked at once no other vCPU can add one any more.
        others::stop().err().or_else(obstacles::first)
    };
    if let Some(why) = refused {
        return say(format_args!("no restart: {why}\n"));
    }
    let (now, limited) = (vcpu::now(), LIMITED.load(Ordering::Relaxed));
    // SAFETY: as in `begin_report`.
    let Some(number) = (unsafe { region::change(|sealed| sealed.seal(now, limited)) }) else {
        return say(format_args!("no restart: three within a minute failed\n"));
    };
    // SAFETY: nothing goes on that uses what is mapped.
    if !unsafe { let_go(format_args!("restart {number} in place")) } {
        return;
    }
    // SAFETY: no other vCPU runs, Xen uses nothing in `.data` and `.bss` any more, and the copy of the data is there.
    unsafe {
        if domain::is_pvh() {
            copying::restart()
        } else {
            pv_again()
        }
    }
}

/// Boots again on PV, on the first vCPU.
///
/// # Safety
/// Called by `restart` alone, after all of its checks.
unsafe fn pv_again() -> ! {
    let (start, own) = (pristine::start(), vcpu::current().id());
    // SAFETY: by the contract. The first vCPU is parked if it is not the calling one.
    unsafe {
        list_ranges();
        if own == VcpuId(0) {
            restart_pv(start)
        }
        // Without a stack.
        parking::hand_over(own, restart_pv as *const () as u64, 0, start)
    }
}

/// Writes the list of the parts of `.bss` that can be written.
///
/// # Safety
/// Only before `restart_pv`.
unsafe fn list_ranges() {
    let list = &raw mut restart_ranges;
    let mut count = 0;
    image::writable_bss(|part| {
        if count + 1 < RANGES {
            // SAFETY: within the list, which nothing else uses.
            unsafe { (*list)[count] = [part.start, part.end - part.start] };
            count += 1;
        }
    });
    // SAFETY: as above.
    unsafe { (*list)[count] = [0; 2] };
}
