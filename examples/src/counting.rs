//! A hypervisor that counts the hypercalls.

use alloc::sync::Arc;
use bulkhead_xen::abi::grant_table::{EntryV1, GrantCopy, MapGrantRef, UnmapGrantRef};
use bulkhead_xen::{DomId, Errno, ForeignRegion, Gfn, Hypervisor, Instant, Port, VcpuId};
use core::ops::Sub;
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;

/// Passes everything on to another hypervisor, and counts the hypercalls. Clones count together.
#[derive(Clone, Debug)]
pub struct Counting<H> {
    inner: H,
    counters: Arc<Counters>,
}

#[derive(Debug, Default)]
struct Counters {
    maps: AtomicU32,
    unmaps: AtomicU32,
    copies: AtomicU32,
    notifications: AtomicU32,
    blocks: AtomicU32,
}

/// The hypercalls made. Subtract an earlier count to get those in between.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hypercalls {
    /// `GNTTABOP_map_grant_ref`
    pub maps: u32,
    /// `GNTTABOP_unmap_grant_ref`
    pub unmaps: u32,
    /// `GNTTABOP_copy`
    pub copies: u32,
    /// `EVTCHNOP_send`, those to xenstored included.
    pub notifications: u32,
    /// `SCHEDOP_block`: waiting for the other domain, or for xenstored.
    pub blocks: u32,
}

impl Hypercalls {
    /// Returns the number of those on grants.
    pub fn grants(&self) -> u32 {
        self.maps + self.unmaps + self.copies
    }

    /// Returns the number of all of them.
    pub fn all(&self) -> u32 {
        self.grants() + self.notifications + self.blocks
    }
}

impl Sub for Hypercalls {
    type Output = Hypercalls;

    fn sub(self, earlier: Hypercalls) -> Hypercalls {
        Hypercalls {
            maps: self.maps - earlier.maps,
            unmaps: self.unmaps - earlier.unmaps,
            copies: self.copies - earlier.copies,
            notifications: self.notifications - earlier.notifications,
            blocks: self.blocks - earlier.blocks,
        }
    }
}

impl<H: Hypervisor> Counting<H> {
    /// Returns a hypervisor that counts the calls to `inner` through it.
    pub fn new(inner: H) -> Self {
        Counting {
            inner,
            counters: Arc::default(),
        }
    }

    /// Returns the hypercalls so far.
    pub fn counts(&self) -> Hypercalls {
        let count = |counter: &AtomicU32| counter.load(Ordering::Relaxed);
        Hypercalls {
            maps: count(&self.counters.maps),
            unmaps: count(&self.counters.unmaps),
            copies: count(&self.counters.copies),
            notifications: count(&self.counters.notifications),
            blocks: count(&self.counters.blocks),
        }
    }
}

fn count(counter: &AtomicU32) {
    counter.fetch_add(1, Ordering::Relaxed);
}

// SAFETY: the inner hypervisor keeps the promises; nothing is done beside it.
unsafe impl<H: Hypervisor> Hypervisor for Counting<H> {
    unsafe fn map_grants(&self, batch: &mut [MapGrantRef]) -> Result<(), Errno> {
        count(&self.counters.maps);
        // SAFETY: the caller promises just that.
        unsafe { self.inner.map_grants(batch) }
    }

    unsafe fn unmap_grants(&self, batch: &mut [UnmapGrantRef]) -> Result<(), Errno> {
        count(&self.counters.unmaps);
        // SAFETY: the caller promises just that.
        unsafe { self.inner.unmap_grants(batch) }
    }

    unsafe fn copy_grants(&self, batch: &mut [GrantCopy]) -> Result<(), Errno> {
        count(&self.counters.copies);
        // SAFETY: the caller promises just that.
        unsafe { self.inner.copy_grants(batch) }
    }

    fn frame_of(&self, page: *const u8) -> Option<Gfn> {
        self.inner.frame_of(page)
    }

    fn foreign_region(&self) -> Option<ForeignRegion> {
        self.inner.foreign_region()
    }

    fn grant_entries(&self) -> Option<&'static [EntryV1]> {
        self.inner.grant_entries()
    }

    fn bind_interdomain(&self, remote: DomId, remote_port: Port) -> Result<Port, Errno> {
        self.inner.bind_interdomain(remote, remote_port)
    }

    fn alloc_unbound(&self, remote: DomId) -> Result<Port, Errno> {
        self.inner.alloc_unbound(remote)
    }

    fn is_connected(&self, port: Port) -> Result<bool, Errno> {
        self.inner.is_connected(port)
    }

    fn close_port(&self, port: Port) -> Result<(), Errno> {
        self.inner.close_port(port)
    }

    fn take_up_port(&self, port: Port) -> Result<(), Errno> {
        self.inner.take_up_port(port)
    }

    fn mask_port(&self, port: Port) {
        self.inner.mask_port(port);
    }

    fn unmask_port(&self, port: Port) -> Result<(), Errno> {
        self.inner.unmask_port(port)
    }

    fn forget_notification(&self, port: Port) -> bool {
        self.inner.forget_notification(port)
    }

    fn notify(&self, port: Port) -> Result<(), Errno> {
        count(&self.counters.notifications);
        self.inner.notify(port)
    }

    fn take_pending(&self, sink: &mut dyn FnMut(Port)) {
        self.inner.take_pending(sink);
    }

    fn block(&self, deadline: Option<Instant>) -> bool {
        let blocked = self.inner.block(deadline);
        if blocked {
            count(&self.counters.blocks);
        }
        blocked
    }

    fn run_time(&self) -> Option<Duration> {
        self.inner.run_time()
    }

    fn wake_vcpu(&self, vcpu: VcpuId) {
        self.inner.wake_vcpu(vcpu);
    }

    fn vcpu(&self) -> VcpuId {
        self.inner.vcpu()
    }

    fn now(&self) -> Instant {
        self.inner.now()
    }
}
