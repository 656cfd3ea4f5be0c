//! The vCPUs that serve queues, and the number of queues on each.

use crate::engine::{GuestTurns, Turn, VcpuTurns};
use alloc::rc::Rc;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use bulkhead_executor::{Handle, VcpuSpawner};
use bulkhead_xen::{DomId, Hypervisor, VcpuId};
use core::cell::{Cell, RefCell};
use core::time::Duration;
use litemap::LiteMap;

/// The number and the milliseconds of the sleeps by which a vCPU measures the cost of a sleep. There are several,
/// because the first are not typical: the toolstack is still busy with this domain.
const TRIAL_SLEEPS: [(u32, u64); 3] = [(8, 1), (8, 4), (8, 16)];

/// Sleeps a few times, so that queues know the cost of a sleep on this vCPU from their start.
pub async fn learn_wakeup_latency<H: Hypervisor>(handle: Handle<H>) {
    for (times, milliseconds) in TRIAL_SLEEPS {
        for _ in 0..times {
            handle.sleep(Duration::from_millis(milliseconds)).await;
        }
    }
}

/// The executors of all vCPUs. Only the control plane on the first one asks here.
pub struct Vcpus<H>(Vec<Vcpu<H>>);

struct Vcpu<H> {
    executor: VcpuSpawner<H>,
    queues: Rc<Cell<usize>>,
    turns: Arc<VcpuTurns>,
    /// The guests that have queues there.
    guests: RefCell<LiteMap<DomId, Weak<GuestTurns>>>,
}

impl<H> Vcpu<H> {
    /// Returns the state that the queues of a guest share there.
    fn guest(&self, guest: DomId) -> Arc<GuestTurns> {
        let mut guests = self.guests.borrow_mut();
        guests.retain(|_, turns| turns.strong_count() > 0);
        if let Some(turns) = guests.get(&guest).and_then(Weak::upgrade) {
            return turns;
        }
        let turns = Arc::new(GuestTurns::on(&self.turns));
        guests.insert(guest, Arc::downgrade(&turns));
        turns
    }
}

impl<H: Hypervisor> Vcpus<H> {
    /// Returns these vCPUs, of which none serves a queue yet.
    ///
    /// # Panics
    /// If there is none.
    pub fn new(executors: Vec<VcpuSpawner<H>>) -> Self {
        assert!(!executors.is_empty(), "there is always a vCPU");
        let idle = |executor| Vcpu {
            executor,
            queues: Rc::default(),
            turns: Arc::default(),
            guests: RefCell::default(),
        };
        Vcpus(executors.into_iter().map(idle).collect())
    }

    /// Returns the number of vCPUs.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Returns the number of queues on each.
    pub fn load(&self) -> impl Iterator<Item = usize> {
        self.0.iter().map(|vcpu| vcpu.queues.get())
    }

    /// Places a queue of `guest` on the vCPU with the fewest queues. Of several it takes the last, since the
    /// first one runs the control plane, too.
    pub fn place(&self, guest: DomId) -> Placement<H> {
        let mut vcpus = self.0.iter().rev();
        let mut best = vcpus.next().expect("there is always a vCPU");
        for vcpu in vcpus {
            if vcpu.queues.get() < best.queues.get() {
                best = vcpu;
            }
        }
        best.queues.set(best.queues.get() + 1);
        Placement {
            executor: best.executor.clone(),
            queues: best.queues.clone(),
            guest: best.guest(guest),
        }
    }
}

/// A queue's place on a vCPU, given up when dropped.
pub struct Placement<H: Hypervisor> {
    executor: VcpuSpawner<H>,
    queues: Rc<Cell<usize>>,
    guest: Arc<GuestTurns>,
}

impl<H: Hypervisor> Placement<H> {
    /// Returns the executor of that vCPU.
    pub fn executor(&self) -> &VcpuSpawner<H> {
        &self.executor
    }

    /// Returns the queue's part of the vCPU's turns.
    pub fn turn(&self) -> Turn {
        Turn::of(self.guest.clone())
    }

    /// Returns the vCPU.
    pub fn vcpu(&self) -> VcpuId {
        self.executor.vcpu()
    }
}

impl<H: Hypervisor> Drop for Placement<H> {
    fn drop(&mut self) {
        self.queues.set(self.queues.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_xen_sim::{DomainConfig, Sim};

    #[test]
    fn queues_go_where_the_fewest_are() {
        let domain = Sim::new().add_domain_with(DomainConfig {
            vcpus: 3,
            ..DomainConfig::default()
        });
        let executors = (0..3).map(|vcpu| VcpuSpawner::new(domain.hypervisor(), VcpuId(vcpu)));
        let vcpus = Vcpus::new(executors.collect());
        let mut places: Vec<_> = (0..4).map(|_| vcpus.place(DomId(1))).collect();
        let taken: Vec<u32> = places.iter().map(|place| place.vcpu().0).collect();
        assert_eq!(taken, [2, 1, 0, 2]);
        // The second one's queue ends: it is the next to get one.
        places.remove(1);
        assert_eq!(vcpus.place(DomId(2)).vcpu(), VcpuId(1));
        drop(places);
        assert!(vcpus.load().eq([0, 0, 0]));
    }
}
