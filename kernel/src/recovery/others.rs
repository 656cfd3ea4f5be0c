//! The vCPUs beside the one that reports a crash: stopped before anything is given back, and brought to where the next
//! boot starts them.
//!
//! On PVH they need no place: once they have halted (`cpu::halting`), an INIT from the local APIC resets them
//! (`copying`), and Xen initialises them once more. On PV, Xen initialises a vCPU only once, and one that was stopped
//! goes on where it was: see `parking`.

use super::parking::{self, ParkingSlot};
use crate::cpu::{halting, pvh as cpu};
use crate::vcpu::{self, Vcpu};
use crate::{domain, logger, reporter};
use crate::{event_channels, hypercall};
use bulkhead_xen::abi::event_channel;
use bulkhead_xen::abi::hvm::{VCPU_HVM_MODE_32B, VcpuContext32};
use bulkhead_xen::abi::sched::{
    RUNSTATE_RUNNABLE, RunstateInfo, VCPUOP_DOWN, VCPUOP_GET_RUNSTATE_INFO, VCPUOP_INITIALISE,
    VCPUOP_SEND_NMI, VCPUOP_UP,
};
use bulkhead_xen::{Errno, Instant, VcpuId};
use core::arch::asm;
use core::arch::x86_64::__cpuid;
use core::convert::Infallible;
use core::sync::atomic::Ordering;
use core::time::Duration;

/// The longest time that all others may take to stop, and once more to be parked.
const LIMIT: Duration = Duration::from_millis(500);

/// The longest time that all others may take to halt. Each needs a processor for that, which may take long on a busy
/// host, and is not safe to reset before.
const HALT_LIMIT: Duration = Duration::from_secs(2);

/// Returns whether a domain with other vCPUs can restart. On PVH, these are reset through the x2APIC, whose registers
/// need no page tables; Xen offers it unless the domain's configuration takes it away.
pub fn can_restart() -> bool {
    // Intel SDM volume 2, CPUID leaf 1.
    !domain::is_pvh() || __cpuid(1).ecx & 1 << 21 != 0
}

/// Returns the other vCPUs that were started.
fn others() -> impl Iterator<Item = &'static Vcpu> {
    let own = vcpu::current().id();
    vcpu::all().filter(move |vcpu| vcpu.id() != own)
}

/// Returns whether there are others that were started.
pub fn exist() -> bool {
    others().next().is_some()
}

/// Lets the others go on where they were stopped.
pub fn go_on() {
    reporter::cancel();
    for vcpu in others() {
        // Xen refuses only one that it has never started.
        let _ = operation(VCPUOP_UP, vcpu.id());
    }
}

/// Waits until the others, which were told to stop, run no more, not even within Xen. One that is changing mappings
/// finishes that first, so that each mapping is noted.
pub fn stop() -> Result<(), &'static str> {
    if !exist() {
        // Perhaps before there is a clock.
        return Ok(());
    }
    let until = vcpu::now() + LIMIT;
    for vcpu in others() {
        loop {
            operation(VCPUOP_DOWN, vcpu.id()).map_err(|_| "Xen does not stop another vCPU")?;
            wait(until, || !runs(vcpu.id())).ok_or("another vCPU does not stop")?;
            if !vcpu.changes_mappings.load(Ordering::Acquire) {
                break;
            }
            operation(VCPUOP_UP, vcpu.id()).map_err(|_| "Xen does not let another vCPU go on")?;
            let done = || !vcpu.changes_mappings.load(Ordering::Acquire);
            wait(until, done).ok_or("another vCPU does not come out of a hypercall")?;
        }
    }
    Ok(())
}

/// Brings the others to where they wait for the next boot: on PV, once they have stopped, while their ports are open.
pub fn park() -> Result<(), &'static str> {
    // Those that this boot has not started yet wait where the boot before has left them.
    let others = || others().filter(|vcpu| !parking::waits_in_stage(vcpu.id()));
    if others().next().is_none() {
        return Ok(());
    }
    let bitmaps = domain::bitmaps();
    bitmaps.mask_all();
    bitmaps.clear_all();
    let own = vcpu::current().id();
    others().for_each(|vcpu| domain::allow_upcall(vcpu.id()));
    parking::open();
    // A vCPU that is blocked in Xen wakes only by a notification.
    for status in event_channels::all() {
        if status.status == event_channel::STATUS_IPI && status.vcpu != own {
            let mut request = event_channel::OnPort { port: status.port };
            let _ = event_channels::operation(event_channel::UNMASK, &mut request);
            let _ = event_channels::notify(status.port);
        }
    }
    let until = vcpu::now() + LIMIT;
    for vcpu in others() {
        domain::raise_upcall(vcpu.id());
        // Xen refuses one that it has never started.
        if operation(VCPUOP_UP, vcpu.id()).is_ok() {
            wait(until, || parking::place(vcpu.id()).has()).ok_or("another vCPU does not park")?;
        }
    }
    parking::close();
    Ok(())
}

/// Has the others, which are parked, wait in a stage.
///
/// # Safety
/// The stage has the code and the places for that, and the code can be executed.
pub(super) unsafe fn wait_in(stage: u64) -> Result<(), &'static str> {
    let code = stage + parking::CODE_IN_STAGE as u64;
    let places = stage + parking::PLACES_IN_STAGE as u64;
    for id in others().map(Vcpu::id) {
        let place = parking::place(id);
        if place.has() {
            let moved = start_from(place, id, code, places, id.0.into());
            moved.map_err(|_| "another vCPU does not go to the stage")?;
            let until = vcpu::now() + LIMIT;
            wait(until, || parking::place_in(stage, id).has())
                .ok_or("another vCPU does not wait in the stage")?;
        }
    }
    Ok(())
}

/// Resets all other vCPUs, which have stopped, once they have [halted](halting), so that Xen has nothing to deliver to them.
/// Those that do not halt in time are reset as they are.
///
/// # Safety
/// As for [`reset_other_vcpus`](cpu::reset_other_vcpus); page tables are not damaged.
pub unsafe fn reset() {
    halting::begin();
    let is_told = |vcpu: &Vcpu| {
        // One that has not come to its tables yet takes no interrupt either.
        vcpu.has_tables.load(Ordering::Acquire)
            // In this order it comes before any instruction.
            && operation(VCPUOP_SEND_NMI, vcpu.id()).is_ok()
            && operation(VCPUOP_UP, vcpu.id()).is_ok()
    };
    let told = others().filter(|vcpu| is_told(vcpu)).count();
    let stopped = || others().all(|vcpu| !runs(vcpu.id()));
    let until = vcpu::now() + HALT_LIMIT;
    if wait(until, || halting::halted() >= told && stopped()).is_none() {
        logger::emergency(format_args!("another vCPU does not take an NMI\n"));
        for vcpu in others() {
            let _ = operation(VCPUOP_DOWN, vcpu.id());
        }
        let _ = wait(vcpu::now() + LIMIT, stopped);
    }
    halting::end();
    // SAFETY: by the contract.
    unsafe { cpu::reset_other_vcpus() }
}

/// Resets all other vCPUs, starts the first one at `entry` with these values in its registers, and sleeps until that one
/// resets the calling one. Returns if Xen does not start it.
///
/// # Safety
/// On another vCPU than the first; whatever the first does next, nothing else goes on.
pub unsafe fn start_first(entry: u32, ebx: u32, esi: u32, edi: u32) -> Result<Infallible, Errno> {
    /// Descriptors' attributes: 32-bit code, data, a busy task state.
    const CODE: u16 = 0xc9b;
    const DATA: u16 = 0xc93;
    const TASK: u16 = 0x8b;
    // Protected mode, without paging, as `docs/misc/pvh.pandoc` of Xen has it.
    let mut context = VcpuContext32 {
        mode: VCPU_HVM_MODE_32B,
        eip: entry,
        ebx,
        esi,
        edi,
        eflags: 2,
        cr0: 1,
        limits: [u32::MAX, u32::MAX, u32::MAX, u32::MAX, 0x67],
        attributes: [CODE, DATA, DATA, DATA, TASK],
        ..VcpuContext32::default()
    };
    let first = u64::from(VcpuId(0).0);
    // SAFETY: by the contract. Xen reads the context; that vCPU begins with nothing but the image.
    unsafe {
        reset();
        let context = hypercall::pointer(&mut context);
        hypercall::vcpu_op(VCPUOP_INITIALISE.into(), first, context)?;
        hypercall::vcpu_op(VCPUOP_UP.into(), first, 0)?;
        loop {
            asm!("cli", "hlt", options(nomem, nostack));
        }
    }
}

/// Starts a vCPU that the boot before has left parked.
pub fn start_parked(id: VcpuId, entry: u64, stack: u64, argument: u64) -> Result<(), Errno> {
    start_from(parking::place_before(id), id, entry, stack, argument)
}

/// Starts a vCPU that is parked in that place, or is just about to be.
fn start_from(
    place: &ParkingSlot,
    id: VcpuId,
    entry: u64,
    stack: u64,
    argument: u64,
) -> Result<(), Errno> {
    place.leave(entry, stack, argument);
    let until = vcpu::now() + LIMIT;
    // It may be just about to stop.
    let taken = || {
        let up = operation(VCPUOP_UP, id);
        up.is_err() || place.is_taken()
    };
    wait(until, taken)
        .filter(|()| place.is_taken())
        .ok_or(Errno::BUSY)
}

/// Waits until `done`; returns `None` if that takes too long.
fn wait(until: Instant, done: impl Fn() -> bool) -> Option<()> {
    loop {
        if done() {
            return Some(());
        }
        if vcpu::now() >= until {
            return None;
        }
        // It may need this processor.
        reporter::pause();
    }
}

fn operation(operation: u32, vcpu: VcpuId) -> Result<(), Errno> {
    // SAFETY: takes no argument. Those that go on find everything as it was: nothing was given back yet.
    unsafe { hypercall::vcpu_op(operation.into(), vcpu.0.into(), 0) }.map(|_| ())
}

/// Returns whether a vCPU runs, or is ready to run.
fn runs(vcpu: VcpuId) -> bool {
    let mut info = RunstateInfo::default();
    // SAFETY: Xen writes what it knows into `info`.
    let result = unsafe {
        hypercall::vcpu_op(
            VCPUOP_GET_RUNSTATE_INFO.into(),
            vcpu.0.into(),
            hypercall::pointer(&mut info),
        )
    };
    result.is_err() || info.state <= RUNSTATE_RUNNABLE
}
