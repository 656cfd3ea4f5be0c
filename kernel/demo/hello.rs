//! Boots, shows that everything works, and does the test that `test=` on the command line names.
#![no_std]
#![no_main]

extern crate alloc;

mod devices;
mod pair;
mod vcpus;

use alloc::{string::String, vec::Vec};
use bulkhead_kernel::{Machine, ShutdownReason, command_line, memory, watchdog};
use bulkhead_xen::{Hypervisor, PAGE_SIZE, Reservation, VcpuId};
use core::hint::black_box;
use core::time::Duration;

bulkhead_kernel::entry!(main);

fn main(mut machine: Machine) -> ShutdownReason {
    let hypervisor = machine.hypervisor;
    log::info!(
        "hello after {} us: {:?}, {} vCPUs, {:?}",
        hypervisor.now().since(machine.started).as_micros(),
        machine.guest_type,
        machine.vcpus,
        memory::statistics()
    );
    log::info!("command line: {:?}", machine.command_line);
    show_memory();
    show_modules(&mut machine);
    if command_line::value(machine.command_line, "test").is_none() {
        show_store(&machine);
    }
    log::info!("float: {:.6}", black_box(2.0f64) * black_box(1.234_567));
    sleep(&machine, Duration::from_millis(100));
    hypervisor.wake_vcpu(VcpuId(0));
    hypervisor.block(None);
    hypervisor.take_pending(&mut |port| log::error!("port {port} instead of a wake-up"));
    match command_line::value(machine.command_line, "test") {
        Some("panic") => panic!("as asked"),
        Some("page-fault") => fault(0x7000_0000_0000),
        Some("null") => fault(black_box(8)),
        Some("interrupt-table") => fault(interrupt_table()),
        Some("descriptors") => fault(descriptors()),
        Some("page-table") => fault(page_table()),
        Some("execute-heap") => execute(alloc::vec![RET; 64].leak().as_mut_ptr()),
        Some("execute-page") => {
            // Beyond what the image's own page table maps.
            let pages = memory::allocate_pages(1024).expect("4 MiB").as_ptr();
            execute(pages.wrapping_add(1023 * PAGE_SIZE));
        }
        Some("execute-module") => {
            execute(machine.modules.first().expect("a ramdisk").start.as_ptr());
        }
        Some("execute-stack") => execute([RET; 64].as_mut_ptr()),
        Some("write-code") => {
            let code = main as *const () as usize;
            log::info!("code at {code:#x} is to be written");
            fault(code)
        }
        Some("stack") => log::info!("{}", overflow(1)),
        // SAFETY: meant to crash.
        Some("invalid-opcode") => unsafe { core::arch::asm!("ud2") },
        // SAFETY: meant to crash.
        Some("breakpoint") => unsafe { core::arch::asm!("int3") },
        Some("divide") => log::info!("{}", black_box(1u32) / black_box(0u32)),
        Some("device-panic") => {
            let _registered = devices::register(&machine);
            panic!("as asked")
        }
        Some("device-page-fault") => {
            let _registered = devices::register(&machine);
            fault(0x7000_0000_0000)
        }
        Some("device-stuck") => core::mem::forget(devices::register_stuck(&machine)),
        Some("heap") => exhaust(),
        Some("pages") => take_all_pages(),
        Some("discard") => give_back(&machine),
        Some("hang") => {
            watchdog::start(WATCHDOG);
            sleep(&machine, Duration::from_millis(100));
            hang()
        }
        Some("vcpu-hang") => vcpus::hang_elsewhere(&machine, WATCHDOG, hang),
        Some("stray") => stray_upcalls(&machine),
        Some("stray-twice") => log::info!("came back: {}", stray_upcall_in_its_handler()),
        Some("grant") => pair::grant(&machine),
        Some("map") => pair::map(&machine),
        Some("vcpus") => vcpus::show(&machine),
        Some("vcpu-page-fault") => vcpus::crash_elsewhere(&machine, || fault(0x7000_0000_0000)),
        Some("vcpu-panic") => vcpus::crash_elsewhere(&machine, || panic!("as asked")),
        Some("vcpu-descriptors") => vcpus::crash_elsewhere(&machine, || fault(descriptors())),
        Some("vcpu-stack") => vcpus::crash_elsewhere(&machine, || log::info!("{}", overflow(1))),
        Some("keys") => echo(&machine),
        Some("flood") => {
            (0..2000).for_each(|n| log::info!("line {n} of many, to see what a slow reader gets"))
        }
        Some("idle") => loop {
            hypervisor.take_pending(&mut |port| log::info!("port {port}"));
            hypervisor.block(None);
        },
        Some("ticks") => {
            for _ in 0..50 {
                sleep(&machine, Duration::from_millis(100));
            }
        }
        Some("reboot") => return ShutdownReason::Reboot,
        Some(other) => log::error!("test={other}: unknown"),
        None => {}
    }
    ShutdownReason::Poweroff
}

/// Echoes what is typed, until `q`; sleeps in between.
fn echo(machine: &Machine) {
    let mut wakes = 0;
    loop {
        while let Some(key) = bulkhead_kernel::logger::read() {
            log::info!("key {key} after {wakes} wake-ups");
            if key == b'q' {
                return;
            }
        }
        machine.hypervisor.block(None);
        wakes += 1;
        machine.hypervisor.take_pending(&mut |port| {
            if Some(port) != machine.console {
                log::error!("port {port} instead of the console's");
            }
        });
    }
}

/// Raises upcalls where none belongs, as a faulty emulator does: nothing may change (PVH only).
fn stray_upcalls(machine: &Machine) {
    let mut intact = 0;
    for round in 0..10_000u64 {
        let (below, last, kept): (u64, u64, u64);
        // SAFETY: the 128 bytes below the stack pointer are not in use by an assembly block that
        // may push; they and the registers come back as they were.
        unsafe {
            core::arch::asm!(
                "mov [rsp - 8], {round}",
                "mov [rsp - 128], {round}",
                "int 0xf3",
                "mov {below}, [rsp - 8]",
                "mov {last}, [rsp - 128]",
                "mov {kept}, {round}",
                round = in(reg) round,
                below = out(reg) below,
                last = out(reg) last,
                kept = out(reg) kept,
            );
        }
        intact += u64::from([below, last, kept] == [round; 3]);
    }
    log::info!("{intact} of 10000 stray upcalls changed nothing");
    sleep(machine, Duration::from_millis(10));
}

unsafe extern "C" {
    /// The kernel's handler of upcalls (`kernel/src/cpu/upcall.rs`).
    fn pvh_upcall();
}

/// Enters the handler of upcalls as if it had interrupted itself, before its first instruction, as a faulty emulator has it
/// do (PVH only). What the first one has interrupted is lost, so this must not return.
#[inline(never)]
fn stray_upcall_in_its_handler() -> u64 {
    log::info!("interrupting the handler now");
    let kept: u64;
    // SAFETY: a stack of its own, below what is in use, with the frame of an interrupt. Nothing comes back.
    unsafe {
        core::arch::asm!(
            "sub rsp, 256",
            "mov {old}, rsp",
            "mov {segment}, ss",
            "push {segment}",
            "push {old}",
            "pushfq",
            "mov {segment}, cs",
            "push {segment}",
            "push {handler}",
            "jmp {handler}",
            old = out(reg) _,
            segment = out(reg) _,
            handler = in(reg) pvh_upcall as *const () as u64,
            lateout("rax") kept,
        );
    }
    kept
}

/// Gives memory back to Xen and asks for it again, twice.
fn give_back(machine: &Machine) {
    const PAGES: usize = 1000;
    let first = machine.hypervisor.allocate(PAGES).expect("pages");
    for round in 0..2u8 {
        // SAFETY: our own pages, touched only while they are memory.
        unsafe {
            first.write_bytes(0x77, PAGES * PAGE_SIZE);
            let before = machine.hypervisor.now();
            let gone = machine.hypervisor.release(first, PAGES);
            let between = machine.hypervisor.now();
            log::info!("{round}: released {gone}, {:?}", memory::statistics());
            sleep(machine, Duration::from_millis(1500));
            let start = machine.hypervisor.now();
            let back = machine.hypervisor.populate(first, gone);
            let end = machine.hypervisor.now();
            let bytes = core::slice::from_raw_parts(first.as_ptr(), PAGES * PAGE_SIZE);
            let dirty = bytes.iter().filter(|byte| **byte != 0).count();
            log::info!(
                "{round}: populated {back}, {dirty} bytes not zero, {:?}; {} and {} us",
                memory::statistics(),
                between.since(before).as_micros(),
                end.since(start).as_micros()
            );
        }
    }
    if command_line::value(machine.command_line, "touch").is_some() {
        // SAFETY: meant to crash: there is nothing behind the page.
        unsafe {
            machine.hypervisor.release(first, 1);
            first.write_volatile(1);
        }
    }
}

fn show_memory() {
    let mut lists = Vec::new();
    for size in 0..200usize {
        lists.push(alloc::vec![size as u8; size * 37]);
    }
    let sum: usize = lists.iter().flatten().map(|byte| usize::from(*byte)).sum();
    drop(lists);
    let text: String = (0..10).map(|n| alloc::format!("{n}")).collect();
    log::info!("heap: {sum} {text}, free {}", memory::statistics().free);
    let pages = memory::allocate_pages(16).expect("16 pages");
    // SAFETY: fresh pages.
    unsafe {
        pages.write_bytes(0x5a, 16 * PAGE_SIZE);
        log::info!(
            "pages at {pages:?}: frame {:?}",
            bulkhead_kernel::Hypercalls.frame_of(pages.as_ptr())
        );
        memory::free_pages(pages, 16);
    }
}

fn show_modules(machine: &mut Machine) {
    for module in &machine.modules {
        let start = module.start.as_ptr();
        // SAFETY: the module's own memory.
        let (first, last) = unsafe { (start.read(), start.add(module.len - 1).read()) };
        log::info!(
            "module at {start:?}, {} bytes, {first:#x}..{last:#x}",
            module.len
        );
        // SAFETY: the module's own memory; it can be written.
        unsafe {
            start.write(!first);
            start.add(module.len - 1).write(!last);
            assert_eq!(start.read_volatile(), !first);
        }
    }
}

fn show_store(machine: &Machine) {
    // io/xs_wire.h: req[1024], rsp[1024], req_cons, req_prod, rsp_cons, rsp_prod.
    let indices: [u32; 4] = core::array::from_fn(|n| {
        // SAFETY: within the ring's page.
        unsafe {
            machine
                .store
                .page
                .as_ptr()
                .add(2048 + 4 * n)
                .cast::<u32>()
                .read_volatile()
        }
    });
    log::info!(
        "store ring at {:?}, port {}, indices {indices:?}",
        machine.store.page,
        machine.store.port
    );
    let table = machine.hypervisor.grant_entries();
    let first = table.map(|table| {
        let entry = &table[1];
        (
            table.len(),
            entry.flags.load(core::sync::atomic::Ordering::Relaxed),
        )
    });
    log::info!(
        "grant table (entries, flags of the second): {first:?}, {:?}",
        machine.hypervisor.foreign_region()
    );
}

fn sleep(machine: &Machine, time: Duration) {
    let hypervisor = machine.hypervisor;
    let before = hypervisor.now();
    let deadline = before + time;
    let mut rounds = 0;
    while hypervisor.now() < deadline {
        hypervisor.take_pending(&mut |port| log::debug!("port {port}"));
        hypervisor.block(Some(deadline));
        rounds += 1;
    }
    log::info!(
        "slept {} us for {}, {rounds} rounds",
        hypervisor.now().since(before).as_micros(),
        time.as_micros()
    );
}

/// The content of a table register: `sidt` and `sgdt` store a limit of 16 bits and the base.
#[repr(C, packed)]
struct TableRegister {
    limit: u16,
    base: usize,
}

fn interrupt_table() -> usize {
    let mut register = TableRegister { limit: 0, base: 0 };
    // SAFETY: writes the ten bytes of `register`.
    unsafe { core::arch::asm!("sidt [{}]", in(reg) &raw mut register, options(nostack)) };
    register.base
}

fn descriptors() -> usize {
    let mut register = TableRegister { limit: 0, base: 0 };
    // SAFETY: writes the ten bytes of `register`.
    unsafe { core::arch::asm!("sgdt [{}]", in(reg) &raw mut register, options(nostack)) };
    register.base
}

/// Returns the topmost page table. PVH only: a PV domain does not know the address of its own.
fn page_table() -> usize {
    let address;
    // SAFETY: reading cr3 in ring 0 has no effect.
    unsafe { core::arch::asm!("mov {}, cr3", out(reg) address, options(nomem, nostack)) };
    address
}

fn fault(address: usize) {
    // SAFETY: meant to crash.
    unsafe { (address as *mut u8).write_volatile(1) };
}

/// The instruction that returns to the caller.
const RET: u8 = 0xc3;

/// Calls an instruction that was just written, in memory for data.
fn execute(place: *mut u8) {
    log::info!("data at {:#x} is to be executed", place.addr());
    // SAFETY: the caller's own memory; if it can be executed, then it only returns.
    unsafe {
        place.write_volatile(RET);
        core::mem::transmute::<*mut u8, extern "C" fn()>(place)();
    }
    log::error!("data at {place:?} was executed");
}

/// The watchdog's time-out in seconds.
const WATCHDOG: u32 = 10;

fn hang() {
    log::info!("hanging now");
    while black_box(true) {
        core::hint::spin_loop();
    }
}

#[inline(never)]
fn overflow(depth: u64) -> u64 {
    let room = black_box([depth; 64]);
    if black_box(true) {
        overflow(depth + 1) + room[3]
    } else {
        depth
    }
}

fn exhaust() {
    let mut all = Vec::new();
    loop {
        all.push(alloc::vec![1u8; 100_000]);
    }
}

/// Takes and touches every free page, and gives all of them back.
fn take_all_pages() {
    const RUN: usize = 64;
    let before = memory::statistics().free;
    let mut all = Vec::new();
    while let Some(run) = memory::allocate_pages(RUN) {
        for page in 0..RUN {
            // SAFETY: a fresh page.
            unsafe { run.add(page * PAGE_SIZE).cast::<usize>().write(page) };
        }
        all.push(run);
    }
    let (runs, left) = (all.len(), memory::statistics().free);
    for run in all {
        // SAFETY: allocated above, as many.
        unsafe { memory::free_pages(run, RUN) };
    }
    let after = memory::statistics().free;
    log::info!("took {runs} runs, {left} left; free {before} before, {after} after");
}
