//! Boot of a PVH domain: sets up page tables and processor tables, and finds the rings by parameters that Xen has.

use super::{Booted, free_memory, run, set_up_memory};
use crate::cpu::exception_entries;
use crate::cpu::pvh::{self as cpu, BOOT_TABLES};
use crate::cpu::upcall::UPCALL_VECTOR;
#[cfg(feature = "recover")]
use crate::cpu::{tick, tick_entry};
use crate::domain::{self, GuestType};
use crate::memory::image::{image, stack_guard};
use crate::memory::layout::{AddressSpace, Ranges, not_there, take_last};
#[cfg(feature = "recover")]
use crate::memory::layout::{frames_of, subtract};
#[cfg(feature = "recover")]
use crate::memory::pvh::map_special_pages;
use crate::memory::pvh::{forbid_execution, map_above_4g, protect_image};
#[cfg(feature = "recover")]
use crate::recovery::{leaving, pristine, trial, upgrade};
use crate::reservation::{current_reservation, decline};
use crate::start_info::{self, Memory};
use crate::vcpu::BOOT_VCPU;
use crate::{grants, hypercall, logger};
use bulkhead_xen::abi::hvm::{
    CALLBACK_TYPE_VECTOR, HVMOP_GET_PARAM, HVMOP_SET_PARAM, HvmParam, Param, VCPU_HVM_MODE_64B,
    VcpuContext, VcpuRegisters,
};
use bulkhead_xen::abi::memory::MAPSPACE_SHARED_INFO;
use bulkhead_xen::abi::sched::VCPUOP_INITIALISE;
use bulkhead_xen::{DomId, Errno, PAGE_SIZE, Port, VcpuId};
use core::arch::asm;
use core::arch::x86_64::__cpuid;
use core::ptr::NonNull;
#[cfg(feature = "recover")]
use core::sync::atomic::Ordering;

const MSR_EFER: u32 = 0xc000_0080;
const MSR_GS_BASE: u32 = 0xc000_0101;

unsafe extern "C" {
    static hypercall_page: u8;
    /// Entry point of the other vCPUs (`entry`); never called.
    fn pvh_vcpu_start();
}

/// Physical memory, mapped by the boot page tables.
struct Physical;

impl Memory for Physical {
    fn read(&self, address: u64, buffer: &mut [u8]) {
        // SAFETY: the first 4 GiB are mapped; the start info and all that it names are there (start_info.h).
        unsafe { (address as *const u8).copy_to_nonoverlapping(buffer.as_mut_ptr(), buffer.len()) }
    }
}

/// Called by the entry code, on the boot stack and page tables.
pub extern "C" fn pvh_main(start: u64) -> ! {
    // SAFETY: the first thing on the only vCPU.
    #[cfg(feature = "recover")]
    unsafe {
        pristine::keep(start);
    }
    domain::set_guest_type(GuestType::Pvh);
    #[cfg(feature = "recover")]
    trial::begin();
    // SAFETY: the first thing on the only vCPU, in ring 0.
    unsafe {
        set_gs_base(BOOT_VCPU.register(VcpuId(0), stack_guard().start));
        cpu::fill_idt(exception_entries::pvh_entry);
        #[cfg(feature = "recover")]
        cpu::set_handler(tick::TICK_VECTOR, tick_entry::address());
        BOOT_TABLES.fill();
        BOOT_TABLES.load();
        fill_hypercall_page();
    }
    #[cfg(feature = "recover")]
    BOOT_VCPU.has_tables.store(true, Ordering::Release);
    // A version on trial that fails from here on goes back to the one before, which needs this port open.
    #[cfg(feature = "recover")]
    leaving::keep_store_port(Port(param(Param::StoreEvtchn) as u32));
    let console_frame = param(Param::ConsolePfn);
    let console_port = param(Param::ConsoleEvtchn);
    if let Some(ring) = NonNull::new((console_frame * PAGE_SIZE as u64) as *mut _) {
        // SAFETY: the ring's page, mapped by the boot page tables; no other code writes there.
        unsafe { logger::use_ring(ring, Port(console_port as u32)) };
    }
    let found = match start_info::parse(&Physical, start) {
        Ok(found) => found,
        Err(error) => panic!("{error}"),
    };
    let end = found.ram.iter().map(|range| range.end).max().unwrap_or(0) * PAGE_SIZE as u64;
    let total = found.ram.iter().map(|range| range.end - range.start).sum();
    let missing = not_there(total, current_reservation().unwrap_or(total));
    let space = AddressSpace::above(end, total - missing, true);
    let mut free = free_memory(&found.ram, &found.modules, image());
    // The next boot in place reads the start info again.
    #[cfg(feature = "recover")]
    {
        for frames in &found.own {
            subtract(&mut free, frames.clone()).expect("too many pieces of memory");
        }
        let modules = found.modules.iter();
        let modules: Ranges = modules
            .map(|module| frames_of(module.address, module.bytes))
            .collect();
        upgrade::reserve(&mut free, found.own.iter().chain(&modules))
            .expect("too many pieces of memory");
    }
    let missing = take_last(&mut free, missing).expect("too many pieces of memory");
    // SAFETY: once, with what the builder has told us; memory above 4 GiB is mapped right after,
    // and the allocator, which takes the lowest pages first, has a map of its own below that.
    unsafe {
        #[cfg(feature = "recover")]
        map_special_pages(space.special);
        set_up_memory(found.ram, &free, Ranges::new(), &missing, space, None);
        decline(&missing);
        let no_execute = forbid_execution();
        map_above_4g(space.end(), no_execute);
        protect_image();
    }
    grants::add_to_physmap(MAPSPACE_SHARED_INFO, 0, space.special)
        .expect("cannot map the shared info page");
    set_param(
        Param::CallbackIrq,
        CALLBACK_TYPE_VECTOR | u64::from(UPCALL_VECTOR),
    )
    .expect("cannot set the upcall vector");
    let booted = Booted {
        guest_type: GuestType::Pvh,
        command_line: found.command_line,
        modules: found.modules,
        shared: space.special as *mut _,
        store_page: param(Param::StorePfn) * PAGE_SIZE as u64,
        store_port: Port(param(Param::StoreEvtchn) as u32),
    };
    // SAFETY: the end of this way of booting.
    unsafe { run(booted) }
}

/// Finds Xen's CPUID leaves and has it fill the page (arch-x86/cpuid.h: the leaf after the
/// next names the register that takes the page's address).
///
/// # Safety
/// Once, before any hypercall.
unsafe fn fill_hypercall_page() {
    for base in (0x4000_0000..0x4001_0000u32).step_by(0x100) {
        let signature = __cpuid(base);
        let text = [signature.ebx, signature.ecx, signature.edx].map(u32::to_le_bytes);
        if text.as_flattened() == b"XenVMMXenVMM" {
            let register = __cpuid(base + 2).ebx;
            // SAFETY: the register that Xen names for this; the page is set aside for it.
            unsafe { cpu::write_msr(register, &raw const hypercall_page as u64) };
            return;
        }
    }
    panic!("the hypervisor is not Xen");
}

fn param(which: Param) -> u64 {
    let mut request = HvmParam {
        domid: DomId::SELF,
        pad: 0,
        index: which as u32,
        value: 0,
    };
    // SAFETY: Xen writes the value into the request.
    let result =
        unsafe { hypercall::hvm_op(HVMOP_GET_PARAM.into(), hypercall::pointer(&mut request)) };
    match result {
        Ok(_) => request.value,
        Err(error) => panic!("cannot read {which:?}: {error}"),
    }
}

fn set_param(which: Param, value: u64) -> Result<(), Errno> {
    let mut request = HvmParam {
        domid: DomId::SELF,
        pad: 0,
        index: which as u32,
        value,
    };
    // SAFETY: Xen reads the request.
    unsafe { hypercall::hvm_op(HVMOP_SET_PARAM.into(), hypercall::pointer(&mut request)) }
        .map(|_| ())
}

/// Gives Xen the state in which a vCPU starts: that of this vCPU, on another stack.
///
/// # Safety
/// The stack and what `argument` points at are that vCPU's.
pub unsafe fn initialise_vcpu(id: VcpuId, stack: u64, argument: u64) -> Result<(), Errno> {
    let (cr0, cr3, cr4): (u64, u64, u64);
    // SAFETY: reading control registers in ring 0 has no effect.
    unsafe {
        asm!("mov {0}, cr0", "mov {1}, cr3", "mov {2}, cr4",
             out(reg) cr0, out(reg) cr3, out(reg) cr4, options(nomem, nostack));
    }
    let mut context = VcpuContext {
        mode: VCPU_HVM_MODE_64B,
        registers: VcpuRegisters {
            rip: pvh_vcpu_start as *const () as u64,
            rsp: stack,
            rdi: argument,
            // The bit that is always set.
            rflags: 2,
            cr0,
            cr3,
            cr4,
            // SAFETY: the register exists.
            efer: unsafe { cpu::read_msr(MSR_EFER) },
            ..VcpuRegisters::default()
        },
        ..VcpuContext::default()
    };
    // SAFETY: Xen reads the context; the rest is the caller's promise.
    unsafe {
        hypercall::vcpu_op(
            VCPUOP_INITIALISE.into(),
            id.0.into(),
            hypercall::pointer(&mut context),
        )
    }
    .map(|_| ())
}

/// Points the calling vCPU at its state.
///
/// # Safety
/// `base` is what registering that state has returned.
pub unsafe fn set_gs_base(base: u64) {
    // SAFETY: by the contract.
    unsafe { cpu::write_msr(MSR_GS_BASE, base) }
}
