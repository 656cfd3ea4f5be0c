//! A machine with a PV domain that has functions, and a driver that keeps them for the test.

use bulkhead_executor::{Executor, Handle};
use bulkhead_grant::TableOnDemand;
use bulkhead_pci::{Driver, Frontend, FrontendOptions, Function};
use bulkhead_xen::VcpuId;
use bulkhead_xen_sim::pci::toolstack::{backend_state, frontend_state};
use bulkhead_xen_sim::pci::{DeviceModel, FunctionConfig, SimFunction};
use bulkhead_xen_sim::{DomainConfig, DomainKind, Sim, SimDomain, SimVcpu};
use bulkhead_xenstore_client::{Client, Ring};
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// vCPUs of the domain.
pub const VCPUS: u32 = 3;

/// The longest time that pciback may take.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// Functions that the driver has taken.
#[derive(Clone, Default)]
pub struct Kept(Rc<RefCell<Vec<Function<SimVcpu>>>>);

impl Driver<SimVcpu> for Kept {
    fn name(&self) -> &'static str {
        "test"
    }

    /// Takes storage controllers.
    fn take(&self, function: Function<SimVcpu>) -> Result<(), Function<SimVcpu>> {
        if function.identity().class.0 >> 16 != 1 {
            return Err(function);
        }
        self.0.borrow_mut().push(function);
        Ok(())
    }
}

/// Accesses to registers, each with BAR, offset, width and the value written.
pub type Accesses = Arc<Mutex<Vec<(u8, u64, usize, Option<u64>)>>>;

/// A function that notes accesses, and answers with the offset.
pub struct Noting(pub Accesses);

impl DeviceModel for Noting {
    fn read(&mut self, bar: u8, offset: u64, width: usize) -> u64 {
        let mut all = self.0.lock().expect("no test panics there");
        all.push((bar, offset, width, None));
        offset
    }

    fn write(&mut self, bar: u8, offset: u64, width: usize, value: u64) {
        let mut all = self.0.lock().expect("no test panics there");
        all.push((bar, offset, width, Some(value)));
    }
}

pub struct Machine {
    pub sim: Sim,
    pub domain: SimDomain,
    pub kept: Kept,
    executors: Vec<RefCell<Executor<SimVcpu>>>,
    /// The test itself has broken a rule.
    allows_violations: Cell<bool>,
}

impl Machine {
    /// A machine whose domain has no function yet. Its frontend runs.
    pub fn new() -> Machine {
        let sim = Sim::new();
        let domain = sim.add_domain_with(DomainConfig {
            kind: DomainKind::Pv,
            vcpus: VCPUS,
            driver_domain: true,
            ..DomainConfig::default()
        });
        let executor = |vcpu| RefCell::new(Executor::new(domain.hypervisor_of(VcpuId(vcpu))));
        let executors: Vec<_> = (0..VCPUS).map(executor).collect();
        let handle = executors[0].borrow().handle();
        // SAFETY: the domain's xenstore ring, used here alone.
        let ring = unsafe { Ring::new(domain.hypervisor(), domain.store_ring()) };
        let store = Client::start(&handle, ring);
        let memory = Arc::new(domain.hypervisor());
        let grants = TableOnDemand::new(domain.hypervisor());
        let options = FrontendOptions {
            timeout: TIMEOUT,
            ..FrontendOptions::default()
        };
        let mut frontend = Frontend::new(handle.clone(), store, memory, grants, options);
        let kept = Kept::default();
        frontend.add_driver(Rc::new(kept.clone()));
        handle.spawn(async move {
            let Err(error) = frontend.follow().await;
            panic!("the frontend has ended: {error}");
        });
        let machine = Machine {
            sim,
            domain,
            kept,
            executors,
            allows_violations: Cell::new(false),
        };
        machine.run();
        machine
    }

    /// The same, with functions from its start on; returns the handles of dom0's side.
    pub fn with(configs: &[FunctionConfig]) -> (Machine, Vec<SimFunction>) {
        let machine = Machine::new();
        let functions: Vec<_> = configs.iter().map(|config| machine.add(config)).collect();
        let all: Vec<&SimFunction> = functions.iter().collect();
        machine.attach(&all);
        (machine, functions)
    }

    /// Adds a function that no domain has.
    pub fn add(&self, config: &FunctionConfig) -> SimFunction {
        self.sim
            .add_function(config, |_| Noting(Accesses::default()))
    }

    /// Gives functions to the domain.
    pub fn attach(&self, functions: &[&SimFunction]) {
        self.sim.attach_functions(&self.domain, functions);
        self.run();
    }

    pub fn handle(&self) -> Handle<SimVcpu> {
        self.handle_of(0)
    }

    pub fn handle_of(&self, vcpu: usize) -> Handle<SimVcpu> {
        self.executors[vcpu].borrow().handle()
    }

    /// Runs everything until nothing moves any more.
    pub fn run(&self) {
        self.sim.run_until_idle(|| {
            let mut moved = false;
            for executor in &self.executors {
                moved |= executor.borrow_mut().run_until_idle();
            }
            moved
        });
    }

    /// Moves the clock, and runs everything.
    pub fn pass(&self, span: Duration) {
        self.sim.advance(span);
        self.run();
    }

    /// Starts a task on the first vCPU, and returns where its result will be.
    pub fn start<T: 'static>(
        &self,
        task: impl Future<Output = T> + 'static,
    ) -> Rc<RefCell<Option<T>>> {
        let result = Rc::new(RefCell::new(None));
        let told = result.clone();
        self.handle().spawn(async move {
            let value = task.await;
            told.replace(Some(value));
        });
        self.run();
        result
    }

    /// Runs a task of the first vCPU to its end, without any time passing.
    pub fn finish<T: 'static>(&self, task: impl Future<Output = T> + 'static) -> T {
        let result = self.start(task);
        result.take().expect("the task waits for something")
    }

    /// Takes the only function that the driver has.
    pub fn take(&self) -> Function<SimVcpu> {
        let mut all = self.kept.0.borrow_mut();
        assert_eq!(all.len(), 1, "{:?}", names(&all));
        all.remove(0)
    }

    /// The names of the functions that the driver has.
    pub fn names(&self) -> Vec<String> {
        names(&self.kept.0.borrow())
    }

    /// Takes a function that the driver has, by its name.
    pub fn take_named(&self, name: &str) -> Function<SimVcpu> {
        let mut all = self.kept.0.borrow_mut();
        let named = all.iter().position(|one| one.name().to_string() == name);
        all.remove(named.expect("the function is there"))
    }

    /// Lets the test break rules itself.
    pub fn allow_violations(&self) {
        self.allows_violations.set(true);
    }

    /// The states of backend and frontend.
    pub fn states(&self) -> (String, String) {
        let (mut store, id) = (self.sim.store(), self.domain.id());
        let backend = backend_state(&mut store, id).unwrap_or_default();
        (backend, frontend_state(&mut store, id).unwrap_or_default())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if !std::thread::panicking() && !self.allows_violations.get() {
            self.sim.assert_no_violations();
        }
    }
}

fn names(all: &[Function<SimVcpu>]) -> Vec<String> {
    all.iter().map(|one| one.name().to_string()).collect()
}

/// States as `Machine::states` returns them.
pub fn states(backend: &str, frontend: &str) -> (String, String) {
    (backend.to_string(), frontend.to_string())
}

/// A function of another class, at another place.
pub fn network() -> FunctionConfig {
    FunctionConfig {
        name: "0000:04:00.1".to_string(),
        id: (0x8086, 0x10d3),
        class: 0x02_00_00,
        ..FunctionConfig::default()
    }
}

/// A second storage controller.
pub fn second() -> FunctionConfig {
    FunctionConfig {
        name: "0001:05:1f.7".to_string(),
        ..FunctionConfig::default()
    }
}
