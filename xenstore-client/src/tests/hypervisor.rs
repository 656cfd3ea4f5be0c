//! A hypervisor that does nothing but count notifications.

use bulkhead_xen::abi::grant_table::{EntryV1, GrantCopy, MapGrantRef, UnmapGrantRef};
use bulkhead_xen::{DomId, Errno, ForeignRegion, Gfn, Hypervisor, Instant, Port, VcpuId};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

#[derive(Clone, Debug, Default)]
pub(super) struct NotificationCount {
    rung: Arc<AtomicUsize>,
}

impl NotificationCount {
    /// Returns the number of times that xenstored was notified.
    pub fn rung(&self) -> usize {
        self.rung.load(Ordering::Relaxed)
    }
}

// SAFETY: it maps nothing and hands out no address space.
unsafe impl Hypervisor for NotificationCount {
    unsafe fn map_grants(&self, _: &mut [MapGrantRef]) -> Result<(), Errno> {
        Err(Errno::NOSYS)
    }

    unsafe fn unmap_grants(&self, _: &mut [UnmapGrantRef]) -> Result<(), Errno> {
        Err(Errno::NOSYS)
    }

    unsafe fn copy_grants(&self, _: &mut [GrantCopy]) -> Result<(), Errno> {
        Err(Errno::NOSYS)
    }

    fn frame_of(&self, _: *const u8) -> Option<Gfn> {
        None
    }

    fn foreign_region(&self) -> Option<ForeignRegion> {
        None
    }

    fn grant_entries(&self) -> Option<&'static [EntryV1]> {
        None
    }

    fn bind_interdomain(&self, _: DomId, _: Port) -> Result<Port, Errno> {
        Err(Errno::NOSYS)
    }

    fn alloc_unbound(&self, _: DomId) -> Result<Port, Errno> {
        Err(Errno::NOSYS)
    }

    fn close_port(&self, _: Port) -> Result<(), Errno> {
        Ok(())
    }

    fn is_connected(&self, _: Port) -> Result<bool, Errno> {
        Ok(true)
    }

    fn mask_port(&self, _: Port) {}

    fn unmask_port(&self, _: Port) -> Result<(), Errno> {
        Ok(())
    }

    fn forget_notification(&self, _: Port) -> bool {
        false
    }

    fn notify(&self, port: Port) -> Result<(), Errno> {
        assert_eq!(port, Port(1));
        self.rung.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn take_pending(&self, _: &mut dyn FnMut(Port)) {}

    fn run_time(&self) -> Option<Duration> {
        None
    }

    fn block(&self, _: Option<Instant>) -> bool {
        false
    }

    fn wake_vcpu(&self, _: VcpuId) {}

    fn vcpu(&self) -> VcpuId {
        VcpuId(0)
    }

    fn now(&self) -> Instant {
        Instant(0)
    }
}
