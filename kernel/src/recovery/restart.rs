//! From a crash back to the first instruction.
//!
//! Nothing of the damaged state is used that Xen does not check: event channels are found by asking Xen for each port,
//! mappings are ended by handles that Xen compares with their addresses. Then assembly restores `.data`, clears `.bss`
//! with all stacks, and enters the boot path as Xen did: on PVH with paging off, so that even damaged page tables are
//! of no importance; on PV on the page tables that Xen has checked, without the pages that are read-only.

use super::{mappings, obstacles, pristine, region};
use crate::memory::image;
use crate::{domain, event_channels, hypercall, logger, vcpu};
use bulkhead_xen::abi::event_channel;
use bulkhead_xen::abi::sched;
use bulkhead_xen::abi::shared_info::EVENT_WORDS;
use bulkhead_xen::{DomId, Port, VcpuId};
use core::arch::global_asm;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// True while the domain serves: a crash at any other time is final, that of a restart among them.
static ENABLED: AtomicBool = AtomicBool::new(false);
/// xenstore's port, which stays open.
static STORE_PORT: AtomicU32 = AtomicU32::new(0);
/// True once the record of this crash was begun on an undamaged region.
static REPORTING: AtomicBool = AtomicBool::new(false);

/// Numbers of Xen's watchdog timers (`NR_DOMAIN_WATCHDOG_TIMERS` in Xen is 2).
const WATCHDOG_TIMERS: [u32; 2] = [1, 2];

/// `EVTCHNSTAT_closed`.
const CLOSED: u32 = 0;

global_asm!(
    r#"
    .section .text.boot, "ax", @progbits
    .code64
    /* rdi: start info. The descriptors are constants of the image. */
    .globl restart_pvh
restart_pvh:
    cli
    cld
    movl %edi, %ebx
    lgdt restart_gdt_pointer(%rip)
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
    movl $__pristine, %esi
    movl $__data_start, %edi
    movl $__data_end, %ecx
    subl %edi, %ecx
    shrl $2, %ecx
    rep movsl
    movl $__bss_start, %edi
    movl $__bss_end, %ecx
    subl %edi, %ecx
    shrl $2, %ecx
    xorl %eax, %eax
    rep stosl
    jmp pvh_start

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

    .section .rodata.restart_gdt, "a", @progbits
    .balign 8
restart_gdt:
    .quad 0
    .quad 0x00cf9b000000ffff                /* 0x08: 32-bit code */
    .quad 0x00cf93000000ffff                /* 0x10: data */
restart_gdt_end:
restart_gdt_pointer:
    .word restart_gdt_end - restart_gdt - 1
    .quad restart_gdt

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
    fn restart_pvh(start: u64) -> !;
    fn restart_pv(start: u64) -> !;
    static mut restart_ranges: [[u64; 2]; RANGES];
}

/// Notes xenstore's port, which a restart leaves open.
pub(crate) fn keep_store_port(port: Port) {
    STORE_PORT.store(port.0, Ordering::Relaxed);
}

/// Lets a crash be followed by a restart from now on: to be called once, when the domain is ready to serve and has
/// mapped nothing yet. Returns the reason if there can be none.
pub fn enable() -> Result<(), &'static str> {
    if let Some(obstacle) = obstacles::first() {
        return Err(obstacle);
    }
    if !mappings::start() {
        return Err("there is no memory for the handles of mapped pages");
    }
    ENABLED.store(true, Ordering::Release);
    Ok(())
}

/// Begins the report of a crash.
pub(crate) fn begin_report() {
    if ENABLED.load(Ordering::Acquire) {
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

/// Restarts the domain, if that was enabled and is possible; returns if not, having said why. To be called once the
/// crash was reported and the devices have stopped.
pub(crate) fn restart() {
    // A failure in here finds it off.
    if !ENABLED.swap(false, Ordering::SeqCst) {
        return;
    }
    let refused = if vcpu::current().id() != VcpuId(0) {
        Some("another vCPU than the first has failed")
    } else if !REPORTING.load(Ordering::Relaxed) {
        Some("the region that survives is damaged")
    } else {
        obstacles::first()
    };
    if let Some(why) = refused {
        return say(format_args!("no restart: {why}\n"));
    }
    let now = vcpu::now();
    // SAFETY: as in `begin_report`.
    let Some(number) = (unsafe { region::change(|sealed| sealed.seal(now)) }) else {
        return say(format_args!("no restart: three within a minute failed\n"));
    };
    // SAFETY: nothing goes on that uses them.
    let (unmapped, stuck) = unsafe { mappings::unmap_all() };
    stop_timers();
    let closed = close_ports();
    say(format_args!(
        "restart {number} in place: {closed} ports closed, {unmapped} pages unmapped, {stuck} not\n"
    ));
    if stuck > 0 {
        // Their addresses cannot be used again.
        return;
    }
    domain::forget_events();
    // SAFETY: no other vCPU runs, Xen knows of nothing in `.data` and `.bss` any more, and what is pristine is there.
    unsafe {
        if domain::is_pvh() {
            restart_pvh(pristine::start())
        } else {
            list_ranges();
            restart_pv(pristine::start())
        }
    }
}

fn say(text: fmt::Arguments<'_>) {
    logger::last_words(text);
    logger::drain();
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

/// Turns Xen's watchdog off: the next boot has timers of its own.
fn stop_timers() {
    for id in WATCHDOG_TIMERS {
        let mut request = sched::Watchdog { id, timeout: 0 };
        // SAFETY: Xen reads the request. It refuses a timer that is not set.
        let _ = unsafe {
            hypercall::sched_op(sched::WATCHDOG.into(), hypercall::pointer(&mut request))
        };
    }
}

/// Closes all ports but those that the toolstack has made, and returns their number.
fn close_ports() -> u32 {
    let kept = [
        Some(Port(STORE_PORT.load(Ordering::Relaxed))),
        logger::port(),
    ];
    let mut closed = 0;
    for number in 1..EVENT_WORDS as u32 * u64::BITS {
        let port = Port(number);
        let mut request = event_channel::Status {
            dom: DomId::SELF,
            port,
            status: CLOSED,
            vcpu: VcpuId(0),
            other_end: [0; 2],
        };
        // Xen has room for ports up to the largest that was ever used, and a little beyond.
        if event_channels::operation(event_channel::STATUS, &mut request).is_err() {
            break;
        }
        if request.status != CLOSED && !kept.contains(&Some(port)) {
            let mut request = event_channel::OnPort { port };
            if event_channels::operation(event_channel::CLOSE, &mut request).is_ok() {
                closed += 1;
            }
        }
    }
    closed
}
