//! The other vCPUs: their stacks and tables, and their start.
//!
//! A vCPU's stack has a page below it where nothing is mapped, and its tables are read-only, as the
//! first one's are. All of them are made before any of the vCPUs runs, so that no processor has an old translation of
//! those pages in its TLB.

use super::{pv, pvh, set_up_events, share};
use crate::cpu::pvh::CpuTables;
use crate::domain;
use crate::memory::{self, pages};
#[cfg(feature = "recover")]
use crate::recovery::{
    obstacles::{self, Obstacle},
    others,
};
use crate::vcpu::Vcpu;
use crate::{hypercall, reporter};
use alloc::boxed::Box;
use alloc::vec::Vec;
#[cfg(feature = "recover")]
use bulkhead_xen::abi::pv::SEGBASE_GS_KERNEL;
use bulkhead_xen::abi::sched::VCPUOP_UP;
use bulkhead_xen::{Errno, PAGE_SIZE, VcpuId};
use core::fmt;
use core::ptr::NonNull;
#[cfg(feature = "recover")]
use core::sync::atomic::Ordering;

/// The number of pages of a vCPU's stack. It is smaller than the first vCPU's, which also runs the control plane.
const STACK_PAGES: usize = 16;

/// The function that a vCPU runs from its start on.
pub type Work = Box<dyn FnOnce() + Send>;

/// The reason why a vCPU does not run.
#[derive(Debug)]
enum NotStarted {
    NoMemory,
    Ports(Errno),
    Refused(Errno),
}

impl fmt::Display for NotStarted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotStarted::NoMemory => f.write_str("no memory for its stack and tables"),
            NotStarted::Ports(error) => write!(f, "cannot set up its own ports: {error}"),
            NotStarted::Refused(error) => write!(f, "Xen refuses to start it: {error}"),
        }
    }
}

/// The data that a vCPU finds when it starts.
pub struct Start {
    vcpu: &'static Vcpu,
    base: u64,
    /// PVH: the processor's tables.
    tables: Option<&'static CpuTables>,
    work: Work,
}

/// A vCPU's own memory.
struct Memory {
    /// The page below its stack.
    guard: u64,
    /// The end of its stack.
    top: u64,
    /// PVH: the processor's tables.
    tables: Option<&'static CpuTables>,
}

impl Memory {
    fn new() -> Option<Memory> {
        let guard = pages::allocate_pages(1 + STACK_PAGES)?.as_ptr() as u64;
        let page = PAGE_SIZE as u64;
        // SAFETY: the pages are ours since a moment ago, and never given back. The tables are stacks
        // and numbers, for all of which zero is a value; they are filled this once.
        let tables = unsafe {
            if domain::is_pvh() {
                memory::pvh::unmap(guard)?;
                let tables = Box::<CpuTables>::new_zeroed().assume_init();
                let tables: &CpuTables = Box::leak(tables);
                tables.fill();
                memory::pvh::protect(tables.constant_page())?;
                Some(tables)
            } else {
                memory::pv::unmap(guard / page..guard / page + 1);
                None
            }
        };
        Some(Memory {
            guard,
            top: guard + (1 + STACK_PAGES) as u64 * page,
            tables,
        })
    }
}

/// Starts vCPUs, each with the function that `work` makes for it; a vCPU whose function ends sleeps for ever.
/// Returns the number of vCPUs that run: if one cannot be started, neither are those after it, and the log
/// says why.
///
/// To be called once, with some of the [`other_vcpus`](crate::Machine::other_vcpus).
pub fn start_vcpus(
    vcpus: impl IntoIterator<Item = VcpuId>,
    mut work: impl FnMut(VcpuId) -> Work,
) -> u32 {
    let vcpus = vcpus.into_iter();
    let all: Vec<(VcpuId, Option<Memory>)> = vcpus.map(|id| (id, Memory::new())).collect();
    let mut running = 0;
    #[cfg(feature = "recover")]
    if !all.is_empty() && !others::can_restart() {
        obstacles::add(Obstacle::Vcpus);
    }
    for (id, memory) in all {
        let started = memory
            .ok_or(NotStarted::NoMemory)
            .and_then(|memory| start(id, &memory, work(id)));
        if let Err(error) = started {
            log::error!("vCPU {id} is not used: {error}");
            break;
        }
        running += 1;
    }
    running
}

fn start(id: VcpuId, memory: &Memory, work: Work) -> Result<(), NotStarted> {
    let vcpu: &'static Vcpu = Box::leak(Box::new(Vcpu::new()));
    let base = vcpu.register(id, memory.guard);
    share(vcpu);
    set_up_events(vcpu).map_err(NotStarted::Ports)?;
    let start = Box::into_raw(Box::new(Start {
        vcpu,
        base,
        tables: memory.tables,
        work,
    }));
    // SAFETY: what is named here is the new vCPU's alone from now on: its stack, its state, and
    // what it starts with.
    unsafe {
        if domain::is_pvh() {
            pvh::initialise_vcpu(id, memory.top, start as u64)
        } else {
            pv::initialise_vcpu(id, memory.top, start as u64, base)
        }
        .and_then(|()| hypercall::vcpu_op(VCPUOP_UP.into(), id.0.into(), 0))
    }
    .map(|_| ())
    .map_err(NotStarted::Refused)
}

/// Called by the entry code, on the vCPU's own stack.
pub extern "C" fn vcpu_main(start: NonNull<Start>) -> ! {
    // SAFETY: `start` has made it for this vCPU, which starts once.
    let start = unsafe { Box::from_raw(start.as_ptr()) };
    if let Some(tables) = start.tables {
        // SAFETY: the first thing on this vCPU, in ring 0, with tables of its own; the IDT was
        // filled at boot.
        unsafe {
            pvh::set_gs_base(start.base);
            tables.load();
        }
        #[cfg(feature = "recover")]
        start.vcpu.has_tables.store(true, Ordering::Release);
    }
    #[cfg(feature = "recover")]
    if !domain::is_pvh() {
        // A vCPU that was parked has the handlers of the boot before, which may have been another version.
        // SAFETY: the vCPU's own state and handlers. Xen refuses only what is no address.
        unsafe {
            let _ = hypercall::set_segment_base(SEGBASE_GS_KERNEL.into(), start.base);
            let _ = pv::set_handlers(start.vcpu.id());
        }
    }
    log::debug!("vCPU {} runs", start.vcpu.id());
    (start.work)();
    reporter::stop_this_vcpu()
}
