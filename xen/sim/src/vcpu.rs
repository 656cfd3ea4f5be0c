//! [`Hypervisor`] for one vCPU of a simulated domain.

use super::events::Blocked;
use super::faults::Hypercall;
use super::world::{Domain, Shared, World};
use bulkhead_xen::abi::grant_table::{EntryV1, GrantCopy, MapGrantRef, UnmapGrantRef};
use bulkhead_xen::{
    DmaAddr, DmaMemory, DomId, Errno, ForeignRegion, Gfn, Hypervisor, Instant, Port, VcpuId,
};
use std::fmt;
use std::ptr::NonNull;
use std::time::Duration;

/// One vCPU of a simulated domain: the handle through which its drivers call the simulated Xen.
#[derive(Clone)]
pub struct SimVcpu {
    pub(super) world: Shared,
    pub(super) domain: DomId,
    pub(super) vcpu: VcpuId,
}

impl SimVcpu {
    /// Returns another vCPU of the same domain.
    pub fn on_vcpu(&self, vcpu: VcpuId) -> SimVcpu {
        SimVcpu {
            vcpu,
            ..self.clone()
        }
    }

    /// Returns the vCPU's domain.
    pub fn domain(&self) -> DomId {
        self.domain
    }

    /// Makes a hypercall: refused to a domain that was destroyed, and where a test wants it so.
    pub(super) fn call<T>(
        &self,
        call: Hypercall,
        count: impl FnOnce(&mut Domain),
        run: impl FnOnce(&mut World) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let mut world = self.world.lock();
        count(world.alive_mut(self.domain).ok_or(Errno::SRCH)?);
        match world.faults.take_call(call, self.domain) {
            Some(errno) => Err(errno),
            None => run(&mut world),
        }
    }

    /// Runs something on the domain, dead or alive.
    fn look<T>(&self, look: impl FnOnce(&mut Domain) -> Option<T>) -> Option<T> {
        look(self.world.lock().domain_mut(self.domain)?)
    }
}

impl fmt::Debug for SimVcpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimVcpu({}, vcpu {})", self.domain, self.vcpu)
    }
}

/// Processor time that a simulated vCPU uses to block and be woken; it uses no other.
pub const BLOCK_COST: Duration = Duration::from_micros(10);

// SAFETY: a mapping maps the granter's own page with mmap and stays until it is unmapped or the
// domain is destroyed; region and table are handed out once. All domain memory is plain memory.
unsafe impl Hypervisor for SimVcpu {
    unsafe fn map_grants(&self, batch: &mut [MapGrantRef]) -> Result<(), Errno> {
        let count = |domain: &mut Domain| domain.stats.map_calls += 1;
        self.call(Hypercall::MapGrants, count, |world| {
            world.spend(self.domain, Hypercall::MapGrants, batch.len());
            for op in batch {
                world.map_grant(self.domain, op);
                if let Some(domain) = world.domain_mut(self.domain) {
                    match op.status.is_okay() {
                        true => domain.stats.maps += 1,
                        false => domain.stats.maps_refused += 1,
                    }
                }
            }
            world.machine.settle();
            Ok(())
        })
    }

    unsafe fn unmap_grants(&self, batch: &mut [UnmapGrantRef]) -> Result<(), Errno> {
        let count = |domain: &mut Domain| domain.stats.unmap_calls += 1;
        self.call(Hypercall::UnmapGrants, count, |world| {
            world.spend(self.domain, Hypercall::UnmapGrants, batch.len());
            for op in batch {
                world.unmap_grant(self.domain, op);
                if op.status.is_okay()
                    && let Some(domain) = world.domain_mut(self.domain)
                {
                    domain.stats.unmaps += 1;
                }
            }
            world.machine.settle();
            Ok(())
        })
    }

    unsafe fn copy_grants(&self, batch: &mut [GrantCopy]) -> Result<(), Errno> {
        let count = |domain: &mut Domain| domain.stats.copy_calls += 1;
        self.call(Hypercall::CopyGrants, count, |world| {
            world.spend(self.domain, Hypercall::CopyGrants, batch.len());
            for op in batch {
                let bytes = world.copy_grant(self.domain, op);
                if let Some(domain) = world.domain_mut(self.domain) {
                    domain.stats.bytes_copied += bytes;
                    match op.status.is_okay() {
                        true => domain.stats.copies += 1,
                        false => domain.stats.copies_refused += 1,
                    }
                }
            }
            Ok(())
        })
    }

    fn frame_of(&self, page: *const u8) -> Option<Gfn> {
        let world = self.world.lock();
        let memory = &world.domain(self.domain)?.memory;
        memory.frame_of(page.addr()).or_else(|| {
            let heap = world.machine.is_heap(page.addr());
            heap.then(|| memory.heap_frame(page.addr()))
        })
    }

    fn foreign_region(&self) -> Option<ForeignRegion> {
        let (base, pages) = self.look(|domain| domain.region.take())?;
        let base = NonNull::new(base as *mut u8)?;
        Some(ForeignRegion { base, pages })
    }

    fn grant_entries(&self) -> Option<&'static [EntryV1]> {
        self.look(|domain| domain.grants.take_entries())
    }

    fn bind_interdomain(&self, remote: DomId, remote_port: Port) -> Result<Port, Errno> {
        let count = |domain: &mut Domain| domain.stats.bind_calls += 1;
        self.call(Hypercall::BindInterdomain, count, |world| {
            world.bind_interdomain(self.domain, self.vcpu, remote, remote_port)
        })
    }

    fn alloc_unbound(&self, remote: DomId) -> Result<Port, Errno> {
        let count = |domain: &mut Domain| domain.stats.bind_calls += 1;
        self.call(Hypercall::AllocUnbound, count, |world| {
            world.alloc_unbound(self.domain, self.vcpu, remote)
        })
    }

    fn close_port(&self, port: Port) -> Result<(), Errno> {
        let count = |domain: &mut Domain| domain.stats.close_calls += 1;
        self.call(Hypercall::ClosePort, count, |world| {
            world.close_port(self.domain, port)
        })
    }

    fn is_connected(&self, port: Port) -> Result<bool, Errno> {
        self.world.lock().is_connected(self.domain, port)
    }

    fn take_up_port(&self, port: Port) -> Result<(), Errno> {
        let not_counted = |_: &mut Domain| ();
        self.call(Hypercall::BindVcpu, not_counted, |world| {
            world.take_up_port(self.domain, self.vcpu, port)
        })
    }

    fn mask_port(&self, port: Port) {
        self.world.lock().mask_port(self.domain, port, true);
    }

    fn unmask_port(&self, port: Port) -> Result<(), Errno> {
        self.world.lock().mask_port(self.domain, port, false);
        Ok(())
    }

    fn forget_notification(&self, port: Port) -> bool {
        self.world.lock().forget_notification(self.domain, port)
    }

    fn notify(&self, port: Port) -> Result<(), Errno> {
        let count = |domain: &mut Domain| domain.stats.notifications_sent += 1;
        self.call(Hypercall::Notify, count, |world| {
            world.notify(self.domain, port)
        })
    }

    fn take_pending(&self, sink: &mut dyn FnMut(Port)) {
        // One at a time: the sink may call the hypervisor in its turn.
        let mut from = Port(0);
        loop {
            let Some(port) = self.look(|domain| {
                let vcpu = domain.vcpus.get_mut(self.vcpu.0 as usize)?;
                vcpu.take_pending(from)
            }) else {
                return;
            };
            sink(port);
            from = Port(port.0 + 1);
        }
    }

    /// Notes that the vCPU has no work until a notification or `deadline`, and returns: a
    /// test decides who runs next.
    fn block(&self, deadline: Option<Instant>) -> bool {
        let mut world = self.world.lock();
        let now = world.now;
        let Some(domain) = world.alive_mut(self.domain) else {
            return false;
        };
        let vcpu = &mut domain.vcpus[self.vcpu.0 as usize];
        if std::mem::take(&mut vcpu.woken) || vcpu.any_pending() {
            return false;
        }
        domain.stats.block_calls += 1;
        let sleeps = deadline.is_none_or(|deadline| deadline > now);
        if sleeps {
            vcpu.blocked = Some(Blocked { deadline });
        }
        sleeps
    }

    fn run_time(&self) -> Option<Duration> {
        self.look(|domain| Some(BLOCK_COST * u32::try_from(domain.stats.block_calls).ok()?))
    }

    fn wake_vcpu(&self, vcpu: VcpuId) {
        let mut world = self.world.lock();
        if let Some(domain) = world.alive_mut(self.domain) {
            domain.stats.wake_calls += 1;
        }
        if let Some(vcpu) = world.vcpu_mut(self.domain, vcpu) {
            vcpu.woken = true;
            vcpu.blocked = None;
        }
    }

    fn vcpu(&self) -> VcpuId {
        self.vcpu
    }

    fn now(&self) -> Instant {
        self.world.lock().now
    }
}

// SAFETY: the numbering of frames is one to one, and devices find pages by it alone.
unsafe impl DmaMemory for SimVcpu {
    fn dma_addr(&self, byte: *const u8) -> Option<DmaAddr> {
        self.world.lock().bus_address(self.domain, byte.addr())
    }
}
