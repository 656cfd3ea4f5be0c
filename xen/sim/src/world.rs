//! The state of the simulated machine: its memory, its domains, its clock.

use super::costs::Costs;
use super::device::LateEntry;
use super::events::{Blocked, Ports, Vcpu};
use super::faults::Faults;
use super::grants::{ForeignSpace, Grants};
use super::memory::Machine;
use super::own_memory::OwnMemory;
use super::pci;
use super::stats::{Stats, Violation};
use super::tables::Lent;
use super::transfer::Transfers;
use bulkhead_xen::{DomId, Instant, Mfn, Port, VcpuId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

/// The number of mappings that one frame of `max_maptrack_frames` keeps track of (`MAPTRACK_PER_PAGE`).
pub const MAPTRACK_PER_FRAME: u32 = 256;

/// The way in which Xen runs a domain; it decides which mappings the domain may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DomainKind {
    /// Hardware-virtualized without an emulated platform: grants are mapped into guest-physical
    /// space, and never for a device. Its guest frames are its own numbers.
    #[default]
    Pvh,
    /// Paravirtualized: grants are mapped by page-table entries, and it may have devices. Its guest frames
    /// are machine frames.
    Pv,
}

/// The configuration of a domain.
#[derive(Clone, Debug)]
pub struct DomainConfig {
    /// The domain's number; the next free one if `None`.
    pub id: Option<DomId>,
    /// Its name in xenstore; made up if `None`.
    pub name: Option<String>,
    /// True if it serves disks to others (`driver_domain=1`).
    pub driver_domain: bool,
    /// The kind of the domain.
    pub kind: DomainKind,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Own memory, in pages.
    pub memory_pages: usize,
    /// Own memory that the domain may have besides, when the toolstack wants it (`maxmem=`), in pages.
    pub memory_later: usize,
    /// Size of the foreign region, in pages.
    pub region_pages: usize,
    /// Entries of the domain's grant table (Xen's default is 64 frames of 512).
    pub grant_entries: u32,
    /// The number of grants that the domain may have mapped at a time (Xen's default: 1024 frames of
    /// [`MAPTRACK_PER_FRAME`], of which each vCPU keeps one back).
    pub maptrack_limit: u32,
}

impl Default for DomainConfig {
    fn default() -> Self {
        DomainConfig {
            id: None,
            name: None,
            driver_domain: false,
            kind: DomainKind::Pvh,
            vcpus: 1,
            memory_pages: 1024,
            memory_later: 0,
            region_pages: 4096,
            grant_entries: 2048,
            maptrack_limit: 1024 * MAPTRACK_PER_FRAME,
        }
    }
}

/// One domain.
pub(super) struct Domain {
    pub(super) kind: DomainKind,
    /// Destroyed, and only still there because others have its pages mapped.
    pub(super) dying: bool,
    pub(super) memory: OwnMemory,
    pub(super) region: ForeignSpace,
    pub(super) grants: Grants,
    pub(super) ports: Ports,
    pub(super) vcpus: Vec<Vcpu>,
    pub(super) stats: Stats,
    /// The xenstore ring's page and the domain's port for it.
    pub(super) store: Option<(usize, Port)>,
    /// Pages on the process's heap that the domain has named to a device.
    pub(super) heap_for_devices: BTreeSet<Mfn>,
    /// The number of devices that it was given.
    pub(super) devices: usize,
    /// Pages of registers that it has mapped.
    pub(super) register_pages: usize,
}

pub(super) struct World {
    pub(super) machine: Machine,
    tables: Lent,
    /// By number.
    domains: Vec<Option<Box<Domain>>>,
    pub(super) now: Instant,
    pub(super) violations: Vec<Violation>,
    pub(super) faults: Faults,
    pub(super) transfers: Transfers,
    pub(super) costs: Costs,
    /// What the devices of domains that have ended still access.
    pub(super) late_entries: BTreeMap<DomId, Vec<LateEntry>>,
    pub(super) functions: pci::Functions,
    pub(super) pirqs: pci::Pirqs,
}

/// The machine as all handles share it.
///
/// A lock, so that vCPUs may be handed to other threads; no call into it ever runs foreign code
/// while it is held.
#[derive(Clone)]
pub(super) struct Shared(Arc<Mutex<World>>);

impl Shared {
    pub(super) fn new() -> Shared {
        Shared(Arc::new(Mutex::new(World {
            machine: Machine::new(),
            tables: Lent::default(),
            domains: Vec::new(),
            // Xen has been up for a while when a domain starts.
            now: Instant(10_000_000_000),
            violations: Vec::new(),
            faults: Faults::default(),
            transfers: Transfers::default(),
            costs: Costs::default(),
            late_entries: BTreeMap::new(),
            functions: pci::Functions::default(),
            pirqs: pci::Pirqs::default(),
        })))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, World> {
        #[cfg(feature = "calls")]
        super::calls::announce();
        // A test that panicked elsewhere leaves a world that is still consistent enough to look at.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_idle(&self) -> bool {
        !matches!(self.0.try_lock(), Err(TryLockError::WouldBlock))
    }
}

impl World {
    /// Creates a domain and returns its number.
    pub(super) fn add_domain(&mut self, config: &DomainConfig) -> DomId {
        let id = config.id.unwrap_or_else(|| {
            let next = self.domains.len().max(1);
            DomId(u16::try_from(next).expect("domain numbers are 16 bits"))
        });
        assert!(
            id < DomId::FIRST_RESERVED,
            "domain {id} is a reserved number"
        );
        assert!(self.domain(id).is_none(), "domain {id} exists already");
        let index = usize::from(id.0);
        if self.domains.len() <= index {
            self.domains.resize_with(index + 1, || None);
        }
        let region = self.machine.reserve(config.region_pages);
        let entries = self.tables.take(config.grant_entries as usize);
        self.domains[index] = Some(Box::new(Domain {
            kind: config.kind,
            dying: false,
            memory: {
                let (now, later) = (config.memory_pages, config.memory_later);
                self.machine.populate_partly(config.kind, now, later)
            },
            region: ForeignSpace::new(region, config.region_pages),
            grants: Grants::new(entries, config.maptrack_limit),
            ports: Ports::default(),
            vcpus: (0..config.vcpus).map(|_| Vcpu::default()).collect(),
            stats: Stats::default(),
            store: None,
            heap_for_devices: BTreeSet::new(),
            devices: 0,
            register_pages: 0,
        }));
        id
    }

    /// A domain that Xen still knows: alive or dying.
    pub(super) fn domain(&self, id: DomId) -> Option<&Domain> {
        self.domains.get(usize::from(id.0))?.as_deref()
    }

    pub(super) fn domain_mut(&mut self, id: DomId) -> Option<&mut Domain> {
        self.domains.get_mut(usize::from(id.0))?.as_deref_mut()
    }

    /// A domain that can still make hypercalls.
    pub(super) fn alive_mut(&mut self, id: DomId) -> Option<&mut Domain> {
        self.domain_mut(id).filter(|domain| !domain.dying)
    }

    pub(super) fn alive(&self) -> impl Iterator<Item = (DomId, &Domain)> {
        (0..).zip(&self.domains).filter_map(|(id, domain)| {
            let domain = domain.as_deref().filter(|domain| !domain.dying)?;
            Some((DomId(id), domain))
        })
    }

    pub(super) fn vcpu_mut(&mut self, id: DomId, vcpu: VcpuId) -> Option<&mut Vcpu> {
        self.domain_mut(id)?.vcpus.get_mut(vcpu.0 as usize)
    }

    /// Ends a domain as `xl destroy` does: its ports are closed and its mappings removed. Its devices keep their
    /// access. Xen knows the domain until no other domain has one of its pages mapped.
    pub(super) fn destroy(&mut self, id: DomId) {
        let Some(domain) = self.alive_mut(id) else {
            return;
        };
        domain.dying = true;
        domain.store = None;
        self.keep_device_entries(id);
        self.close_all_ports(id);
        self.release_mappings(id);
        self.reap(id);
    }

    /// Forgets a dying domain whose last page came free.
    pub(super) fn reap(&mut self, id: DomId) {
        let gone = self
            .domain(id)
            .is_some_and(|domain| domain.dying && domain.grants.pinned() == 0);
        if gone && let Some(domain) = self.domains[usize::from(id.0)].take() {
            self.machine.discard(&domain.memory);
        }
    }

    /// Restarts a domain in place: see [`SimDomain::restart`](super::SimDomain::restart).
    pub(super) fn restart(&mut self, id: DomId, kept: &[Port]) {
        self.release_mappings(id);
        let domain = self.domain(id).expect("a domain that restarts is there");
        let stores = domain.store.map(|(_, port)| port);
        let open: Vec<Port> = domain.ports.open_ports().collect();
        for port in open {
            if kept.contains(&port) {
                self.leave_port(id, port);
            } else if Some(port) != stores {
                self.close_port(id, port).expect("the port is open");
            }
        }
        let domain = self.domain_mut(id).expect("as above");
        domain.region.give_back();
        domain.grants.give_back_entries();
        let granted = domain.grants.granted_frames();
        if let Some(frame) = domain.memory.restart(&granted) {
            let domain = id;
            let violation = Violation::FreedWhileShared { domain, frame };
            self.violations.push(violation);
        }
        let domain = self.domain_mut(id).expect("as above");
        for vcpu in &mut domain.vcpus {
            *vcpu = Vcpu::default();
        }
        // Nobody uses them any more: what a device still does there is a mistake.
        domain.heap_for_devices.clear();
        domain.register_pages = 0;
    }

    /// The earliest deadline that a blocked vCPU waits for.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let vcpus = self.alive().flat_map(|(_, domain)| &domain.vcpus);
        vcpus.filter_map(|vcpu| vcpu.blocked?.deadline).min()
    }

    /// Ends the waiting of vCPUs whose deadline is reached.
    pub(super) fn wake_sleepers(&mut self) {
        let now = self.now;
        for domain in self.domains.iter_mut().flatten() {
            for vcpu in &mut domain.vcpus {
                let reached = |blocked: &Blocked| blocked.deadline.is_some_and(|at| at <= now);
                if vcpu.blocked.as_ref().is_some_and(reached) {
                    vcpu.blocked = None;
                }
            }
        }
    }
}
