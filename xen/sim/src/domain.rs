//! A test's handle on one simulated domain.

use super::costs::CallCost;
use super::device::SimDevice;
use super::faults::Hypercall;
use super::stats::{Stats, Violation};
use super::vcpu::SimVcpu;
use super::world::{Domain, DomainKind, Shared};
use bulkhead_xen::abi::grant_table::EntryFlags;
use bulkhead_xen::{DomId, Errno, Gfn, GrantRef, Port, StoreRing, VcpuId};
use std::ptr::NonNull;
use std::sync::atomic::Ordering;

/// A simulated domain, as the test that drives it sees it. Clones are handles on the same one.
///
/// Once the domain is gone, its vCPUs are refused everything, and asking about it here panics.
#[derive(Clone)]
pub struct SimDomain {
    pub(super) world: Shared,
    pub(super) id: DomId,
}

impl SimDomain {
    /// Returns the domain's number.
    pub fn id(&self) -> DomId {
        self.id
    }

    /// Returns the domain's first vCPU, to call the hypervisor as the domain does.
    pub fn hypervisor(&self) -> SimVcpu {
        self.hypervisor_of(VcpuId(0))
    }

    /// Returns one of the domain's vCPUs, to call the hypervisor as the domain does.
    ///
    /// # Panics
    /// If the domain has no such vCPU.
    pub fn hypervisor_of(&self, vcpu: VcpuId) -> SimVcpu {
        if let Some(domain) = self.world.lock().domain(self.id) {
            let there = (vcpu.0 as usize) < domain.vcpus.len();
            assert!(there, "domain {} has no vCPU {vcpu}", self.id);
        }
        SimVcpu {
            world: self.world.clone(),
            domain: self.id,
            vcpu,
        }
    }

    /// Gives the domain a device (`pci=`).
    ///
    /// # Panics
    /// If it is a PVH domain: libxl gives it none.
    pub fn add_device(&self) -> SimDevice {
        let kind = self.with(|domain| {
            domain.devices += 1;
            domain.kind
        });
        assert_eq!(
            kind,
            DomainKind::Pv,
            "domain {} can have no device",
            self.id
        );
        SimDevice::new(self.world.clone(), self.id)
    }

    /// Takes a page of the domain's memory, zeroed.
    ///
    /// # Panics
    /// If none is left.
    pub fn alloc_page(&self) -> NonNull<u8> {
        self.alloc_pages(1)
    }

    /// Takes neighbouring pages of the domain's memory, zeroed. The frames of a PVH domain's follow each
    /// other.
    ///
    /// # Panics
    /// If there are not that many in a row.
    pub fn alloc_pages(&self, count: usize) -> NonNull<u8> {
        let address = self.with(|domain| domain.memory.allocate(count));
        address
            .and_then(|address| NonNull::new(address as *mut u8))
            .unwrap_or_else(|| panic!("domain {} is out of memory", self.id))
    }

    /// Gives back pages that [`alloc_page`](Self::alloc_page) or
    /// [`alloc_pages`](Self::alloc_pages) gave. That another domain still has one mapped is a
    /// [`Violation`].
    pub fn free_pages(&self, first: NonNull<u8>, count: usize) {
        let mut world = self.world.lock();
        let Some(domain) = world.domain_mut(self.id) else {
            return;
        };
        if let Some(frame) = domain.memory.free(first.as_ptr().addr(), count) {
            let domain = self.id;
            let violation = Violation::FreedWhileShared { domain, frame };
            world.violations.push(violation);
        }
    }

    /// Returns the frame of one of the domain's pages.
    ///
    /// # Panics
    /// If the page is not the domain's own memory.
    pub fn frame_of(&self, page: NonNull<u8>) -> Gfn {
        self.with(|domain| domain.memory.frame_of(page.as_ptr().addr()))
            .unwrap_or_else(|| panic!("{page:p} is not memory of domain {}", self.id))
    }

    /// Writes a grant entry as a frontend would, or a hostile one: nothing is checked. Tests that
    /// are not about the granting half use this instead of an allocator of entries.
    pub fn grant(&self, gref: GrantRef, to: DomId, frame: Gfn, flags: EntryFlags) {
        let entry = &self.with(|domain| domain.grants.entries())[gref.0 as usize];
        entry.frame.store(frame.0 as u32, Ordering::Relaxed);
        entry.domain.store(to.0, Ordering::Relaxed);
        entry.flags.store(flags.bits(), Ordering::Release);
    }

    /// Takes a grant back by force, whether it is in use or not. What is mapped stays mapped.
    pub fn revoke(&self, gref: GrantRef) {
        let entry = &self.with(|domain| domain.grants.entries())[gref.0 as usize];
        entry.flags.store(0, Ordering::Release);
    }

    /// Returns the flags of a grant entry.
    pub fn grant_flags(&self, gref: GrantRef) -> EntryFlags {
        let entry = &self.with(|domain| domain.grants.entries())[gref.0 as usize];
        EntryFlags::from_bits_retain(entry.flags.load(Ordering::Acquire))
    }

    /// Returns where the toolstack put the domain's end of the xenstore ring.
    ///
    /// # Panics
    /// If the domain was destroyed.
    pub fn store_ring(&self) -> StoreRing {
        let (page, port) = self
            .with(|domain| domain.store)
            .unwrap_or_else(|| panic!("domain {} has no xenstore ring", self.id));
        let page = NonNull::new(page as *mut u8).expect("pages are not at address 0");
        StoreRing { page, port }
    }

    /// Returns what the domain has asked of Xen so far.
    pub fn stats(&self) -> Stats {
        self.with(|domain| domain.stats)
    }

    /// Restarts the domain in place, as after a crash. Its mappings are removed, and its ports closed, but for the one
    /// of its xenstore ring and those in `kept`. Its memory keeps its content; the next boot can take the foreign
    /// region and the grant table. Pages that the domain has allocated itself are free again, unless its grant table
    /// names them. Its devices can access only what the next boot names to them.
    pub fn restart(&self, kept: &[Port]) {
        self.world.lock().restart(self.id, kept);
    }

    /// Returns whether no call into the simulated Xen is under way.
    pub fn is_xen_idle(&self) -> bool {
        self.world.is_idle()
    }

    /// Returns the number of grants of other domains that the domain has mapped.
    pub fn live_mappings(&self) -> usize {
        self.with(|domain| domain.grants.live_mappings())
    }

    /// Returns the number of the domain's own grants that others use.
    pub fn grants_in_use(&self) -> usize {
        self.with(|domain| domain.grants.pinned())
    }

    /// Returns the number of the domain's grants for another one, which may use them or not.
    pub fn grants_for(&self, other: DomId) -> usize {
        let entries = self.with(|domain| domain.grants.entries()).iter();
        let granted = entries.filter(|entry| {
            entry.flags.load(Ordering::Acquire) != 0
                && entry.domain.load(Ordering::Relaxed) == other.0
        });
        granted.count()
    }

    /// Returns the number of open ports of the domain, the one of its xenstore ring included.
    pub fn open_ports(&self) -> usize {
        self.with(|domain| domain.ports.open_count())
    }

    /// Returns the number of pages of devices' registers that the domain has mapped.
    pub fn mapped_registers(&self) -> usize {
        self.with(|domain| domain.register_pages)
    }

    /// Returns the number of pages of its memory that the domain has taken, the one of its xenstore ring
    /// included.
    pub fn pages_in_use(&self) -> usize {
        self.with(|domain| domain.memory.pages_in_use())
    }

    /// Returns the number of pages that the domain owns, taken or not, which `xl list` shows as its memory.
    pub fn memory_pages(&self) -> usize {
        self.with(|domain| domain.memory.present())
    }

    /// Changes the number of pages that the domain may own (`xl mem-max`). It keeps those that it owns.
    pub fn set_memory_limit(&self, pages: usize) {
        self.with(|domain| domain.memory.set_limit(pages));
    }

    /// Returns whether the domain has nothing to do: its last act on this vCPU was to block, and nothing
    /// that would end that has happened since.
    pub fn is_blocked(&self, vcpu: VcpuId) -> bool {
        self.with(|domain| domain.vcpus[vcpu.0 as usize].blocked.is_some())
    }

    /// Changes the number of grants that the domain may have mapped at a time.
    pub fn set_maptrack_limit(&self, limit: u32) {
        self.with(|domain| domain.grants.set_maptrack_limit(limit));
    }

    /// Holds back the notifications of one of the domain's ports, as if they were slow to arrive, while `masked`.
    pub fn mask_port(&self, port: Port, masked: bool) {
        self.world.lock().mask_port(self.id, port, masked);
    }

    /// Lets the domain's next `times` hypercalls of a kind fail as a whole.
    pub fn fail_call(&self, call: Hypercall, errno: Errno, times: u32) {
        let mut world = self.world.lock();
        world.faults.fail_call(call, self.id, errno, times);
    }

    /// Sets the time that the domain's grant operations of a kind take from now on.
    pub fn set_cost(&self, call: Hypercall, cost: CallCost) {
        self.world.lock().costs.set(self.id, call, cost);
    }

    /// Returns the mistakes that the domain made.
    pub fn violations(&self) -> Vec<Violation> {
        let mut violations = self.world.lock().violations.clone();
        violations.retain(|violation| violation.domain() == self.id);
        violations
    }

    fn with<T>(&self, look: impl FnOnce(&mut Domain) -> T) -> T {
        let mut world = self.world.lock();
        let domain = world.domain_mut(self.id);
        look(domain.unwrap_or_else(|| panic!("domain {} is gone", self.id)))
    }
}

impl std::fmt::Debug for SimDomain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SimDomain({})", self.id)
    }
}
