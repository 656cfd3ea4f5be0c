//! The domain's kind (PVH or PV), the page that it shares with Xen, and its shutdown.

use crate::events::Bitmaps;
use crate::{hypercall, time};
use bulkhead_xen::VcpuId;
use bulkhead_xen::abi::sched::{self, ShutdownReason};
#[cfg(feature = "recover")]
use bulkhead_xen::abi::shared_info::LEGACY_MAX_VCPUS;
use bulkhead_xen::abi::shared_info::{SharedInfo, VcpuInfo};
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
#[cfg(feature = "recover")]
use core::sync::atomic::{AtomicU8, AtomicU64};
use core::time::Duration;

/// The way in which the domain was booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestType {
    /// `type="pvh"`: hardware-virtualized, on our own page tables.
    Pvh,
    /// `type="pv"`: paravirtualized, on page tables that Xen checks.
    Pv,
}

static PVH: AtomicBool = AtomicBool::new(false);
static SHARED: AtomicPtr<SharedInfo> = AtomicPtr::new(ptr::null_mut());

/// Notes the way in which the domain was booted.
pub fn set_guest_type(guest_type: GuestType) {
    PVH.store(guest_type == GuestType::Pvh, Ordering::Relaxed);
}

/// Returns true on PVH, false on PV.
pub fn is_pvh() -> bool {
    PVH.load(Ordering::Relaxed)
}

/// Notes the address of the shared page.
pub fn set_shared(page: *mut SharedInfo) {
    SHARED.store(page, Ordering::Release);
}

/// Returns the event-channel bitmaps.
pub fn bitmaps() -> Bitmaps {
    // SAFETY: set once at boot to the shared page, which stays.
    unsafe { Bitmaps::new(SHARED.load(Ordering::Acquire)) }
}

/// Returns the time of day at system time 0.
pub fn wall_clock_at_zero() -> Duration {
    // SAFETY: set once at boot to the shared page, which stays.
    unsafe { time::wall_clock_at_zero(SHARED.load(Ordering::Acquire)) }
}

/// Returns a vCPU's part of the shared page.
pub fn vcpu_info(id: VcpuId) -> *mut VcpuInfo {
    let page = SHARED.load(Ordering::Acquire);
    // SAFETY: set once at boot to the shared page, which stays; nothing is accessed here.
    unsafe { &raw mut (*page).vcpu_info[id.0 as usize] }
}

/// Masks all event channels and clears their notifications. Does nothing before the shared page is known.
#[cfg(feature = "recover")]
pub fn forget_events() {
    if SHARED.load(Ordering::Acquire).is_null() {
        return;
    }
    bitmaps().mask_all();
    bitmaps().clear_all();
    for id in 0..LEGACY_MAX_VCPUS as u32 {
        let (_, pending, selector) = upcall_fields(VcpuId(id));
        selector.store(0, Ordering::SeqCst);
        pending.store(0, Ordering::SeqCst);
    }
}

/// Clears the notifications of a vCPU that has stopped, and unmasks its upcalls, so that the next one raises an upcall.
#[cfg(feature = "recover")]
pub fn allow_upcall(id: VcpuId) {
    let (mask, pending, selector) = upcall_fields(id);
    selector.store(0, Ordering::SeqCst);
    pending.store(0, Ordering::SeqCst);
    mask.store(0, Ordering::SeqCst);
}

/// Makes an upcall pending for a vCPU that has stopped: it takes the upcall as soon as it goes on.
#[cfg(feature = "recover")]
pub fn raise_upcall(id: VcpuId) {
    upcall_fields(id).1.store(1, Ordering::SeqCst);
}

/// Returns the fields of a vCPU's part of the shared page: its upcall mask, its pending flag, and the selector.
#[cfg(feature = "recover")]
fn upcall_fields(id: VcpuId) -> (&'static AtomicU8, &'static AtomicU8, &'static AtomicU64) {
    let info = vcpu_info(id);
    // SAFETY: set once at boot to the shared page, which stays; its fields are only accessed atomically.
    unsafe {
        (
            AtomicU8::from_ptr(&raw mut (*info).evtchn_upcall_mask),
            AtomicU8::from_ptr(&raw mut (*info).evtchn_upcall_pending),
            AtomicU64::from_ptr(&raw mut (*info).evtchn_pending_sel),
        )
    }
}

/// Ends the domain at once.
pub fn shutdown_now(reason: ShutdownReason) -> ! {
    let mut shutdown = sched::Shutdown { reason };
    loop {
        // SAFETY: `shutdown` lives across the call, which does not return.
        let _ = unsafe {
            hypercall::sched_op(sched::SHUTDOWN.into(), hypercall::pointer(&mut shutdown))
        };
    }
}
