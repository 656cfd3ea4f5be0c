//! A Xen in memory for host tests: several domains in one process, and the real one's rules.
//!
//! A [`Sim`] is a machine with its hypervisor, dom0 and xenstored. Each [`SimDomain`] has memory,
//! a grant table, event channels, a xenstore ring and a [`SimVcpu`] for each of its vCPUs, through
//! which the drivers under test do what they would do on a real Xen. It refuses what a real Xen
//! refuses, in the same way; the rules stand at the head of `grants.rs` and `events.rs`. A mapped
//! grant is the very page of the other domain, and touching a page that is not mapped any more
//! ends the test with a fault, as it would end the driver domain.
//!
//! Nothing happens by itself. A test steps the executors of its domains and xenstored until
//! nothing moves any more, and moves the clock by hand:
//!
//! ```
//! use bulkhead_xen::abi::grant_table::{EntryFlags, MapFlags, MapGrantRef};
//! use bulkhead_xen_sim::Sim;
//! use bulkhead_xen::{GrantRef, Hypervisor};
//!
//! let sim = Sim::new();
//! let (backend, frontend) = (sim.add_domain(), sim.add_domain());
//!
//! let page = frontend.alloc_page();
//! let gref = GrantRef(8);
//! frontend.grant(gref, backend.id(), frontend.frame_of(page), EntryFlags::PERMIT_ACCESS);
//!
//! let hypervisor = backend.hypervisor();
//! let region = hypervisor.foreign_region().unwrap();
//! let address = region.base.as_ptr() as u64;
//! let mut batch = [MapGrantRef::new(address, MapFlags::HOST_MAP, gref, frontend.id())];
//! // SAFETY: the first page of the region, where nothing is mapped yet; then both pages are
//! // mapped, and no reference points into them.
//! unsafe {
//!     hypervisor.map_grants(&mut batch).unwrap();
//!     assert!(batch[0].status.is_okay());
//!     region.base.write_volatile(42);
//!     assert_eq!(page.read_volatile(), 42);
//! }
//! assert_eq!(backend.live_mappings(), 1);
//! assert!(frontend.grant_flags(gref).contains(EntryFlags::WRITING));
//! ```
//!
//! Mistakes that only the domain itself can have made (mapping over a mapping, unmapping twice,
//! using a closed port) are kept as [`Violation`]s: tests end with
//! [`Sim::assert_no_violations`]. What Xen was asked is counted in [`Stats`]. [`Sim::fail_grant`] and
//! [`SimDomain::fail_call`] make operations fail; [`xenstore::Faults`] makes xenstored misbehave.
//!
//! Read next: [`SimDomain`] for what a test can do with a domain, [`xenstore`] for the store, [`pci`] for devices.

mod balloon;
#[cfg(feature = "calls")]
mod calls;
mod costs;
mod device;
mod domain;
mod events;
mod faults;
mod grants;
mod memory;
mod numbering;
mod operations;
mod own_memory;
pub mod pci;
mod process;
mod reservation;
mod stats;
mod tables;
#[cfg(test)]
mod tests;
mod transfer;
mod vcpu;
mod world;
pub mod xenstore;
mod xenstored;

#[cfg(feature = "calls")]
pub use calls::listen_to_calls;
pub use costs::CallCost;
pub use device::{DmaFault, SimDevice};
pub use domain::SimDomain;
pub use faults::{GrantUse, Hypercall};
pub use stats::{Stats, Violation};
pub use vcpu::{BLOCK_COST, SimVcpu};
pub use world::{DomainConfig, DomainKind, MAPTRACK_PER_FRAME};

use bulkhead_xen::{DomId, GrantRef, GrantStatus, Instant, VcpuId};
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use world::Shared;
use xenstore::{Server, domain_path, toolstack};
use xenstored::Xenstored;

const DOM0: DomId = DomId(0);

/// A simulated machine. Clones are handles on the same one; it lives as long as any handle, domain
/// or vCPU.
#[derive(Clone)]
pub struct Sim {
    world: Shared,
    xenstored: Arc<Mutex<Xenstored>>,
    /// Locked before the others.
    pcibacks: Arc<Mutex<Vec<pci::Pciback>>>,
}

impl Default for Sim {
    fn default() -> Self {
        Sim::new()
    }
}

impl Sim {
    /// Makes a machine with dom0 and xenstored.
    pub fn new() -> Sim {
        let world = Shared::new();
        // The second vCPU is xenstored's, the third pciback's.
        let xenstored = Xenstored::new(VcpuId(1));
        let sim = Sim {
            world,
            xenstored: Arc::new(Mutex::new(xenstored)),
            pcibacks: Arc::default(),
        };
        sim.add_dom0();
        sim
    }

    /// Creates a PVH domain with one vCPU, 4 MiB of memory and a foreign region of 4096 pages
    /// ([`DomainConfig::default`]).
    pub fn add_domain(&self) -> SimDomain {
        self.add_domain_with(DomainConfig::default())
    }

    /// Creates a domain as `xl create` does: its memory, its xenstore connection, and the nodes
    /// that the toolstack makes for it ([`toolstack::create_domain`]).
    pub fn add_domain_with(&self, config: DomainConfig) -> SimDomain {
        let mut xenstored = self.lock_xenstored();
        let id = self.world.lock().add_domain(&config);
        let name = config.name.unwrap_or_else(|| format!("domain-{id}"));
        let store = &mut xenstored.server;
        toolstack::create_domain(store, id, &name, config.driver_domain);
        self.connect(&mut xenstored, id)
    }

    fn add_dom0(&self) {
        let config = DomainConfig {
            id: Some(DOM0),
            kind: DomainKind::Pv,
            vcpus: 3,
            ..DomainConfig::default()
        };
        let mut xenstored = self.lock_xenstored();
        self.world.lock().add_domain(&config);
        // What xen-init-dom0 writes.
        for (node, value) in [("domid", "0"), ("name", "Domain-0")] {
            let path = format!("{}/{node}", domain_path(DOM0));
            xenstored.server.write(&path, value);
        }
        self.connect(&mut xenstored, DOM0);
    }

    fn connect(&self, xenstored: &mut Xenstored, id: DomId) -> SimDomain {
        xenstored.introduce(&mut self.world.lock(), id);
        let world = self.world.clone();
        SimDomain { world, id }
    }

    /// Returns dom0.
    pub fn dom0(&self) -> SimDomain {
        self.domain(DOM0).expect("dom0 is always there")
    }

    /// Returns a domain that Xen still knows.
    pub fn domain(&self, id: DomId) -> Option<SimDomain> {
        self.world.lock().domain(id)?;
        Some(SimDomain {
            world: self.world.clone(),
            id,
        })
    }

    /// Ends a domain as `xl destroy` does: it makes no more hypercalls, its event channels close,
    /// what it had mapped is unmapped, its xenstore connection ends. Its pages that others have
    /// mapped stay, and with them the number of the domain, until the last one is unmapped.
    ///
    /// Its devices stay, and access what they could, until [`release_devices`](Self::release_devices).
    ///
    /// Its xenstore nodes stay until [`toolstack::remove_domain`] removes them.
    pub fn destroy_domain(&self, id: DomId) {
        let mut xenstored = self.lock_xenstored();
        let mut world = self.world.lock();
        if world.alive_mut(id).is_some() {
            world.destroy(id);
            xenstored.release(&mut world, id);
        }
    }

    /// Takes its devices away from a domain that was destroyed (`pci_release_devices`): they access nothing any
    /// more.
    pub fn release_devices(&self, id: DomId) {
        let mut world = self.world.lock();
        world.late_entries.remove(&id);
        world.release_functions(id);
    }

    /// Returns whether nothing of a domain is left: no other domain has any of its pages mapped.
    pub fn is_fully_gone(&self, id: DomId) -> bool {
        self.world.lock().domain(id).is_none()
    }

    /// Returns the store, to act on it as dom0 without a ring. Held only as long as the statement it is
    /// used in: xenstored stands still meanwhile.
    pub fn store(&self) -> impl DerefMut<Target = Server> + '_ {
        Store(self.lock_xenstored())
    }

    /// Has xenstored serve the requests that have arrived, and pciback the operations that it was asked for. Returns
    /// whether they had anything to do.
    pub fn step_xenstored(&self) -> bool {
        let stepped = self.lock_xenstored().step(&mut self.world.lock());
        self.step_pcibacks() || stepped
    }

    /// Steps xenstored and whatever else `step` runs (the executors of the domains under test,
    /// usually) until none of them has anything to do. Returns whether anything had.
    ///
    /// # Panics
    /// After a million rounds, if there is always something to do.
    pub fn run_until_idle(&self, mut step: impl FnMut() -> bool) -> bool {
        for round in 0..1_000_000 {
            let moved = self.step_xenstored();
            if !step() && !moved {
                return round > 0;
            }
        }
        panic!("the machine does not come to rest");
    }

    /// Returns the time of the machine's clock.
    pub fn now(&self) -> Instant {
        self.world.lock().now
    }

    /// Moves the clock.
    pub fn advance(&self, span: Duration) {
        let to = self.now() + span;
        self.advance_to(to);
    }

    /// Moves the clock to a point that is not in its past.
    pub fn advance_to(&self, to: Instant) {
        let mut world = self.world.lock();
        assert!(to >= world.now, "the clock is monotonic");
        world.now = to;
        world.wake_sleepers();
    }

    /// Lets time pass: moves the clock from each point that `next` returns to the following one, and has `run` do the
    /// work that is due there. `next` returns the time of the next work.
    pub fn pass(&self, span: Duration, mut run: impl FnMut(), next: impl Fn() -> Option<Instant>) {
        let end = self.now() + span;
        run();
        while let Some(next) = next().filter(|next| *next <= end) {
            self.advance_to(next.max(self.now()));
            run();
        }
        self.advance_to(end);
        run();
    }

    /// Moves the clock to the earliest deadline of a vCPU that blocked; returns whether there is
    /// one.
    pub fn advance_to_next_deadline(&self) -> bool {
        let Some(deadline) = self.world.lock().next_deadline() else {
            return false;
        };
        self.advance_to(deadline);
        true
    }

    /// Lets the next `times` uses of a grant of `owner` end with a status of the test's choice:
    /// [`GrantStatus::EAGAIN`] as if its page were paged out, for instance.
    pub fn fail_grant(
        &self,
        usage: GrantUse,
        (owner, gref): (DomId, GrantRef),
        status: GrantStatus,
        times: u32,
    ) {
        let mut world = self.world.lock();
        world.faults.fail_grant(usage, (owner, gref), status, times);
    }

    /// Stops transfers of frames between their being committed to and completed, where a real Xen is only for an
    /// instant, until [`complete_transfers`](Self::complete_transfers).
    pub fn hold_transfers(&self) {
        self.world.lock().transfers.hold();
    }

    /// Completes the transfers that were held, and holds no more. Returns their number.
    pub fn complete_transfers(&self) -> usize {
        self.world.lock().complete_transfers()
    }

    /// Returns all mistakes that domains made.
    pub fn violations(&self) -> Vec<Violation> {
        self.world.lock().violations.clone()
    }

    /// Checks that no domain made a mistake.
    ///
    /// # Panics
    /// If one did, with all of them.
    pub fn assert_no_violations(&self) {
        let violations = self.violations();
        let lines: Vec<String> = violations.iter().map(|one| format!("\n  {one}")).collect();
        assert!(lines.is_empty(), "mistakes were made:{}", lines.concat());
    }

    fn lock_xenstored(&self) -> MutexGuard<'_, Xenstored> {
        self.xenstored
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Sim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let alive: Vec<DomId> = self.world.lock().alive().map(|(id, _)| id).collect();
        f.debug_struct("Sim").field("alive", &alive).finish()
    }
}

/// The server, out of xenstored.
struct Store<'s>(MutexGuard<'s, Xenstored>);

impl Deref for Store<'_> {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.0.server
    }
}

impl DerefMut for Store<'_> {
    fn deref_mut(&mut self) -> &mut Server {
        &mut self.0.server
    }
}
