//! Boot of a PV domain: extends the toolstack's page tables to all memory, and finds the rings by the start info.

use super::{Booted, free_memory, run, set_up_memory};
use crate::cpu::{exception_entries, exceptions, nmi, upcall};
use crate::domain::{self, GuestType};
use crate::memory::image::{image, image_parts, room_end, stack_guard};
use crate::memory::layout::{AddressSpace, Ranges, frames_of, subtract};
use crate::memory::p2m::P2m;
use crate::memory::pv::{
    OwnMemory, forget, map_special, pseudo_physical, set_tables, top_machine_address,
};
use crate::memory::pv_tables::{PageTables, Unmapped};
#[cfg(feature = "recover")]
use crate::recovery::{leaving, others, parking, pristine, region, trial, upgrade};
use crate::start_info::{COMMAND_LINE_BYTES, LoadedModule, printable};
use crate::vcpu::BOOT_VCPU;
use crate::{hypercall, interrupts, logger};
use alloc::boxed::Box;
use bulkhead_xen::abi::pv::{
    CALLBACKOP_REGISTER, CALLBACKTYPE_EVENT, CALLBACKTYPE_FAILSAFE, CallbackRegister,
    FLAT_KERNEL_CS, FLAT_KERNEL_SS, GuestContext, PvStartInfo, SEGBASE_GS_KERNEL, TrapInfo,
    VGCF_IN_KERNEL,
};
use bulkhead_xen::abi::sched::VCPUOP_INITIALISE;
use bulkhead_xen::{Errno, PAGE_SIZE, Port, VcpuId};
use core::ptr::NonNull;

const PAGE: u64 = PAGE_SIZE as u64;

unsafe extern "C" {
    /// Entry point of the other vCPUs (`entry`); never called.
    fn pv_vcpu_start();
}

/// Called by the entry code, on our stack and the builder's page tables.
pub extern "C" fn pv_main(start: *const PvStartInfo) -> ! {
    // SAFETY: the first thing on the only vCPU.
    #[cfg(feature = "recover")]
    unsafe {
        pristine::keep(start as u64);
    }
    domain::set_guest_type(GuestType::Pv);
    #[cfg(feature = "recover")]
    trial::begin();
    // SAFETY: the first thing on the only vCPU.
    unsafe {
        let base = BOOT_VCPU.register(VcpuId(0), stack_guard().start);
        // If this fails, the next steps fail as well, and nothing can be logged before them.
        let _ = hypercall::set_segment_base(SEGBASE_GS_KERNEL.into(), base);
    }
    // SAFETY: the builder has put it there; nothing changes it.
    let start = unsafe { &*start };
    // A version on trial that fails from here on goes back to the one before, which needs this port open.
    #[cfg(feature = "recover")]
    leaving::keep_store_port(Port(start.store_evtchn));
    let console = pseudo_physical(start.console_mfn) * PAGE;
    if let Some(ring) = NonNull::new(console as *mut _) {
        // SAFETY: the ring's page, mapped by the builder; no other code writes there.
        unsafe { logger::use_ring(ring, Port(start.console_evtchn)) };
    }
    // SAFETY: the handlers are this vCPU's.
    unsafe { set_handlers(VcpuId(0)) }.expect("cannot set exception handlers and upcalls");

    // SAFETY: the builder's list.
    let p2m = unsafe { P2m::new(start.mfn_list as *mut u64, start.nr_pages) };
    let mut ram = Ranges::new();
    ram.push(0..start.nr_pages).expect("room for one range");
    let modules = module(start);
    let mut free = free_memory(&ram, &modules, image());
    // What the builder put behind the kernel and its ramdisk begins with the list of frames, and ends with the page tables
    // and a page of boot stack. The room for later versions is before that, and mapped; the version that the domain was
    // built with may have had less.
    let tables_end = start.pt_base + (start.nr_pt_frames + 1) * PAGE;
    let behind = room_end().min(start.mfn_list) / PAGE..tables_end / PAGE;
    let bits = interrupts::BITS..interrupts::BITS + 1;
    for taken in [behind.clone(), bits] {
        subtract(&mut free, taken).expect("too many pieces of memory");
    }
    #[cfg(feature = "recover")]
    {
        let modules = modules.iter();
        let modules = modules.map(|module| frames_of(module.address, module.bytes));
        let taken: heapless::Vec<_, 2> = modules.chain([behind]).collect();
        upgrade::reserve(&mut free, taken.iter()).expect("too many pieces of memory");
    }
    let space = AddressSpace::above(start.nr_pages * PAGE, start.nr_pages, false);
    // Xen lets no domain write to page tables, so none may lie where another image may go.
    let mut for_tables = free.clone();
    let room = frames_of(image().start, room_end() - image().start);
    subtract(&mut for_tables, room).expect("too many pieces of memory");
    // SAFETY: the builder's tables; free frames are used for nothing else.
    let mut tables = unsafe { PageTables::new(start.pt_base, OwnMemory(p2m), &for_tables) };
    let mapped = map_or_find(&mut tables, start.nr_pages, &space, &mut free);
    let mapped = mapped.unwrap_or_else(|error| panic!("{error}"));
    let mut later = free.clone();
    subtract(&mut free, mapped..start.nr_pages).expect("too many pieces of memory");
    subtract(&mut later, 0..mapped).expect("too many pieces of memory");
    set_tables(tables);
    // SAFETY: what is free is mapped now, and what is not can be populated.
    unsafe { set_up_memory(ram, &free, later, &Ranges::new(), space, Some(p2m)) };
    // SAFETY: address space set aside for it.
    unsafe { map_special(space.special, start.shared_info / PAGE) }
        .expect("cannot map the shared info page");
    let booted = Booted {
        guest_type: GuestType::Pv,
        command_line: command_line(start),
        modules,
        shared: space.special as *mut _,
        store_page: pseudo_physical(start.store_mfn) * PAGE,
        store_port: Port(start.store_evtchn),
    };
    // SAFETY: the end of this way of booting.
    unsafe { run(booted) }
}

/// Maps the memory that is to be mapped at boot, or finds the mappings of the boot before. Takes the frames of page
/// tables out of the free ones, and returns the end of the mapped memory.
fn map_or_find(
    tables: &mut PageTables<OwnMemory>,
    pages: u64,
    space: &AddressSpace,
    free: &mut Ranges,
) -> Result<u64, Unmapped> {
    #[cfg(feature = "recover")]
    if region::is_restart() {
        let mapped = tables.find(pages, space.end(), free)?;
        // After an upgrade, the parts of another image were protected here.
        if region::is_fresh() {
            // Other vCPUs execute the stage's code until they are started.
            protect(tables, space, parking::stage())?;
        }
        return Ok(mapped);
    }
    let mapped = map_memory(tables, pages, space)?;
    for frames in tables.used() {
        subtract(free, frames).map_err(|_| Unmapped::NoTables)?;
    }
    Ok(mapped)
}

/// Maps the memory that is to be mapped at boot, and returns the end of the mapped memory.
fn map_memory(
    tables: &mut PageTables<OwnMemory>,
    pages: u64,
    space: &AddressSpace,
) -> Result<u64, Unmapped> {
    let mapped = tables.map_memory(pages)?;
    tables.reserve(space.special..space.end())?;
    protect(tables, space, None)?;
    Ok(mapped)
}

/// Protects the image, so that code cannot be written and data cannot be executed; the page at `code` stays executable.
fn protect(
    tables: &mut PageTables<OwnMemory>,
    space: &AddressSpace,
    code: Option<u64>,
) -> Result<(), Unmapped> {
    tables.protect(&image_parts(), space.end(), code)?;
    // Address 0 was unmapped just now, as `forget` needs an empty entry.
    forget(0);
    Ok(())
}

fn command_line(start: &PvStartInfo) -> heapless::String<COMMAND_LINE_BYTES> {
    let bytes = start.cmd_line.iter().take_while(|byte| **byte != 0);
    bytes.map(|byte| printable(*byte)).collect()
}

/// The module is mapped where `mod_start` says, with its exact length: both because the image has
/// no MOD_START_PFN note (elfnote.h).
fn module(start: &PvStartInfo) -> heapless::Vec<LoadedModule, 8> {
    let module = LoadedModule {
        address: start.mod_start,
        bytes: start.mod_len,
        command_line: heapless::String::new(),
    };
    (start.mod_len > 0).then_some(module).into_iter().collect()
}

/// The handler of each exception. The NMI has none: see [`nmi`].
fn traps() -> impl Iterator<Item = TrapInfo> {
    let vectors = (0..exceptions::VECTORS).filter(|&vector| vector != nmi::VECTOR);
    vectors.map(|vector| TrapInfo {
        vector: vector as u8,
        // Upcalls are masked; the kernel itself may raise breakpoint and overflow.
        flags: 4 | if matches!(vector, 3 | 4) { 1 } else { 0 },
        cs: FLAT_KERNEL_CS,
        address: exception_entries::pv_entry(vector),
    })
}

/// The handler of a vCPU's upcalls.
fn upcall_entry(id: VcpuId) -> u64 {
    #[cfg(feature = "recover")]
    return parking::upcall_entry(id);
    #[cfg(not(feature = "recover"))]
    {
        let _ = id;
        upcall::pv_upcall as *const () as u64
    }
}

/// Registers the handlers of the calling vCPU's exceptions and upcalls with Xen.
///
/// # Safety
/// It is vCPU `id`.
pub unsafe fn set_handlers(id: VcpuId) -> Result<(), Errno> {
    // The first entry without an address ends the table.
    let mut table = [TrapInfo::default(); exceptions::VECTORS];
    for (entry, trap) in table.iter_mut().zip(traps()) {
        *entry = trap;
    }
    let failsafe: unsafe extern "C" fn() = upcall::pv_failsafe;
    // SAFETY: Xen copies the table and the addresses; the handlers live for ever.
    unsafe {
        hypercall::set_trap_table(table.as_mut_ptr() as u64)?;
        for (kind, address) in [
            (CALLBACKTYPE_EVENT, upcall_entry(id)),
            (CALLBACKTYPE_FAILSAFE, failsafe as usize as u64),
        ] {
            let mut request = CallbackRegister {
                kind,
                flags: 0,
                address,
            };
            hypercall::callback_op(CALLBACKOP_REGISTER.into(), hypercall::pointer(&mut request))?;
        }
    }
    Ok(())
}

/// Gives Xen the state in which a vCPU starts: with the first vCPU's page tables and handlers.
///
/// # Safety
/// The stack and what `argument` points at are that vCPU's, and `gs_base` is its state.
pub unsafe fn initialise_vcpu(
    id: VcpuId,
    stack: u64,
    argument: u64,
    gs_base: u64,
) -> Result<(), Errno> {
    // SAFETY: numbers, for all of which zero is a value: that of the registers not named below.
    let mut context = unsafe { Box::<GuestContext>::new_zeroed().assume_init() };
    context.flags = VGCF_IN_KERNEL;
    context.registers.rip = pv_vcpu_start as *const () as u64;
    context.registers.cs = FLAT_KERNEL_CS;
    context.registers.rsp = stack;
    context.registers.ss = FLAT_KERNEL_SS.into();
    context.registers.rdi = argument;
    // Interrupts are Xen's; ours are masked in the shared page.
    context.registers.rflags = 1 << 9;
    for trap in traps() {
        context.traps[usize::from(trap.vector)] = trap;
    }
    context.kernel_ss = FLAT_KERNEL_SS.into();
    context.kernel_sp = stack;
    context.control[3] = top_machine_address().expect("page tables are set up first");
    context.event_callback = upcall_entry(id);
    context.failsafe_callback = upcall::pv_failsafe as *const () as u64;
    context.gs_base_kernel = gs_base;
    // SAFETY: Xen reads the context; the rest is the caller's promise.
    let result = unsafe {
        hypercall::vcpu_op(
            VCPUOP_INITIALISE.into(),
            id.0.into(),
            hypercall::pointer(&mut *context),
        )
    };
    match result {
        // The boot before has initialised it, which Xen does only once: it is parked, and starts from there.
        #[cfg(feature = "recover")]
        Err(Errno::EXIST) => {
            let registers = &context.registers;
            others::start_parked(id, registers.rip, registers.rsp, registers.rdi)
        }
        result => result.map(|_| ()),
    }
}
