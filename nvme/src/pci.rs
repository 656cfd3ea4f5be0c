//! The driver for crate `pci`, which takes the PCI functions that are NVMe controllers.

use crate::controllers::Controllers;
use crate::function::{BusMastering, ControllerFunction, ControllerVectors};
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use bulkhead_pci::{Departure, Driver, PciError, PciHost};
use bulkhead_xen::{Errno, Port, Registers};

/// The class of a function that is an NVMe controller: mass storage, non-volatile memory, NVM Express.
const CLASS: u32 = 0x01_08_02;

/// The BAR with the registers.
const BAR: u8 = 0;

/// The most bytes of registers that are mapped. Queue pairs whose doorbells lie beyond are not used.
const MOST_REGISTERS: u64 = 64 << 10;

/// The driver of NVMe controllers among the PCI functions of this domain.
pub struct NvmeDriver<H: PciHost>(Rc<Controllers<H>>);

impl<H: PciHost> NvmeDriver<H> {
    /// Returns the driver that adds the controllers which it is offered to these.
    pub fn new(controllers: Rc<Controllers<H>>) -> Self {
        NvmeDriver(controllers)
    }
}

impl<H: PciHost> Driver<H> for NvmeDriver<H> {
    fn name(&self) -> &'static str {
        "nvme"
    }

    fn take(&self, function: bulkhead_pci::Function<H>) -> Result<(), bulkhead_pci::Function<H>> {
        if function.identity().class.0 != CLASS {
            return Err(function);
        }
        self.0
            .handle()
            .spawn(drive(self.0.clone(), Rc::new(function)));
        Ok(())
    }
}

/// Drives a function until it is to be let go of and, if it is detached, until no disk lies on it.
async fn drive<H: PciHost>(
    controllers: Rc<Controllers<H>>,
    function: Rc<bulkhead_pci::Function<H>>,
) {
    let name = function.name().to_string();
    let attached = loop {
        let error = match Attached::open(&controllers, &function).await {
            Ok(attached) => break attached,
            Err(error) => error,
        };
        log::error!("nvme:{name}: it cannot be used: {error}");
        controllers.set_unusable(&name, error.to_string());
        if function.departs_before_retry(&error).await {
            return controllers.forget_unusable(&name);
        }
    };
    controllers.forget_unusable(&name);
    controllers.add(Rc::new(attached));
    match function.departure().await {
        Departure::Gone => controllers.give_up(&name).await,
        Departure::Detached => {
            while let Err(in_use) = controllers.remove(&name).await {
                log::error!("{in_use}: it is kept until they are detached");
                controllers.until_unused(&name).await;
            }
        }
    }
}

/// A function with its registers and its interrupts.
struct Attached<H: PciHost> {
    name: String,
    function: Rc<bulkhead_pci::Function<H>>,
    registers: Arc<dyn Registers>,
    vectors: Arc<PciVectors>,
}

impl<H: PciHost> Attached<H> {
    async fn open(
        controllers: &Controllers<H>,
        function: &Rc<bulkhead_pci::Function<H>>,
    ) -> Result<Self, PciError> {
        let offsets = function.register_offsets(BAR).await?;
        let end = offsets.end.min(MOST_REGISTERS);
        if end == 0 {
            return Err(PciError::Protected { bar: BAR });
        }
        let registers = function.open_registers(BAR, 0..end).await?;
        // One for the admin queue, and one for each queue pair. They can be enabled only once, so nothing below may
        // fail.
        let vectors = match function
            .enable_interrupts(controllers.vcpus().len() + 1)
            .await
        {
            Ok(vectors) => Some(vectors),
            Err(PciError::NoInterrupts) => {
                log::warn!(
                    "nvme:{}: it has no interrupts and is polled",
                    function.name()
                );
                None
            }
            Err(error) => return Err(error),
        };
        Ok(Attached {
            name: function.name().to_string(),
            function: function.clone(),
            registers,
            vectors: Arc::new(PciVectors(vectors)),
        })
    }
}

impl<H: PciHost> ControllerFunction<H> for Attached<H> {
    fn name(&self) -> &str {
        &self.name
    }

    fn registers(&self) -> Arc<dyn Registers> {
        self.registers.clone()
    }

    fn vectors(&self) -> Arc<dyn ControllerVectors<H>> {
        self.vectors.clone()
    }

    fn set_bus_mastering(&self, on: bool) -> BusMastering<'_> {
        Box::pin(async move {
            let set = self.function.set_bus_mastering(on).await;
            set.map_err(|error| error.to_string())
        })
    }
}

/// The interrupts of a function, if it has any.
struct PciVectors(Option<bulkhead_pci::Vectors>);

impl<H: PciHost> ControllerVectors<H> for PciVectors {
    fn count(&self) -> usize {
        self.0.as_ref().map_or(0, bulkhead_pci::Vectors::count)
    }

    fn bind(&self, vector: usize, hypervisor: &H) -> Result<Port, Errno> {
        match &self.0 {
            Some(vectors) => vectors.get(vector).bind_port(hypervisor),
            None => Err(Errno::INVAL),
        }
    }

    fn handled(&self, vector: usize, hypervisor: &H) {
        let Some(vectors) = &self.0 else {
            return;
        };
        let pirq = vectors.get(vector).pirq();
        if hypervisor.needs_eoi(pirq)
            && let Err(error) = hypervisor.eoi(pirq)
        {
            log::error!("Xen does not take the end of interrupt {pirq}: {error}");
        }
    }
}
