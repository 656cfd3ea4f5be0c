//! The way in which the controller reaches memory and its interrupts.

use bulkhead_xen::{DmaAddr, Errno, Hypervisor, Port};
use bulkhead_xen_sim::pci::SimFunction;
use bulkhead_xen_sim::{SimDevice, SimDomain, SimVcpu};
use std::collections::BTreeMap;

/// The controller cannot read or write there.
pub struct NoAccess;

/// The way to memory and to the domain.
pub enum Bus {
    /// The driver has the controller without any PCI function.
    Direct(Direct),
    /// The controller is a PCI function, which dom0 passes through.
    Function(SimFunction),
}

/// A controller that its driver has as it is.
pub struct Direct {
    dma: SimDevice,
    dom0: SimDomain,
    domain: SimDomain,
    pub mastering: bool,
    /// The other ends of its interrupts, in dom0.
    interrupts_to: BTreeMap<usize, Port>,
}

impl Direct {
    pub fn new(dom0: SimDomain, domain: &SimDomain) -> Direct {
        Direct {
            dma: domain.add_device(),
            dom0,
            domain: domain.clone(),
            mastering: false,
            interrupts_to: BTreeMap::new(),
        }
    }

    pub fn bind(&mut self, vector: usize, hypervisor: &SimVcpu) -> Result<Port, Errno> {
        let dom0 = self.dom0.hypervisor();
        let port = hypervisor.alloc_unbound(self.dom0.id())?;
        let other = dom0.bind_interdomain(self.domain.id(), port)?;
        if let Some(before) = self.interrupts_to.insert(vector, other) {
            dom0.close_port(before)?;
        }
        Ok(port)
    }
}

impl Bus {
    /// # Panics
    /// If the controller is a PCI function.
    pub fn direct(&mut self) -> &mut Direct {
        match self {
            Bus::Direct(direct) => direct,
            Bus::Function(function) => panic!("{function:?} has a driver of its own"),
        }
    }

    pub fn is_master(&self) -> bool {
        match self {
            Bus::Direct(direct) => direct.mastering,
            Bus::Function(function) => function.is_master(),
        }
    }

    pub fn read(&self, from: u64, bytes: &mut [u8]) -> Result<(), NoAccess> {
        let from = self.address(from)?;
        let done = match self {
            Bus::Direct(direct) => direct.dma.read(from, bytes),
            Bus::Function(function) => function.read(from, bytes),
        };
        done.map_err(|_| NoAccess)
    }

    pub fn write(&self, to: u64, bytes: &[u8]) -> Result<(), NoAccess> {
        let to = self.address(to)?;
        let done = match self {
            Bus::Direct(direct) => direct.dma.write(to, bytes),
            Bus::Function(function) => function.write(to, bytes),
        };
        done.map_err(|_| NoAccess)
    }

    fn address(&self, address: u64) -> Result<DmaAddr, NoAccess> {
        let address = DmaAddr::new(address).filter(|_| self.is_master());
        address.ok_or(NoAccess)
    }

    /// Raises an interrupt. Returns whether there is one.
    pub fn interrupt(&self, vector: u16) -> bool {
        match self {
            Bus::Direct(direct) => {
                let port = direct.interrupts_to.get(&usize::from(vector));
                // The driver may have closed its end.
                port.is_some_and(|port| {
                    let _ = direct.dom0.hypervisor().notify(*port);
                    true
                })
            }
            Bus::Function(function) => {
                function.interrupt(vector);
                true
            }
        }
    }
}
