//! What is known about the domain once it has booted, and what `main` is given.

use crate::door::Door;
use crate::events::Bitmaps;
use crate::memory::layout::{AddressSpace, Ranges};
use crate::{hypercall, vcpu};
use bulkhead_xen::abi::sched::{self, ShutdownReason};
use bulkhead_xen::abi::shared_info::{SharedInfo, VcpuInfo};
use bulkhead_xen::{Frame, Instant, PAGE_SIZE, Port, StoreRing, VcpuId};
use core::ops::Range;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use spin::Once;

/// How the domain was booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// `type="pvh"`: hardware-virtualized, on our own page tables.
    Pvh,
    /// `type="pv"`: paravirtualized, on page tables that Xen checks.
    Pv,
}

/// A module that the builder loaded with the kernel (`ramdisk=`): ordinary, writable memory.
#[derive(Debug)]
pub struct Module {
    /// Its first byte, page-aligned.
    pub start: NonNull<u8>,
    /// Its length in bytes.
    pub len: usize,
    /// Its own command line; empty if there is none (xl gives none).
    pub command_line: heapless::String<128>,
}

// SAFETY: memory that belongs to whoever holds the `Module`.
unsafe impl Send for Module {}

/// As many modules as there may be.
pub type Modules = heapless::Vec<Module, 8>;

/// What `main` is given: the domain, ready for use.
#[derive(Debug)]
pub struct Machine {
    /// The hypervisor.
    pub door: Door,
    /// How the domain was booted.
    pub way: Way,
    /// The domain's command line.
    pub command_line: &'static str,
    /// What the builder loaded beside the kernel.
    pub modules: Modules,
    /// Our end of the xenstore ring.
    pub store: StoreRing,
    /// The console's port, notified when something was typed: see [`crate::output::read`].
    pub console: Option<Port>,
    /// When the domain's first instruction ran.
    pub started: Instant,
    /// How many vCPUs the domain has (the one that runs `main` included).
    pub vcpus: u32,
}

/// What stays the same from boot to the end.
pub(crate) struct Facts {
    /// The domain's memory.
    pub ram: Ranges,
    /// The addresses above it.
    pub space: AddressSpace,
    /// PV: the list that turns page frames into machine frames.
    pub p2m: Option<P2m>,
}

/// The phys-to-machine list of a PV domain.
#[derive(Clone, Copy)]
pub(crate) struct P2m {
    list: *mut u64,
    pages: u64,
}

// SAFETY: once the domain runs, the list is only accessed atomically.
unsafe impl Send for P2m {}
// SAFETY: as above.
unsafe impl Sync for P2m {}

impl P2m {
    /// What the builder writes for a page frame without memory (`INVALID_P2M_ENTRY`).
    const INVALID: u64 = u64::MAX;

    /// # Safety
    /// `list` has `pages` entries, for as long as the domain runs.
    pub unsafe fn new(list: *mut u64, pages: u64) -> Self {
        P2m { list, pages }
    }

    /// The machine frame behind a page frame.
    pub fn machine_frame(&self, pfn: u64) -> Option<u64> {
        let mfn = self.entry(pfn)?.load(Ordering::Relaxed);
        (mfn != Self::INVALID).then_some(mfn)
    }

    /// Notes that a page frame of ours has another machine frame, or none, from now on.
    pub fn set_machine_frame(&self, pfn: u64, mfn: Option<u64>) {
        let entry = self.entry(pfn).expect("a page frame of ours");
        entry.store(mfn.unwrap_or(Self::INVALID), Ordering::Relaxed);
    }

    fn entry(&self, pfn: u64) -> Option<&AtomicU64> {
        // SAFETY: within the list, which is memory of ours for as long as the domain runs.
        (pfn < self.pages).then(|| unsafe { AtomicU64::from_ptr(self.list.add(pfn as usize)) })
    }
}

static FACTS: Once<Facts> = Once::new();
static PVH: AtomicBool = AtomicBool::new(false);
static SHARED: AtomicPtr<SharedInfo> = AtomicPtr::new(ptr::null_mut());

unsafe extern "C" {
    static __image_start: u8;
    static __text_end: u8;
    static boot_stack_guard: u8;
}

pub(crate) fn set_way(way: Way) {
    PVH.store(way == Way::Pvh, Ordering::Relaxed);
}

pub(crate) fn set_facts(facts: Facts) {
    FACTS.call_once(|| facts);
}

pub(crate) fn set_shared(page: *mut SharedInfo) {
    SHARED.store(page, Ordering::Release);
}

pub(crate) fn is_pvh() -> bool {
    PVH.load(Ordering::Relaxed)
}

pub(crate) fn facts() -> &'static Facts {
    FACTS.get().expect("memory is not set up yet")
}

/// The event-channel bitmaps.
pub(crate) fn bitmaps() -> Bitmaps {
    // SAFETY: set once at boot to the shared page, which stays.
    unsafe { Bitmaps::new(SHARED.load(Ordering::Acquire)) }
}

/// A vCPU's part of the shared page.
pub(crate) fn vcpu_info(id: VcpuId) -> *mut VcpuInfo {
    let page = SHARED.load(Ordering::Acquire);
    // SAFETY: set once at boot to the shared page, which stays; nothing is accessed here.
    unsafe { &raw mut (*page).vcpu_info[id.0 as usize] }
}

/// True if `len` bytes from `address` are memory that can be read.
pub(crate) fn is_memory(address: u64, len: u64) -> bool {
    let page = PAGE_SIZE as u64;
    let Some(end) = address.checked_add(len) else {
        return false;
    };
    // Before the memory map is known, the first stack is all there is.
    let stack = stack_guard().end;
    if address >= stack && end <= stack + crate::boot::entry::STACK_BYTES as u64 {
        return true;
    }
    let is_guard = |guard: Range<u64>| address < guard.end && end > guard.start;
    FACTS.get().is_some_and(|facts| {
        address >= page
            && !vcpu::all().any(|vcpu| is_guard(vcpu.guard()))
            && facts
                .ram
                .iter()
                .any(|range| address >= range.start * page && end <= range.end * page)
    })
}

/// True if `address` is in our code.
pub(crate) fn is_code(address: u64) -> bool {
    (&raw const __image_start as u64..&raw const __text_end as u64).contains(&address)
}

/// The page below the first vCPU's stack.
pub(crate) fn stack_guard() -> Range<u64> {
    let guard = &raw const boot_stack_guard as u64;
    guard..guard + PAGE_SIZE as u64
}

/// The frame behind a page of the domain's memory.
pub(crate) fn frame_of(page: *const u8) -> Option<Frame> {
    let facts = facts();
    let pfn = page as u64 / PAGE_SIZE as u64;
    if !facts.ram.iter().any(|range| range.contains(&pfn)) {
        return None;
    }
    match &facts.p2m {
        None => Some(Frame(pfn)),
        Some(p2m) => p2m.machine_frame(pfn).map(Frame),
    }
}

/// Ends the domain at once.
pub(crate) fn shutdown_now(reason: ShutdownReason) -> ! {
    let mut shutdown = sched::Shutdown { reason };
    loop {
        // SAFETY: `shutdown` lives across the call, which does not return.
        let _ = unsafe {
            hypercall::sched_op(sched::SHUTDOWN.into(), hypercall::pointer(&mut shutdown))
        };
    }
}
