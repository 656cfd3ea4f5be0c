//! The services of Xen that every domain uses, as one narrow trait.

use crate::abi::grant_table::{EntryV1, GrantCopy, MapGrantRef, UnmapGrantRef};
use crate::{DomId, Errno, Gfn, Instant, Port, VcpuId};
use core::ptr::NonNull;
use core::time::Duration;

/// Address space at which frames of other domains may be mapped: guest-physical space without memory behind it on PVH,
/// virtual space without mappings on PV. In both, `base + n * PAGE_SIZE` is the address to name to Xen and the address
/// to access.
#[derive(Debug)]
pub struct ForeignRegion {
    /// The first page's address, page-aligned.
    pub base: NonNull<u8>,
    /// The number of pages.
    pub pages: usize,
}

// SAFETY: the region is address space, not memory: owning it gives no access by itself.
unsafe impl Send for ForeignRegion {}
// SAFETY: as above, and it never changes.
unsafe impl Sync for ForeignRegion {}

/// The services of Xen for a domain. The unikernel's runtime implements them with hypercalls, the simulated
/// Xen in memory; cloning gives another handle on the same domain.
///
/// All calls act for the vCPU that makes them, except [`wake_vcpu`](Self::wake_vcpu); a handle may be cloned and used
/// on any vCPU. A batch is one hypercall, however long. Each of its entries has a status of its own, and an `Err` means
/// that Xen refused the hypercall as a whole and looked at no entry.
///
/// # Safety
/// An implementer promises that a mapping it reports as done stays at its address until it is
/// unmapped, that [`foreign_region`](Self::foreign_region) and
/// [`grant_entries`](Self::grant_entries) hand out address space that nothing else uses, and that
/// memory reached through mappings may be read and written by volatile or atomic accesses at any
/// time while they last.
pub unsafe trait Hypervisor: Clone + Send + Sync + 'static {
    /// Maps grants of other domains (`GNTTABOP_map_grant_ref`). An entry's status may be
    /// [`GrantStatus::EAGAIN`](crate::GrantStatus::EAGAIN): the caller maps that one again.
    ///
    /// # Safety
    /// Each `host_addr` is a page of the foreign region that the caller owns and where nothing is
    /// mapped.
    unsafe fn map_grants(&self, batch: &mut [MapGrantRef]) -> Result<(), Errno>;

    /// Unmaps what [`map_grants`](Self::map_grants) mapped (`GNTTABOP_unmap_grant_ref`), and ensures
    /// that no vCPU of this domain can still reach the pages through an old translation.
    ///
    /// # Safety
    /// Nothing accesses the pages any more.
    unsafe fn unmap_grants(&self, batch: &mut [UnmapGrantRef]) -> Result<(), Errno>;

    /// Copies between granted pages and own ones (`GNTTABOP_copy`).
    ///
    /// # Safety
    /// Own frames named as destination hold nothing that Rust believes to be unchanging, and own
    /// frames named as source may be shown to the other domain.
    unsafe fn copy_grants(&self, batch: &mut [GrantCopy]) -> Result<(), Errno>;

    /// Returns the frame of an own page, by which grants and copies name it. `None` if `page` is not own memory (for
    /// instance a mapped foreign page). For devices, [`DmaMemory`](crate::DmaMemory) has another address.
    fn frame_of(&self, page: *const u8) -> Option<Gfn>;

    /// Returns the address space for mapping other domains' frames. The first call gets all of it; later
    /// calls get `None`: it has one owner, the grant mapper.
    fn foreign_region(&self) -> Option<ForeignRegion>;

    /// Returns this domain's own grant table, version 1 entries, as many as Xen lets it have, mapped for
    /// as long as the domain runs. Entries below
    /// [`RESERVED_ENTRIES`](crate::abi::grant_table::RESERVED_ENTRIES) are the toolstack's.
    /// The first call gets it; later ones get `None`.
    fn grant_entries(&self) -> Option<&'static [EntryV1]>;

    /// Binds a local port to one that `remote` has allocated for us
    /// (`EVTCHNOP_bind_interdomain`). The new port is delivered to the calling vCPU, unmasked.
    fn bind_interdomain(&self, remote: DomId, remote_port: Port) -> Result<Port, Errno>;

    /// Allocates a port that `remote` may bind (`EVTCHNOP_alloc_unbound`), unmasked.
    fn alloc_unbound(&self, remote: DomId) -> Result<Port, Errno>;

    /// Closes a port (`EVTCHNOP_close`). Notifications of it that are still pending are dropped.
    fn close_port(&self, port: Port) -> Result<(), Errno>;

    /// Returns whether the other end of a port is open (`EVTCHNOP_status`): the domain there lives, and has not
    /// closed it.
    fn is_connected(&self, port: Port) -> Result<bool, Errno>;

    /// Takes over a port that a boot before this one of the same domain has left open: delivers it to this vCPU,
    /// unmasked, whichever vCPU it was delivered to before. Notifications that came before this boot are lost. Fails with
    /// [`Errno::NOSYS`] if no boot leaves ports open.
    fn take_up_port(&self, port: Port) -> Result<(), Errno> {
        let _ = port;
        Err(Errno::NOSYS)
    }

    /// Does the same for a port that nobody else would close, and closes it if that fails.
    fn take_up_or_close_port(&self, port: Port) -> Result<(), Errno> {
        self.take_up_port(port).inspect_err(|_| {
            // Xen refuses it for ports that are not open.
            let _ = self.close_port(port);
        })
    }

    /// Masks a port of this vCPU: its notifications wake no vCPU, and cost nothing, until
    /// [`unmask_port`](Self::unmask_port).
    fn mask_port(&self, port: Port);

    /// Unmasks a port (`EVTCHNOP_unmask`). A notification that came meanwhile is delivered.
    fn unmask_port(&self, port: Port) -> Result<(), Errno>;

    /// Drops a notification that came while a port of this vCPU was [masked](Self::mask_port). Returns whether there
    /// was one.
    fn forget_notification(&self, port: Port) -> bool;

    /// Notifies the other end of a port (`EVTCHNOP_send`).
    fn notify(&self, port: Port) -> Result<(), Errno>;

    /// Clears all notifications that are pending for this vCPU, and passes the port of each to `sink`, once. Makes no
    /// hypercall; returns at once if none is pending.
    fn take_pending(&self, sink: &mut dyn FnMut(Port));

    /// Blocks this vCPU until a notification is pending or `deadline` is reached
    /// (`SCHEDOP_block`); returns at once if either is already so. May return early. Returns whether
    /// the vCPU was blocked at all.
    fn block(&self, deadline: Option<Instant>) -> bool;

    /// Returns the processor time that the calling vCPU has used so far (`VCPUOP_get_runstate_info`), if it is known.
    fn run_time(&self) -> Option<Duration>;

    /// Interrupts the [`block`](Self::block) of another vCPU of this domain.
    fn wake_vcpu(&self, vcpu: VcpuId);

    /// Returns the vCPU that makes this call.
    fn vcpu(&self) -> VcpuId;

    /// Returns the time of the monotonic clock.
    fn now(&self) -> Instant;
}

/// This domain's end of the xenstore ring (`io/xs_wire.h`, `struct xenstore_domain_interface`), as the
/// toolstack set it up, and the port that goes with it.
#[derive(Clone, Copy, Debug)]
pub struct StoreRing {
    /// The shared page, mapped for as long as the domain runs.
    pub page: NonNull<u8>,
    /// Notifies xenstored, and is notified by it. Unmasked.
    pub port: Port,
}
