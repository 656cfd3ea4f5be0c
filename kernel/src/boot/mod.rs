//! From the first instruction to `main`: first the parts that differ between PVH and PV, then what both do.

pub mod entry;
pub mod pv;
pub mod pvh;
pub mod smp;

use crate::domain::{self, GuestType};
#[cfg(feature = "recover")]
use crate::grants;
use crate::hypervisor::Hypercalls;
#[cfg(feature = "recover")]
use crate::machine::Restarted;
use crate::machine::{Machine, Module};
use crate::memory::image::image;
use crate::memory::layout::{AddressSpace, Ranges, frames_of, subtract};
use crate::memory::map::{self, MemoryMap};
use crate::memory::p2m::P2m;
use crate::memory::pages;
#[cfg(feature = "recover")]
use crate::recovery::{leaving, region};
use crate::start_info::{COMMAND_LINE_BYTES, LoadedModule};
use crate::{command_line, devices, event_channels, hypercall, logger, panic, time, vcpu};
use bulkhead_xen::abi::event_channel;
use bulkhead_xen::abi::sched::{self, ShutdownReason};
use bulkhead_xen::abi::shared_info::{LEGACY_MAX_VCPUS, SharedInfo};
use bulkhead_xen::{Errno, Port, StoreRing};
use core::ptr::NonNull;
use spin::Once;

unsafe extern "C" {
    /// The time stamp counter at the first instruction.
    static boot_tsc: u64;
}

unsafe extern "Rust" {
    /// Defined by [`entry!`](crate::entry).
    fn bulkhead_main(machine: Machine) -> ShutdownReason;
}

/// The version, which is the first line of the log. `entry` puts the same text into a note of the ELF.
const VERSION: &str = concat!(
    "Bulkhead ",
    env!("CARGO_PKG_VERSION"),
    " (",
    env!("BULKHEAD_COMMIT"),
    ")"
);

static COMMAND_LINE: Once<heapless::String<COMMAND_LINE_BYTES>> = Once::new();

/// The state that both ways of booting have found and set up before they continue in the same way.
struct Booted {
    guest_type: GuestType,
    command_line: heapless::String<COMMAND_LINE_BYTES>,
    modules: heapless::Vec<LoadedModule, 8>,
    shared: *mut SharedInfo,
    store_page: u64,
    store_port: Port,
}

/// Takes the frames in use out of the memory that was found; frame 0 stays unused, so that no valid pointer
/// is null.
fn free_memory(ram: &Ranges, modules: &[LoadedModule], image: core::ops::Range<u64>) -> Ranges {
    let mut free = ram.clone();
    let taken = modules
        .iter()
        .map(|module| frames_of(module.address, module.bytes));
    for range in taken.chain([0..1, frames_of(image.start, image.end - image.start)]) {
        subtract(&mut free, range).expect("too many pieces of memory");
    }
    free
}

/// Sets up the memory map and the frame allocator.
///
/// # Safety
/// Called once, with the vCPU registered. `ram`, `space` and `p2m` describe the domain's memory; nothing uses the
/// frames in `free`, `later` and `missing`. Those in `free` are mapped, those in `later` can be mapped by
/// `memory::pv::populate`, and those in `missing` have no memory behind them.
unsafe fn set_up_memory(
    ram: Ranges,
    free: &Ranges,
    later: Ranges,
    missing: &Ranges,
    space: AddressSpace,
    p2m: Option<P2m>,
) {
    #[cfg(feature = "recover")]
    let granted = grants::granted_before(space.special);
    #[cfg(not(feature = "recover"))]
    let granted = core::iter::empty();
    let total: u64 = ram.iter().map(|range| range.end - range.start).sum();
    map::set(MemoryMap { ram, space, p2m });
    // SAFETY: by the contract.
    unsafe { pages::init(free, later, missing, total as usize, granted) };
}

/// Everything that is the same on PVH and PV, and `main`.
///
/// # Safety
/// Called once, at the end of either way of booting.
unsafe fn run(booted: Booted) -> ! {
    domain::set_shared(booted.shared);
    domain::bitmaps().mask_all();
    let here = vcpu::current();
    share(here);
    // SAFETY: this vCPU's time page; the counter's value was stored by the entry code.
    let started = unsafe {
        let (page, _) = time::sample(&raw const (*here.info()).time, time::counter);
        time::instant_at(&page, (&raw const boot_tsc).read())
    };
    logger::use_clock(started);
    let line: &'static str = COMMAND_LINE.call_once(|| booted.command_line);
    let level = command_line::log_level(line);
    logger::start_logging(level.unwrap_or(log::LevelFilter::Info));
    log::info!("{VERSION}");
    if let Err(wrong) = level {
        log::warn!("log={wrong}: expected off, error, warn, info, debug or trace; info is used");
    }
    set_up_events(here).expect("cannot set up this vCPU's own ports");
    event_channels::deliver_here(booted.store_port).expect("cannot unmask the xenstore port");
    #[cfg(feature = "recover")]
    leaving::keep_store_port(booted.store_port);
    let console = logger::port().filter(|&port| event_channels::deliver_here(port).is_ok());
    let memory = pages::statistics();
    log::debug!(
        "{:?}, {} KiB of memory, {} KiB free, image {} KiB",
        booted.guest_type,
        memory.total / 1024,
        memory.free / 1024,
        (image().end - image().start) / 1024
    );
    if memory.ballooned > 0 {
        log::info!(
            "{} KiB of memory, and room for {} more (xl mem-set)",
            memory.total / 1024,
            memory.ballooned / 1024
        );
    }
    #[cfg(feature = "recover")]
    if let granted @ 1.. = pages::still_granted() {
        log::info!(
            "{granted} pages were granted before the restart: they are not used until the grants have ended"
        );
    }
    let machine = Machine {
        hypervisor: Hypercalls,
        guest_type: booted.guest_type,
        command_line: line,
        modules: booted.modules.into_iter().filter_map(into_module).collect(),
        store: StoreRing {
            page: NonNull::new(booted.store_page as *mut u8).expect("no xenstore ring"),
            port: booted.store_port,
        },
        console,
        devices: &devices::DEVICES,
        started,
        vcpus: count_vcpus(),
        #[cfg(feature = "recover")]
        restarted: region::record().map(Restarted::from),
    };
    // SAFETY: `entry!` defines it with this signature; it is called this once.
    let reason = unsafe { bulkhead_main(machine) };
    panic::shutdown(reason)
}

fn into_module(module: LoadedModule) -> Option<Module> {
    Some(Module {
        start: NonNull::new(module.address as *mut u8)?,
        len: module.bytes as usize,
        command_line: module.command_line,
    })
}

/// Gives a vCPU its part of the shared page, and masks its upcalls: they stay masked outside of `block`.
fn share(vcpu: &vcpu::Vcpu) {
    let info = domain::vcpu_info(vcpu.id());
    // SAFETY: the vCPU's part of the page; it takes no upcalls yet.
    unsafe { (&raw mut (*info).evtchn_upcall_mask).write_volatile(1) };
    vcpu.set_info(info);
}

/// Binds a vCPU's own ports: its timer's, and the one by which other vCPUs wake it.
fn set_up_events(this: &vcpu::Vcpu) -> Result<(), Errno> {
    let vcpu = this.id();
    // SAFETY: takes no argument. A domain's vCPUs may start with a periodic timer.
    unsafe { hypercall::vcpu_op(sched::VCPUOP_STOP_PERIODIC_TIMER.into(), vcpu.0.into(), 0)? };
    let mut timer = event_channel::BindVirq {
        virq: event_channel::VIRQ_TIMER,
        vcpu,
        port: Port(0),
    };
    event_channels::operation(event_channel::BIND_VIRQ, &mut timer)?;
    let mut ipi = event_channel::BindIpi {
        vcpu,
        port: Port(0),
    };
    event_channels::operation(event_channel::BIND_IPI, &mut ipi)?;
    this.set_ports(timer.port, ipi.port);
    for port in [timer.port, ipi.port] {
        this.ports.insert(port);
        event_channels::operation(event_channel::UNMASK, &mut event_channel::OnPort { port })?;
    }
    Ok(())
}

/// Returns the number of the domain's vCPUs, at most 32. Xen is asked for one after the other until it knows none of
/// that number.
fn count_vcpus() -> u32 {
    const MOST: u32 = LEGACY_MAX_VCPUS as u32;
    let exists = |id: &u32| {
        // SAFETY: takes no argument and changes nothing.
        unsafe { hypercall::vcpu_op(sched::VCPUOP_IS_UP.into(), (*id).into(), 0) }.is_ok()
    };
    if exists(&MOST) {
        // The shared page has no room for the state of more (`XEN_LEGACY_MAX_VCPUS`, xen.h).
        log::warn!("only the first {MOST} vCPUs are used");
    }
    (0..MOST).take_while(exists).count() as u32
}
