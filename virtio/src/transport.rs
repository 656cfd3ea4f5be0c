//! The registers of a device: its status, its features, and its queues (virtio 1.2, section 4.1.4.3).

use crate::error::StartError;
use crate::structures::Structures;
use bulkhead_xen::{Registers, StopDevice};
use virtio_spec::DeviceStatus;

// `virtio_pci_common_cfg`, by the offsets of its fields.
const DEVICE_FEATURE_SELECT: usize = 0x00;
const DEVICE_FEATURE: usize = 0x04;
const DRIVER_FEATURE_SELECT: usize = 0x08;
const DRIVER_FEATURE: usize = 0x0c;
const CONFIG_MSIX_VECTOR: usize = 0x10;
const NUM_QUEUES: usize = 0x12;
const DEVICE_STATUS: usize = 0x14;
const CONFIG_GENERATION: usize = 0x15;
const QUEUE_SELECT: usize = 0x16;
const QUEUE_SIZE: usize = 0x18;
const QUEUE_MSIX_VECTOR: usize = 0x1a;
const QUEUE_ENABLE: usize = 0x1c;
const QUEUE_NOTIFY_OFF: usize = 0x1e;
const QUEUE_DESC: usize = 0x20;
const QUEUE_DRIVER: usize = 0x28;
const QUEUE_DEVICE: usize = 0x30;

/// The vector that means no interrupt (`VIRTIO_MSI_NO_VECTOR`).
const NO_VECTOR: u16 = 0xffff;

/// The device status (virtio 1.2, section 2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State(u8);

impl State {
    /// Returns whether every bit is set: the device does not answer.
    pub fn is_gone(self) -> bool {
        self.0 == u8::MAX
    }

    /// Returns whether the device has completed a reset, and accesses no memory.
    pub fn is_reset(self) -> bool {
        self.0 == 0
    }

    /// Returns whether the device has failed, and only a reset may help.
    pub fn needs_reset(self) -> bool {
        self.has(DeviceStatus::DEVICE_NEEDS_RESET)
    }

    /// Returns whether a bit is set.
    pub fn has(self, bit: DeviceStatus) -> bool {
        self.0 & bit.bits() != 0
    }
}

/// A device's registers.
pub struct Transport {
    structures: Structures,
}

/// The offset of the register by which the device is notified of a queue, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doorbell(usize);

impl Transport {
    /// Returns the registers in these structures.
    pub fn new(structures: Structures) -> Transport {
        Transport { structures }
    }

    fn common(&self) -> &dyn Registers {
        &*self.structures.common
    }

    /// Returns the configuration of the disk (`virtio_blk_config`).
    pub fn disk(&self) -> &dyn Registers {
        &*self.structures.device
    }

    /// Reads the status.
    pub fn state(&self) -> State {
        State(self.common().read8(DEVICE_STATUS))
    }

    /// Writes the status bits that the driver sets.
    pub fn set_state(&self, state: DeviceStatus) {
        self.common().write8(DEVICE_STATUS, state.bits());
    }

    /// Has the device reset itself. The reset is complete when its status [says so](State::is_reset).
    pub fn reset(&self) {
        self.set_state(DeviceStatus::empty());
    }

    /// Reads the features that the device offers.
    pub fn offered(&self) -> u64 {
        let common = self.common();
        let read = |half: u32| {
            common.write32(DEVICE_FEATURE_SELECT, half);
            u64::from(common.read32(DEVICE_FEATURE))
        };
        read(0) | read(1) << 32
    }

    /// Accepts features. Once the driver has set FEATURES_OK, the status shows whether the device agrees.
    pub fn accept(&self, features: u64) {
        for half in [0, 1] {
            self.common().write32(DRIVER_FEATURE_SELECT, half);
            let bits = (features >> (32 * half)) as u32;
            self.common().write32(DRIVER_FEATURE, bits);
        }
    }

    /// Reads the generation of the disk's configuration, which changes when the configuration does.
    pub fn generation(&self) -> u8 {
        self.common().read8(CONFIG_GENERATION)
    }

    /// Reads the number of queues.
    pub fn queues(&self) -> u16 {
        self.common().read16(NUM_QUEUES)
    }

    /// Has a change of the configuration raise an interrupt by this MSI-X vector, or none. Returns false if the device
    /// refuses.
    pub fn set_config_vector(&self, vector: Option<u16>) -> bool {
        let vector = vector.unwrap_or(NO_VECTOR);
        self.common().write16(CONFIG_MSIX_VECTOR, vector);
        self.common().read16(CONFIG_MSIX_VECTOR) == vector
    }

    /// Reads the most entries of a queue; 0 if there is no such queue.
    pub fn most_entries(&self, queue: u16) -> u16 {
        self.common().write16(QUEUE_SELECT, queue);
        self.common().read16(QUEUE_SIZE)
    }

    /// Gives the device a queue: its number of entries, the bus addresses of its three parts, and its MSI-X vector.
    /// Returns where the device is notified of it.
    ///
    /// # Errors
    /// If the device refuses the vector, or the place of the notification is not within its registers.
    pub fn set_up_queue(
        &self,
        queue: u16,
        entries: u16,
        [descriptors, driver, device]: [u64; 3],
        vector: Option<u16>,
    ) -> Result<Doorbell, StartError> {
        let common = self.common();
        common.write16(QUEUE_SELECT, queue);
        common.write16(QUEUE_SIZE, entries);
        common.write64(QUEUE_DESC, descriptors);
        common.write64(QUEUE_DRIVER, driver);
        common.write64(QUEUE_DEVICE, device);
        let vector = vector.unwrap_or(NO_VECTOR);
        common.write16(QUEUE_MSIX_VECTOR, vector);
        let refused = |what: &str| {
            let reason = alloc::format!("it does not give queue {queue} {what}");
            StartError::Unusable(reason)
        };
        if common.read16(QUEUE_MSIX_VECTOR) != vector {
            return Err(refused("an interrupt"));
        }
        let offset = usize::from(common.read16(QUEUE_NOTIFY_OFF));
        let offset = offset.saturating_mul(self.structures.multiplier);
        let room = self.structures.notify.len();
        if !offset.is_multiple_of(2) || offset.saturating_add(2) > room {
            return Err(refused("a place for notifications"));
        }
        common.write16(QUEUE_ENABLE, 1);
        Ok(Doorbell(offset))
    }

    /// Notifies the device of new chains in a queue.
    #[inline]
    pub fn notify(&self, queue: u16, doorbell: Doorbell) {
        self.structures.notify.write16(doorbell.0, queue);
    }

    /// Reads the interrupt status, which deasserts an interrupt line.
    pub fn end_line_interrupt(&self) {
        if let Some(isr) = &self.structures.isr {
            isr.read8(0);
        }
    }
}

/// A reset: the device ends its accesses to memory.
impl StopDevice for Transport {
    fn begin_stop(&self) {
        self.reset();
    }

    fn has_stopped(&self) -> bool {
        let state = self.state();
        state.is_reset() || state.is_gone()
    }
}
