//! Per-vCPU state, found through the GS segment.

use crate::events::PortSet;
use crate::liveness::Liveness;
use crate::time;
use bulkhead_xen::abi::shared_info::{LEGACY_MAX_VCPUS, VcpuInfo};
use bulkhead_xen::{Instant, PAGE_SIZE, Port, VcpuId};
use core::arch::asm;
use core::mem::offset_of;
use core::ops::Range;
use core::ptr;
#[cfg(feature = "recover")]
use core::sync::atomic::AtomicBool;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

/// One vCPU's state. Its own vCPU reads it on every event. Others read its `ipi` port to wake it, its signs of life and
/// its guard page, and remove ports that they close.
#[repr(C)]
pub struct Vcpu {
    /// The address of this structure, which is read at GS:0; so it is the first field.
    this: AtomicPtr<Vcpu>,
    id: AtomicU32,
    info: AtomicPtr<VcpuInfo>,
    /// The page below its stack, where nothing is mapped.
    guard: AtomicU64,
    /// The ports that are delivered to it.
    pub ports: PortSet,
    timer: AtomicU32,
    ipi: AtomicU32,
    /// The time at which its timer fires, in nanoseconds of system time; 0 if it is not set.
    pub armed: AtomicU64,
    /// The latest time that its clock has returned.
    latest: AtomicU64,
    /// Signs of life of this vCPU, and those seen of its neighbour.
    pub watchdog: Liveness,
    /// True while it has Xen map or unmap pages and notes the outcome.
    #[cfg(feature = "recover")]
    pub changes_mappings: AtomicBool,
    /// True once it has loaded its tables, so that it handles NMIs (PVH).
    #[cfg(feature = "recover")]
    pub has_tables: AtomicBool,
}

/// The place of the address of a vCPU's part of the shared page in its [`Vcpu`].
pub const INFO: usize = offset_of!(Vcpu, info);

/// The first vCPU's state.
pub static BOOT_VCPU: Vcpu = Vcpu::new();

static ALL: [AtomicPtr<Vcpu>; LEGACY_MAX_VCPUS] =
    [const { AtomicPtr::new(ptr::null_mut()) }; LEGACY_MAX_VCPUS];

impl Vcpu {
    /// Returns the state of a vCPU that does not run yet.
    pub const fn new() -> Self {
        Vcpu {
            this: AtomicPtr::new(ptr::null_mut()),
            id: AtomicU32::new(0),
            info: AtomicPtr::new(ptr::null_mut()),
            guard: AtomicU64::new(0),
            ports: PortSet::new(),
            timer: AtomicU32::new(0),
            ipi: AtomicU32::new(0),
            armed: AtomicU64::new(0),
            latest: AtomicU64::new(0),
            watchdog: Liveness::new(),
            #[cfg(feature = "recover")]
            changes_mappings: AtomicBool::new(false),
            #[cfg(feature = "recover")]
            has_tables: AtomicBool::new(false),
        }
    }

    /// Makes it the state of vCPU `id`, whose stack lies above the page at `guard`, and returns
    /// the value of that vCPU's GS base.
    pub fn register(&'static self, id: VcpuId, guard: u64) -> u64 {
        let this = ptr::from_ref(self).cast_mut();
        self.this.store(this, Ordering::Relaxed);
        self.id.store(id.0, Ordering::Relaxed);
        self.guard.store(guard, Ordering::Relaxed);
        ALL[id.0 as usize].store(this, Ordering::Release);
        this as u64
    }

    /// Returns the vCPU's number.
    pub fn id(&self) -> VcpuId {
        VcpuId(self.id.load(Ordering::Relaxed))
    }

    /// Returns the addresses of the page below its stack.
    pub fn guard(&self) -> Range<u64> {
        let start = self.guard.load(Ordering::Relaxed);
        start..start + PAGE_SIZE as u64
    }

    /// Returns its part of the shared page; null before that is mapped.
    pub fn info(&self) -> *mut VcpuInfo {
        self.info.load(Ordering::Relaxed)
    }

    /// Sets the address of this vCPU's part of the shared page.
    pub fn set_info(&self, info: *mut VcpuInfo) {
        self.info.store(info, Ordering::Relaxed);
    }

    /// Sets its timer's port, and the one by which other vCPUs wake it.
    pub fn set_ports(&self, timer: Port, ipi: Port) {
        self.timer.store(timer.0, Ordering::Relaxed);
        self.ipi.store(ipi.0, Ordering::Release);
    }

    /// Returns `time`, or the latest time that this has returned if that is later, so that the vCPU's clock never goes
    /// back: Xen's system time differs a little between processors, and the vCPU may have been moved to one that is
    /// behind.
    pub fn not_before(&self, time: Instant) -> Instant {
        // Only this vCPU writes it.
        let latest = time.max(Instant(self.latest.load(Ordering::Relaxed)));
        self.latest.store(latest.0, Ordering::Relaxed);
        latest
    }

    /// Returns the port of its timer.
    pub fn timer(&self) -> Port {
        Port(self.timer.load(Ordering::Relaxed))
    }

    /// Returns the port by which other vCPUs wake it.
    pub fn ipi(&self) -> Port {
        Port(self.ipi.load(Ordering::Acquire))
    }
}

/// Returns the calling vCPU's state.
pub fn current() -> &'static Vcpu {
    let this: *const Vcpu;
    // SAFETY: boot pointed GS at a registered `Vcpu` before anything else ran on this vCPU; its
    // first field is its own address, and it lives for ever.
    unsafe {
        asm!("mov {}, gs:[0]", out(reg) this, options(nostack, readonly, preserves_flags, pure));
        &*this
    }
}

/// Returns the time, by the calling vCPU's clock.
pub fn now() -> Instant {
    let here = current();
    // SAFETY: this vCPU's own part of the shared page.
    let (page, tsc) = unsafe { time::sample(&raw const (*here.info()).time, time::counter) };
    here.not_before(time::instant_at(&page, tsc))
}

/// Returns the state of vCPU `id`, if it was registered.
pub fn of(id: VcpuId) -> Option<&'static Vcpu> {
    let this = ALL.get(id.0 as usize)?.load(Ordering::Acquire);
    // SAFETY: `register` put a static reference there.
    unsafe { this.as_ref() }
}

/// Returns the states of all vCPUs that were registered.
pub fn all() -> impl Iterator<Item = &'static Vcpu> {
    (0..LEGACY_MAX_VCPUS as u32).filter_map(|id| of(VcpuId(id)))
}
