//! The implementation of [`Hypervisor`] by hypercalls.

#[cfg(feature = "recover")]
use crate::cpu::tick;
use crate::cpu::{nmi, upcall};
use crate::memory::map;
#[cfg(feature = "recover")]
use crate::recovery::mappings;
use crate::{domain, event_channels, grants, hypercall, vcpu, watchdog};
use bulkhead_xen::abi::grant_table::{EntryV1, GrantCopy, MapGrantRef, UnmapGrantRef};
use bulkhead_xen::abi::{event_channel, memory, sched};
use bulkhead_xen::{
    DmaAddr, DmaMemory, DomId, Errno, ForeignRegion, Gfn, Hypervisor, Instant, Port, VcpuId,
};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use core::time::Duration;

/// The real hypervisor. The type has no state: every copy is the same.
#[derive(Clone, Copy, Debug)]
pub struct Hypercalls;

static FOREIGN_TAKEN: AtomicBool = AtomicBool::new(false);

/// ETIME (xen/errno.h): the deadline has passed already.
const ETIME: Errno = Errno(62);

fn grant_operation<T>(command: u32, batch: &mut [T]) -> Result<(), Errno> {
    if batch.is_empty() {
        return Ok(());
    }
    // SAFETY: Xen reads and writes the batch, which is borrowed for the call; that what the
    // entries ask for is sound is the contract of the caller's own unsafe methods.
    unsafe {
        hypercall::grant_table_op(
            command.into(),
            batch.as_mut_ptr() as u64,
            batch.len() as u64,
        )
    }
    .map(|_| ())
}

/// Delivers a new port to the calling vCPU; closes it if that fails.
pub(crate) fn deliver_or_close(port: Port) -> Result<Port, Errno> {
    event_channels::deliver_here(port)
        .map(|()| port)
        .inspect_err(|_| {
            // The first error is returned; that the port cannot be closed either would add nothing.
            let _ = Hypercalls.close_port(port);
        })
}

impl Hypercalls {
    /// Returns the time of day, UTC, as the time since the beginning of 1970. Xen has it from dom0.
    pub fn wall_clock(self) -> Duration {
        let zero = domain::wall_clock_at_zero();
        zero.saturating_add(Duration::from_nanos(vcpu::now().0))
    }

    /// Blocks the vCPU as [`block`](Hypervisor::block) does, while the watchdog's timer interrupts it and upcalls are
    /// held.
    #[cfg(feature = "recover")]
    fn block_and_tick(self, here: &vcpu::Vcpu) -> bool {
        let (bitmaps, info) = (domain::bitmaps(), here.info());
        tick::disable_interrupts();
        // SAFETY: this vCPU's own part of the shared page. PVH, the upcall is installed, and interrupts are off until
        // upcalls are held again.
        let slept = unsafe {
            bitmaps.let_upcalls(info);
            let slept = bitmaps.next_held(0, &here.ports).is_none();
            if slept {
                upcall::pvh_block();
                // Only the timer has woken it, and is not set again while the vCPU sleeps.
                if tick::is_off() && !bitmaps.is_upcall_pending(info) {
                    upcall::pvh_block();
                }
                tick::woke();
            }
            bitmaps.hold_upcalls(info);
            tick::enable_interrupts();
            slept
        };
        if !slept {
            return false;
        }
        nmi::log_received();
        watchdog::woken();
        true
    }

    /// Sets this vCPU's timer; returns false if `deadline` has passed already. A timer that is set for an earlier time
    /// is set anew. That costs a hypercall, but a needless wake-up costs more, and queues whose requests arrive before
    /// their deadline leave an early timer behind each time.
    fn arm(self, deadline: Instant, now: Instant) -> bool {
        let here = vcpu::current();
        let armed = here.armed.load(Ordering::Relaxed);
        if armed == deadline.0 && armed > now.0 {
            return true;
        }
        let mut request = sched::SetSingleshotTimer {
            timeout_abs_ns: deadline.0,
            flags: 0,
        };
        // SAFETY: Xen reads the request.
        let result = unsafe {
            hypercall::vcpu_op(
                sched::VCPUOP_SET_SINGLESHOT_TIMER.into(),
                here.id().0.into(),
                hypercall::pointer(&mut request),
            )
        };
        match result {
            Ok(_) => {
                here.armed.store(deadline.0, Ordering::Relaxed);
                true
            }
            Err(ETIME) => false,
            Err(error) => panic!("cannot set the timer: {error}"),
        }
    }
}

// SAFETY: mappings stay until unmapped because only Xen changes them; the foreign region and the
// grant table are address space that boot set aside for them alone, and both are handed out once.
unsafe impl Hypervisor for Hypercalls {
    unsafe fn map_grants(&self, batch: &mut [MapGrantRef]) -> Result<(), Errno> {
        #[cfg(feature = "recover")]
        let _change = mappings::MappingChange::begin();
        grant_operation(memory::GNTTABOP_MAP_GRANT_REF, batch)?;
        #[cfg(feature = "recover")]
        mappings::mapped(batch);
        Ok(())
    }

    // Xen flushes the translations of all the domain's vCPUs before the hypercall returns.
    unsafe fn unmap_grants(&self, batch: &mut [UnmapGrantRef]) -> Result<(), Errno> {
        #[cfg(feature = "recover")]
        let _change = mappings::MappingChange::begin();
        grant_operation(memory::GNTTABOP_UNMAP_GRANT_REF, batch)?;
        #[cfg(feature = "recover")]
        mappings::unmapped(batch);
        Ok(())
    }

    unsafe fn copy_grants(&self, batch: &mut [GrantCopy]) -> Result<(), Errno> {
        grant_operation(memory::GNTTABOP_COPY, batch)
    }

    fn frame_of(&self, page: *const u8) -> Option<Gfn> {
        map::frame_of(page)
    }

    fn foreign_region(&self) -> Option<ForeignRegion> {
        if FOREIGN_TAKEN.swap(true, Ordering::Relaxed) {
            return None;
        }
        let space = &map::get().space;
        Some(ForeignRegion {
            base: NonNull::new(space.foreign as *mut u8)?,
            pages: space.foreign_pages as usize,
        })
    }

    fn grant_entries(&self) -> Option<&'static [EntryV1]> {
        grants::own_table()
    }

    fn bind_interdomain(&self, remote: DomId, remote_port: Port) -> Result<Port, Errno> {
        let mut request = event_channel::BindInterdomain {
            remote_dom: remote,
            remote_port,
            local_port: Port(0),
        };
        event_channels::operation(event_channel::BIND_INTERDOMAIN, &mut request)?;
        deliver_or_close(request.local_port)
    }

    fn alloc_unbound(&self, remote: DomId) -> Result<Port, Errno> {
        let mut request = event_channel::AllocUnbound {
            dom: DomId::SELF,
            remote_dom: remote,
            port: Port(0),
        };
        event_channels::operation(event_channel::ALLOC_UNBOUND, &mut request)?;
        deliver_or_close(request.port)
    }

    fn close_port(&self, port: Port) -> Result<(), Errno> {
        // All of this before the port is closed: after that, Xen may give its number to another vCPU. A notification
        // that comes meanwhile is dropped when Xen closes the port.
        domain::bitmaps().mask(port);
        for vcpu in vcpu::all() {
            vcpu.ports.remove(port);
        }
        domain::bitmaps().clear(port);
        event_channels::operation(event_channel::CLOSE, &mut event_channel::OnPort { port })
    }

    fn is_connected(&self, port: Port) -> Result<bool, Errno> {
        let mut request = event_channel::Status {
            dom: DomId::SELF,
            port,
            status: 0,
            vcpu: VcpuId(0),
            other_end: [0; 2],
        };
        event_channels::operation(event_channel::STATUS, &mut request)?;
        Ok(request.status == event_channel::STATUS_INTERDOMAIN)
    }

    #[cfg(feature = "recover")]
    fn take_up_port(&self, port: Port) -> Result<(), Errno> {
        // Before the crash it may have been another vCPU's.
        event_channels::move_here(port)
    }

    fn mask_port(&self, port: Port) {
        domain::bitmaps().mask(port);
    }

    fn unmask_port(&self, port: Port) -> Result<(), Errno> {
        event_channels::operation(event_channel::UNMASK, &mut event_channel::OnPort { port })
    }

    fn forget_notification(&self, port: Port) -> bool {
        domain::bitmaps().clear(port)
    }

    fn notify(&self, port: Port) -> Result<(), Errno> {
        event_channels::notify(port)
    }

    fn take_pending(&self, sink: &mut dyn FnMut(Port)) {
        let here = vcpu::current();
        let (timer, ipi) = (here.timer(), here.ipi());
        let mut take = |port| {
            if port == timer {
                here.armed.store(0, Ordering::Relaxed);
            } else if port != ipi {
                sink(port);
            }
        };
        #[cfg(feature = "recover")]
        if tick::is_on() {
            tick::came_back();
            return domain::bitmaps().take_held(&here.ports, &mut take);
        }
        // SAFETY: this vCPU's own part of the shared page.
        unsafe { domain::bitmaps().take(here.info(), &here.ports, &mut take) };
    }

    fn block(&self, deadline: Option<Instant>) -> bool {
        let here = vcpu::current();
        let info = here.info();
        #[cfg(feature = "recover")]
        let ticks = tick::is_on();
        #[cfg(not(feature = "recover"))]
        let ticks = false;
        // SAFETY: this vCPU's own part of the shared page, only accessed atomically.
        let pending = unsafe { AtomicU8::from_ptr(&raw mut (*info).evtchn_upcall_pending) };
        if !ticks && pending.load(Ordering::Acquire) != 0 {
            return false;
        }
        if let Some(deadline) = deadline {
            let now = self.now();
            if deadline <= now || !self.arm(deadline, now) {
                return false;
            }
        }
        #[cfg(feature = "recover")]
        if ticks {
            return self.block_and_tick(here);
        }
        // SAFETY: boot has installed the upcall, which is masked everywhere else.
        unsafe {
            if domain::is_pvh() {
                upcall::pvh_block();
            } else {
                upcall::pv_block(&raw mut (*info).evtchn_upcall_mask);
            }
        }
        nmi::log_received();
        watchdog::woken();
        true
    }

    fn run_time(&self) -> Option<Duration> {
        watchdog::run_time(self.vcpu())
    }

    fn wake_vcpu(&self, vcpu: VcpuId) {
        event_channels::wake(vcpu);
    }

    fn vcpu(&self) -> VcpuId {
        vcpu::current().id()
    }

    fn now(&self) -> Instant {
        vcpu::now()
    }
}

// SAFETY: the machine frame that Xen's list has for a page of ours is the page's own.
unsafe impl DmaMemory for Hypercalls {
    fn dma_addr(&self, byte: *const u8) -> Option<DmaAddr> {
        map::dma_addr(byte)
    }
}
