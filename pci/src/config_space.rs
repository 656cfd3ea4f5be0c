//! A function's configuration space: the registers from 0 to 255 that every function has.

use crate::address::Slot;
use crate::bars::{self, BadBar, Bar};
use crate::capabilities::{Capability, HAS_LIST, POINTER, STATUS_AND_COMMAND, Walk};
use crate::channel::{Channel, Operation};
use crate::error::{OperationError, PciError};
use alloc::rc::Rc;
use alloc::vec::Vec;
use bulkhead_xen::abi::pciif::{CONF_READ, CONF_WRITE};
use bulkhead_xen::{Hypervisor, Pirq};

/// The register `COMMAND`.
const COMMAND: u16 = 0x04;
/// The bit of `COMMAND` that lets the function answer at its memory BARs.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// The bit of `COMMAND` that lets the function access memory, and send interrupts as messages.
pub const COMMAND_MASTER: u16 = 1 << 2;

/// The configuration space of a function. Each access is an operation of pciback's: it takes milliseconds, or seconds
/// while dom0 is busy.
///
/// pciback lets this domain write a few registers of the header. It silently drops writes to all others, unless the
/// device is configured with `permissive=1`.
pub struct ConfigSpace<H: Hypervisor> {
    channel: Rc<Channel<H>>,
    slot: Slot,
}

impl<H: Hypervisor> ConfigSpace<H> {
    pub(crate) fn new(channel: Rc<Channel<H>>, slot: Slot) -> Self {
        ConfigSpace { channel, slot }
    }

    /// Reads a byte.
    pub async fn read8(&self, offset: u16) -> Result<u8, OperationError> {
        self.read(offset, 1).await.map(|value| value as u8)
    }

    /// Reads two bytes.
    pub async fn read16(&self, offset: u16) -> Result<u16, OperationError> {
        self.read(offset, 2).await.map(|value| value as u16)
    }

    /// Reads four bytes.
    pub async fn read32(&self, offset: u16) -> Result<u32, OperationError> {
        self.read(offset, 4).await
    }

    /// Writes two bytes.
    pub async fn write16(&self, offset: u16, value: u16) -> Result<(), OperationError> {
        self.write(offset, 2, value.into()).await
    }

    /// Writes four bytes.
    pub async fn write32(&self, offset: u16, value: u32) -> Result<(), OperationError> {
        self.write(offset, 4, value).await
    }

    async fn read(&self, offset: u16, size: u8) -> Result<u32, OperationError> {
        let operation = Operation {
            command: CONF_READ,
            offset,
            size,
            value: 0,
        };
        self.channel.operate(self.slot, operation).await
    }

    async fn write(&self, offset: u16, size: u8, value: u32) -> Result<(), OperationError> {
        let operation = Operation {
            command: CONF_WRITE,
            offset,
            size,
            value,
        };
        self.channel.operate(self.slot, operation).await.map(drop)
    }

    /// Sets and clears bits of `COMMAND`.
    pub(crate) async fn command(&self, set: u16, clear: u16) -> Result<(), OperationError> {
        let now = self.read16(COMMAND).await?;
        match now & !clear | set {
            wanted if wanted == now => Ok(()),
            wanted => self.write16(COMMAND, wanted).await,
        }
    }

    /// Returns the list of capabilities.
    pub(crate) async fn capabilities(&self) -> Result<Vec<Capability>, OperationError> {
        let mut found = Vec::new();
        if self.read32(STATUS_AND_COMMAND).await? & HAS_LIST == 0 {
            return Ok(found);
        }
        let pointer = self.read8(POINTER).await?;
        let (mut walk, mut next) = Walk::begin(pointer.into());
        while let Some(offset) = next {
            let value = self.read32(offset.into()).await?;
            let (capability, after) = walk.read(offset, value);
            found.extend(capability);
            next = after;
        }
        Ok(found)
    }

    /// Finds out where a BAR is, and how large. pciback does not pass writes to a BAR on to the function, and answers
    /// reads from what dom0 knows of it (`bar_write` and `bar_read` of Linux's xen-pciback).
    pub(crate) async fn bar(&self, bar: u8) -> Result<Bar, PciError> {
        if bar >= bars::COUNT {
            return Err(BadBar::Missing { bar }.into());
        }
        let register = bars::FIRST + u16::from(bar) * 4;
        let (low, sized_low) = self.probe(register).await?;
        let (high, sized_high) = match bars::is_wide(low) {
            true if bar + 1 == bars::COUNT => return Err(BadBar::Nonsense { bar }.into()),
            true => self.probe(register + 4).await?,
            false => (0, u32::MAX),
        };
        Ok(Bar::new(bar, (low, high), (sized_low, sized_high))?)
    }

    /// Reads a register of a BAR as it is, and after all ones were written to it.
    async fn probe(&self, register: u16) -> Result<(u32, u32), OperationError> {
        let mut value = self.read32(register).await?;
        self.write32(register, u32::MAX).await?;
        let sized = self.read32(register).await;
        self.write32(register, value).await?;
        let sized = sized?;
        if value == sized {
            // An earlier user of the register crashed before it wrote the address back, so that the first read returned
            // the size, too: pciback shows the size for as long as all ones were written last. In the upper register of
            // a BAR of 4 GiB or less the size is all ones, so writing the value back has not changed that. Writing 0
            // does.
            self.write32(register, 0).await?;
            value = self.read32(register).await?;
        }
        Ok((value, sized))
    }

    /// Has pciback enable MSI-X for `count` entries.
    pub(crate) async fn enable_msix(
        &self,
        command: u32,
        count: usize,
    ) -> Result<Vec<Pirq>, OperationError> {
        self.channel.enable_msix(self.slot, command, count).await
    }

    /// Has pciback enable or disable interrupts (`XEN_PCI_OP_enable_msi` and its like); returns the value of its
    /// answer.
    pub(crate) async fn interrupts(&self, command: u32) -> Result<u32, OperationError> {
        let operation = Operation {
            command,
            ..Operation::default()
        };
        self.channel.operate(self.slot, operation).await
    }
}
