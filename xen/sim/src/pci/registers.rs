//! Registers that a domain has mapped.

use super::super::vcpu::SimVcpu;
use super::super::world::{DomainKind, Shared};
use bulkhead_xen::{DomId, Errno, Mfn, Mmio, PAGE_SHIFT, PAGE_SIZE, Registers, is_register};

/// Registers of a function, mapped by a domain.
pub struct SimRegisters {
    world: Shared,
    domain: DomId,
    first: Mfn,
    pages: usize,
}

// SAFETY: registers of the simulated machine are not memory at all.
unsafe impl Mmio for SimVcpu {
    type Registers = SimRegisters;

    fn map_registers(&self, first: Mfn, pages: usize) -> Result<SimRegisters, Errno> {
        let mut world = self.world.lock();
        let domain = world.alive_mut(self.domain).ok_or(Errno::SRCH)?;
        if domain.kind != DomainKind::Pv {
            return Err(Errno::NOSYS);
        }
        for frame in (first.0..).take(pages).map(Mfn) {
            let (function, ..) = world.register_page(frame).ok_or(Errno::PERM)?;
            let function = world.function(function);
            if function.owner != Some(self.domain) {
                return Err(Errno::PERM);
            }
            if function.config.is_protected(frame) {
                return Err(Errno::ACCES);
            }
        }
        let domain = world.alive_mut(self.domain).ok_or(Errno::SRCH)?;
        domain.register_pages += pages;
        Ok(SimRegisters {
            world: self.world.clone(),
            domain: self.domain,
            first,
            pages,
        })
    }
}

impl Drop for SimRegisters {
    fn drop(&mut self) {
        if let Some(domain) = self.world.lock().domain_mut(self.domain) {
            domain.register_pages -= self.pages;
        }
    }
}

impl SimRegisters {
    /// Runs something on the model behind a register, as long as it answers.
    fn at<T>(
        &self,
        offset: usize,
        width: usize,
        run: impl FnOnce(&mut dyn super::DeviceModel, u8, u64) -> T,
    ) -> Option<T> {
        if !is_register(offset, width, self.len()) {
            return None;
        }
        let frame = Mfn(self.first.0 + (offset >> PAGE_SHIFT) as u64);
        let mut world = self.world.lock();
        let (index, bar, page) = world.register_page(frame)?;
        let function = world.function(index);
        let at = page.wrapping_add((offset % PAGE_SIZE) as u64);
        let answers = function.owner == Some(self.domain)
            && function.config.answers()
            && function.config.has_register(bar, at, width);
        let model = function.model.clone().filter(|_| answers)?;
        // The model calls the machine.
        drop(world);
        let mut model = model.lock().expect("no model panics");
        Some(run(&mut *model, bar, at))
    }

    fn read(&self, offset: usize, width: usize) -> u64 {
        let read = |model: &mut dyn super::DeviceModel, bar, at| model.read(bar, at, width);
        self.at(offset, width, read).unwrap_or(u64::MAX)
    }

    fn write(&self, offset: usize, width: usize, value: u64) {
        self.at(offset, width, |model, bar, at| {
            model.write(bar, at, width, value)
        });
    }
}

impl Registers for SimRegisters {
    fn len(&self) -> usize {
        self.pages * PAGE_SIZE
    }

    fn read8(&self, offset: usize) -> u8 {
        self.read(offset, 1) as u8
    }

    fn write8(&self, offset: usize, value: u8) {
        self.write(offset, 1, value.into());
    }

    fn read16(&self, offset: usize) -> u16 {
        self.read(offset, 2) as u16
    }

    fn write16(&self, offset: usize, value: u16) {
        self.write(offset, 2, value.into());
    }

    fn read32(&self, offset: usize) -> u32 {
        self.read(offset, 4) as u32
    }

    fn write32(&self, offset: usize, value: u32) {
        self.write(offset, 4, value.into());
    }
}
