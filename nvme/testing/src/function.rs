//! The controller's PCI function and its registers.

use crate::device::Device;
use bulkhead_nvme::{BusMastering, ControllerFunction, ControllerVectors};
use bulkhead_xen::{Errno, Port, Registers};
use bulkhead_xen_sim::SimVcpu;
use bulkhead_xen_sim::pci::DeviceModel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

type Shared = Arc<Mutex<Device>>;

fn lock(device: &Shared) -> MutexGuard<'_, Device> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The PCI function of a controller.
pub struct FakeFunction {
    name: String,
    device: Shared,
}

impl FakeFunction {
    pub(crate) fn new(name: &str, device: Shared) -> FakeFunction {
        FakeFunction {
            name: name.to_string(),
            device,
        }
    }
}

impl ControllerFunction<SimVcpu> for FakeFunction {
    fn name(&self) -> &str {
        &self.name
    }

    fn registers(&self) -> Arc<dyn Registers> {
        Arc::new(FakeRegisters(self.device.clone()))
    }

    fn vectors(&self) -> Arc<dyn ControllerVectors<SimVcpu>> {
        Arc::new(FakeVectors(self.device.clone()))
    }

    fn set_bus_mastering(&self, on: bool) -> BusMastering<'_> {
        Box::pin(async move {
            let mut device = lock(&self.device);
            if device.vanished {
                return Err("the function is not there".to_string());
            }
            if device.stays_master && !on {
                return Err("pciback does not do that".to_string());
            }
            device.bus.direct().mastering = on;
            Ok(())
        })
    }
}

struct FakeVectors(Shared);

impl ControllerVectors<SimVcpu> for FakeVectors {
    fn count(&self) -> usize {
        lock(&self.0).config.vectors
    }

    fn bind(&self, vector: usize, hypervisor: &SimVcpu) -> Result<Port, Errno> {
        let mut device = lock(&self.0);
        if vector >= device.config.vectors {
            return Err(Errno::INVAL);
        }
        device.bus.direct().bind(vector, hypervisor)
    }

    fn handled(&self, _: usize, _: &SimVcpu) {}
}

/// The registers of a controller.
pub struct FakeRegisters(pub(crate) Shared);

/// The registers of a controller that is a PCI function, as long as a test has a handle on it. All are of four bytes.
pub struct PassedRegisters(pub(crate) Weak<Mutex<Device>>);

impl DeviceModel for PassedRegisters {
    fn read(&mut self, _: u8, offset: u64, width: usize) -> u64 {
        match self.0.upgrade().filter(|_| width == 4) {
            Some(device) => FakeRegisters(device).read32(offset as usize).into(),
            None => u64::MAX,
        }
    }

    fn write(&mut self, _: u8, offset: u64, width: usize, value: u64) {
        if let Some(device) = self.0.upgrade().filter(|_| width == 4) {
            FakeRegisters(device).write32(offset as usize, value as u32);
        }
    }
}

/// The bytes of the BAR: the doorbells of 64 queue pairs at the widest stride that is tried.
const LEN: usize = 0x1_0000;

impl Registers for FakeRegisters {
    fn len(&self) -> usize {
        LEN
    }

    fn read8(&self, _: usize) -> u8 {
        u8::MAX
    }

    fn write8(&self, _: usize, _: u8) {}

    fn read16(&self, _: usize) -> u16 {
        u16::MAX
    }

    fn write16(&self, _: usize, _: u16) {}

    fn read32(&self, offset: usize) -> u32 {
        let device = lock(&self.0);
        if device.vanished {
            return u32::MAX;
        }
        let config = &device.config;
        match offset {
            0x00 => 15 << 24 | (config.queue_entries as u32 - 1),
            0x04 => u32::from(config.stride) | 1 << 5,
            0x08 => 0x0001_0400,
            0x14 => device.configuration,
            0x1c => {
                let shut_down = if device.shut_down { 2 << 2 } else { 0 };
                u32::from(device.ready) | u32::from(device.fatal) << 1 | shut_down
            }
            0x24 => device.admin_attributes,
            _ => 0,
        }
    }

    fn write32(&self, offset: usize, value: u32) {
        let mut device = lock(&self.0);
        if device.vanished {
            return;
        }
        let half = |old: u64, high: bool| match high {
            true => old & 0xffff_ffff | u64::from(value) << 32,
            false => old & !0xffff_ffff | u64::from(value),
        };
        match offset {
            0x14 => device.configuration = value,
            0x24 => device.admin_attributes = value,
            0x28 | 0x2c => device.admin_submission = half(device.admin_submission, offset == 0x2c),
            0x30 | 0x34 => device.admin_completion = half(device.admin_completion, offset == 0x34),
            0x1000.. => {
                let number = (offset - 0x1000) / (4 << device.config.stride);
                let queue = (number / 2) as u16;
                device.doorbells += u64::from(queue > 0);
                let possible = match number % 2 {
                    0 => {
                        let submissions = device.submissions.get_mut(&queue);
                        submissions.is_some_and(|queue| queue.ring(value as usize))
                    }
                    _ => {
                        device.finish_untimely(queue);
                        let completions = device.completions.get_mut(&queue);
                        completions.is_some_and(|queue| queue.ring(value as usize))
                    }
                };
                assert!(possible, "doorbell {offset:#x} cannot be {value}");
            }
            _ => {}
        }
    }
}
