//! PCI functions, and dom0's pciback that shows them to a domain.
//!
//! The rules are those of Xen (arch/x86: mm.c, irq.c, msi.c) and of Linux's pciback:
//!
//! - Frames of a BAR can be mapped by the domain that has the function, and by no other (`EPERM`). The pages of an
//!   MSI-X table and its pending bits are read-only from the time on when dom0 prepared MSI-X; here,
//!   [`Mmio`](bulkhead_xen::Mmio) refuses them, as the unikernel's runtime does.
//! - An interrupt can be bound by the domain for which dom0 has mapped it (`EPERM`), once (`EEXIST`).
//! - A function accesses memory only if bus mastering is on, and then what the IOMMU has for its domain.
//! - pciback does one operation when it is notified of it. It shows real registers, but for the header; of
//!   writes, it passes on a few bits of `COMMAND`. A BAR to which all ones were written reads as its size.
//! - MSI-X can be enabled once (`EALREADY`), by a domain whose function answers at its BARs (`ENXIO`). What was enabled
//!   as MSI-X is not disabled as MSI. That dom0 enables what it has not prepared ends a real domain, and is a
//!   [`Violation`](super::Violation) here.

mod config;
mod function;
mod hypervisor;
mod pciback;
mod registers;
mod request;
pub mod toolstack;

pub use function::{BarConfig, DeviceModel, FunctionConfig, MsixConfig, SimFunction};
pub use pciback::PcibackFaults;
pub use registers::SimRegisters;

pub(super) use hypervisor::Pirqs;
pub(super) use pciback::Pciback;

use super::Sim;
use super::world::World;
use bulkhead_xen::{DomId, Mfn};
use config::Config;
use std::sync::{Arc, Mutex};

/// The machine's functions.
#[derive(Default)]
pub(super) struct Functions(Vec<State>);

/// One function.
pub(super) struct State {
    /// Its name in dom0.
    name: String,
    /// The domain that has it.
    owner: Option<DomId>,
    config: Config,
    model: Option<Arc<Mutex<dyn DeviceModel>>>,
}

impl World {
    fn function(&mut self, index: usize) -> &mut State {
        &mut self.functions.0[index]
    }

    /// The function whose BAR a frame belongs to, that BAR, and the frame's offset in it.
    fn register_page(&self, frame: Mfn) -> Option<(usize, u8, u64)> {
        self.functions
            .0
            .iter()
            .enumerate()
            .find_map(|(index, function)| {
                let (bar, offset) = function.config.page(frame)?;
                Some((index, bar, offset))
            })
    }

    /// Takes all functions away from a domain that is gone. pciback resets them.
    pub(super) fn release_functions(&mut self, id: DomId) {
        for function in &mut self.functions.0 {
            if function.owner == Some(id) {
                function.owner = None;
                function.config.reset();
            }
        }
        self.pirqs.release(id);
    }
}

impl Sim {
    /// Adds a function to the machine. `model` makes what is behind its registers, from the handle by which that
    /// accesses memory and interrupts.
    pub fn add_function<M: DeviceModel + 'static>(
        &self,
        config: &FunctionConfig,
        model: impl FnOnce(&SimFunction) -> M,
    ) -> SimFunction {
        let mut world = self.world.lock();
        let index = world.functions.0.len();
        world.functions.0.push(State {
            name: config.name.clone(),
            owner: None,
            config: Config::new(index, config),
            model: None,
        });
        drop(world);
        let function = SimFunction::new(self.world.clone(), index);
        let model = Arc::new(Mutex::new(model(&function)));
        self.world.lock().function(index).model = Some(model);
        function
    }

    /// Changes the behaviour of the pciback that serves a domain.
    ///
    /// # Panics
    /// If the domain was never given a function.
    pub fn pciback<T>(&self, domain: DomId, change: impl FnOnce(&mut PcibackFaults) -> T) -> T {
        let mut all = self.pcibacks();
        let one = all.iter_mut().find(|one| one.domain == domain);
        change(&mut one.expect("a domain with functions").faults)
    }

    /// Has pciback report an error of a function's, as dom0's kernel does for PCI Express.
    pub fn report_error(&self, domain: DomId) {
        let mut all = self.pcibacks();
        let one = all.iter_mut().find(|one| one.domain == domain);
        let one = one.expect("a domain with functions");
        one.report_error(&mut self.world.lock());
    }

    fn pcibacks(&self) -> std::sync::MutexGuard<'_, Vec<Pciback>> {
        self.pcibacks
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Lets every pciback do what there is to do; returns whether there was anything.
    pub(super) fn step_pcibacks(&self) -> bool {
        let mut all = self.pcibacks();
        if all.is_empty() {
            return false;
        }
        let mut xenstored = self.lock_xenstored();
        let mut world = self.world.lock();
        let rung = pciback::take_pending(&mut world);
        let mut moved = !rung.is_empty();
        for one in all.iter_mut() {
            moved |= one.step(&mut xenstored.server, &mut world, &rung);
        }
        moved
    }
}
