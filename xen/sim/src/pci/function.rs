//! A test's handle on one function, and the function's configuration.

use super::super::device::{DmaFault, SimDevice};
use super::super::world::Shared;
use bulkhead_xen::{DmaAddr, DomId};
use std::fmt;
use std::sync::TryLockError;

/// The device behind a function's registers. It is called for each access, with the width in bytes, and may access
/// memory and raise interrupts by the function's handle.
pub trait DeviceModel: Send {
    /// Reads a register.
    fn read(&mut self, bar: u8, offset: u64, width: usize) -> u64;

    /// Writes a register.
    fn write(&mut self, bar: u8, offset: u64, width: usize, value: u64);
}

/// A memory BAR.
#[derive(Clone, Copy, Debug)]
pub struct BarConfig {
    /// Its number; one of 64 bits takes the next one, too.
    pub number: u8,
    /// Its bytes, a power of two.
    pub size: u64,
    /// True if it has 64 bits.
    pub wide: bool,
}

/// An MSI-X table.
#[derive(Clone, Copy, Debug)]
pub struct MsixConfig {
    /// Its entries.
    pub entries: u16,
    /// The BAR that has it, and its pending bits.
    pub bar: u8,
    /// Its offset there.
    pub table: u32,
    /// The offset of the pending bits.
    pub pending: u32,
}

/// The configuration of a function.
#[derive(Clone, Debug)]
pub struct FunctionConfig {
    /// Its name in dom0, with the PCI domain.
    pub name: String,
    /// Vendor and device.
    pub id: (u16, u16),
    /// Base class, subclass and interface.
    pub class: u32,
    /// The BARs.
    pub bars: Vec<BarConfig>,
    /// MSI-X, if it has that.
    pub msix: Option<MsixConfig>,
    /// True if it has MSI.
    pub msi: bool,
    /// True if it has an interrupt line.
    pub line: bool,
    /// True if dom0 has prepared MSI-X, as pciback does when the function becomes assignable.
    pub prepared: bool,
}

impl Default for FunctionConfig {
    /// Returns that of an NVMe controller as QEMU emulates it.
    fn default() -> Self {
        FunctionConfig {
            name: "0000:03:00.0".to_string(),
            id: (0x1b36, 0x0010),
            class: 0x01_08_02,
            bars: vec![BarConfig {
                number: 0,
                size: 0x4000,
                wide: true,
            }],
            msix: Some(MsixConfig {
                entries: 65,
                bar: 0,
                table: 0x2000,
                pending: 0x3000,
            }),
            msi: false,
            line: true,
            prepared: true,
        }
    }
}

/// A function of the machine. Clones are the same.
#[derive(Clone)]
pub struct SimFunction {
    pub(super) world: Shared,
    pub(super) index: usize,
}

impl SimFunction {
    pub(super) fn new(world: Shared, index: usize) -> Self {
        SimFunction { world, index }
    }

    /// Returns whether nothing is in the middle of an access to its registers.
    pub fn is_idle(&self) -> bool {
        if !self.world.is_idle() {
            return false;
        }
        let model = self.world.lock().function(self.index).model.clone();
        model.is_none_or(|model| !matches!(model.try_lock(), Err(TryLockError::WouldBlock)))
    }

    /// Returns the domain that has it.
    pub fn owner(&self) -> Option<DomId> {
        self.world.lock().function(self.index).owner
    }

    /// Returns a register of its configuration space, as the function has it.
    pub fn config(&self, offset: u8) -> u32 {
        self.world.lock().function(self.index).config.word(offset)
    }

    /// Sets a register of its configuration space, whatever becomes of it.
    pub fn set_config(&self, offset: u8, value: u32) {
        let mut world = self.world.lock();
        world.function(self.index).config.set_word(offset, value);
    }

    /// Returns whether it may access memory.
    pub fn is_master(&self) -> bool {
        self.world.lock().function(self.index).config.is_master()
    }

    /// Returns the number of interrupts that are enabled as messages.
    pub fn messages(&self) -> usize {
        self.world.lock().function(self.index).config.messages()
    }

    /// Reads memory from a bus address on.
    pub fn read(&self, from: DmaAddr, bytes: &mut [u8]) -> Result<(), DmaFault> {
        self.device(from)?.read(from, bytes)
    }

    /// Writes memory from a bus address on.
    pub fn write(&self, to: DmaAddr, bytes: &[u8]) -> Result<(), DmaFault> {
        self.device(to)?.write(to, bytes)
    }

    /// Raises one of its interrupts, by the number of its entry in the MSI-X table. With fewer interrupts enabled, it
    /// raises the only one. Without any, nothing happens.
    pub fn interrupt(&self, entry: u16) {
        self.world.lock().raise(self.index, entry);
    }

    fn device(&self, address: DmaAddr) -> Result<SimDevice, DmaFault> {
        let mut world = self.world.lock();
        let function = world.function(self.index);
        match function.owner.filter(|_| function.config.is_master()) {
            Some(owner) => Ok(SimDevice::new(self.world.clone(), owner)),
            None => Err(DmaFault {
                address: address.get(),
            }),
        }
    }
}

impl fmt::Debug for SimFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimFunction({})", self.index)
    }
}
