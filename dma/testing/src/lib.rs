//! A PV domain that has a device in memory, its executors, and a guest's disks on the device.
//!
//! Nothing happens by itself: [`Machine::run`] runs the domain, and the device by a function that the test gives.

#![deny(unsafe_code)]

#[allow(unsafe_code, reason = "names pages of the domain for the device")]
mod disk;
#[allow(unsafe_code, reason = "shares a page with xenstored")]
mod store;

pub use disk::{Buffer, Disk, Wakes, discard, pattern, read, write};

use bulkhead_executor::{Executor, Handle, VcpuSpawner};
use bulkhead_images::target::Target;
use bulkhead_images::{Access, BlockDevice, Owner, Store};
use bulkhead_volumes::DiskStore;
use bulkhead_xen::{DeviceStops, DmaMemory, DomId, Instant, Stopped, VcpuId};
use bulkhead_xen_sim::{DomainConfig, DomainKind, Sim, SimDomain, SimVcpu};
use std::cell::{Cell, OnceCell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

thread_local! {
    /// The devices of this thread's machine, of which there is one at a time. Leaked, as a domain's are static.
    static STOPS: &'static DeviceStops = Box::leak(Box::default());
}

/// Returns the devices that are stopped when the domain of this thread's machine ends.
pub fn stops() -> &'static DeviceStops {
    STOPS.with(|stops| *stops)
}

/// A machine with a PV domain of two vCPUs.
pub struct Machine {
    /// The machine.
    pub sim: Sim,
    /// The domain.
    pub domain: SimDomain,
    executors: RefCell<Vec<Executor<SimVcpu>>>,
    /// Has the rest of the machine do what there is to do; returns whether there was anything.
    device: OnceCell<Box<dyn Fn() -> bool>>,
    /// The domain's xenstore ring has its user.
    has_store: Cell<bool>,
}

impl Default for Machine {
    fn default() -> Self {
        Machine::new()
    }
}

impl Machine {
    /// A machine whose domain has no device yet.
    pub fn new() -> Machine {
        let sim = Sim::new();
        let domain = sim.add_domain_with(DomainConfig {
            kind: DomainKind::Pv,
            vcpus: 2,
            memory_pages: 4096,
            ..DomainConfig::default()
        });
        let executors = (0..2).map(|vcpu| Executor::new(domain.hypervisor_of(VcpuId(vcpu))));
        Machine {
            executors: RefCell::new(executors.collect()),
            device: OnceCell::new(),
            has_store: Cell::new(false),
            domain,
            sim,
        }
    }

    /// Has the rest of the machine work, too, from now on.
    ///
    /// # Panics
    /// If it is called twice.
    pub fn run_device(&self, step: impl Fn() -> bool + 'static) {
        let set = self.device.set(Box::new(step));
        assert!(set.is_ok(), "one function runs all devices");
    }

    /// The first vCPU.
    pub fn handle(&self) -> Handle<SimVcpu> {
        self.executors.borrow()[0].handle()
    }

    /// All vCPUs, as they see each other.
    pub fn vcpus(&self) -> Vec<VcpuSpawner<SimVcpu>> {
        let executors = self.executors.borrow();
        executors.iter().map(Executor::spawner).collect()
    }

    /// How devices find the domain's memory.
    pub fn memory(&self) -> Arc<dyn DmaMemory> {
        Arc::new(self.domain.hypervisor())
    }

    /// Runs the domain and the device until they have nothing to do.
    ///
    /// # Panics
    /// If they still have something to do after 100,000 rounds.
    pub fn run(&self) {
        for _ in 0..100_000 {
            let mut moved = self.device.get().is_some_and(|step| step());
            for executor in &mut *self.executors.borrow_mut() {
                moved |= executor.run_until_idle();
            }
            if !moved {
                return;
            }
        }
        panic!("the machine does not come to rest");
    }

    /// Stops the devices as the end of the domain does, while the rest of the machine works or stands still.
    pub fn stop_devices(&self, works: bool) -> Stopped {
        let looks = Cell::new(0);
        let now = || {
            looks.set(looks.get() + 1);
            if works && let Some(step) = self.device.get() {
                step();
            }
            self.sim.now() + Duration::from_millis(looks.get())
        };
        stops().stop_all(now, Duration::from_secs(2))
    }

    /// Lets time pass.
    pub fn wait(&self, span: Duration) {
        self.sim.pass(span, || self.run(), || self.next_deadline());
    }

    /// Returns when the domain wants to do something next by itself.
    pub fn next_deadline(&self) -> Option<Instant> {
        let executors = self.executors.borrow();
        executors.iter().filter_map(Executor::next_deadline).min()
    }

    /// Runs a task of the first vCPU to its end; `None` if it takes longer than that.
    pub fn within<T: 'static>(
        &self,
        span: Duration,
        task: impl Future<Output = T> + 'static,
    ) -> Option<T> {
        let result = Rc::new(RefCell::new(None));
        let told = result.clone();
        let handle = self.handle();
        handle.spawn(async move { *told.borrow_mut() = Some(task.await) });
        let end = self.sim.now() + span;
        self.run();
        while result.borrow().is_none()
            && let Some(next) = self.next_deadline().filter(|next| *next <= end)
        {
            self.sim.advance_to(next.max(self.sim.now()));
            self.run();
        }
        result.take()
    }

    /// Opens a target, to be written to.
    pub fn try_open(
        &self,
        store: &Rc<DiskStore>,
        target: &str,
    ) -> Result<Arc<dyn BlockDevice>, String> {
        let (store, target) = (store.clone(), target.to_string());
        let opened = self.within(Duration::from_secs(10), async move {
            let target = Target::parse(&target).expect("a target");
            let owner = Owner {
                name: "domain 5, xvda",
                domain: DomId(5),
            };
            let opened = store.open(target, Access::ReadWrite, owner);
            opened.await.map_err(|error| error.to_string())
        });
        opened.expect("opened or refused in time")
    }

    /// Opens a target, with a queue on the first vCPU.
    ///
    /// # Panics
    /// If it is refused.
    pub fn open(&self, store: &Rc<DiskStore>, target: &str) -> Disk<'_> {
        let device = self.try_open(store, target);
        let device = device.unwrap_or_else(|error| panic!("{target}: {error}"));
        Disk::new(self, device, 0, 32)
    }
}
