//! The driver domain's executors, one for each vCPU. They take turns; a vCPU that sleeps has none
//! until the simulated Xen would let it run again.

use super::allocator::in_driver_domain;
use bulkhead_executor::{Executor, Handle, VcpuSpawner};
use bulkhead_xen::{Instant, VcpuId};
use bulkhead_xen_sim::{SimDomain, SimVcpu};
use std::cell::RefCell;

pub struct Executors {
    domain: SimDomain,
    all: Vec<(VcpuId, RefCell<Executor<SimVcpu>>)>,
}

impl Executors {
    pub fn new(domain: &SimDomain, vcpus: u32) -> Executors {
        let executor = |vcpu| {
            let executor = Executor::new(domain.hypervisor_of(vcpu));
            (vcpu, RefCell::new(executor))
        };
        Executors {
            domain: domain.clone(),
            all: (0..vcpus).map(VcpuId).map(executor).collect(),
        }
    }

    /// Returns the handle of the first vCPU's executor.
    pub fn handle(&self) -> Handle<SimVcpu> {
        self.all[0].1.borrow().handle()
    }

    /// Returns the spawners of all vCPUs, by which each reaches the others.
    pub fn spawners(&self) -> Vec<VcpuSpawner<SimVcpu>> {
        let spawner = |(_, executor): &(_, RefCell<Executor<SimVcpu>>)| executor.borrow().spawner();
        self.all.iter().map(spawner).collect()
    }

    /// Runs each vCPU that does not sleep until it does. Returns whether any task ran.
    pub fn step(&self) -> bool {
        let mut moved = false;
        for (vcpu, executor) in &self.all {
            if self.domain.is_blocked(*vcpu) {
                continue;
            }
            let mut executor = executor.borrow_mut();
            moved |= in_driver_domain(|| executor.run_until_idle());
            executor.sleep();
        }
        moved
    }

    /// Runs each vCPU, and does not let it sleep.
    pub fn turn(&self) {
        for (_, executor) in &self.all {
            in_driver_domain(|| executor.borrow_mut().run_until_idle());
        }
    }

    /// Runs the first vCPU until `done` returns true, which is called whenever its tasks have had their turn, and
    /// whenever it would sleep.
    pub fn run_until(&self, done: impl Fn() -> bool) {
        self.all[0].1.borrow_mut().run_until(done);
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        let deadlines = self.all.iter().map(|(_, one)| one.borrow().next_deadline());
        deadlines.flatten().min()
    }
}
