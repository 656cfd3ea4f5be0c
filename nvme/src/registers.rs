//! The registers of a controller (NVMe Base Specification, "Controller Properties"; doorbells: PCIe Transport
//! specification).

use bulkhead_xen::Registers;
use core::time::Duration;

/// Controller Capabilities (CAP).
const CAPABILITIES: usize = 0x00;
/// Version (VS).
const VERSION: usize = 0x08;
/// Controller Configuration (CC).
const CONFIGURATION: usize = 0x14;
/// Controller Status (CSTS).
const STATUS: usize = 0x1c;
/// Admin Queue Attributes (AQA).
const ADMIN_ATTRIBUTES: usize = 0x24;
/// Admin Submission Queue Base Address (ASQ).
const ADMIN_SUBMISSION: usize = 0x28;
/// Admin Completion Queue Base Address (ACQ).
const ADMIN_COMPLETION: usize = 0x30;
/// The first doorbell: that of the admin submission queue.
const DOORBELLS: usize = 0x1000;

/// CC.EN: the controller is enabled.
const ENABLE: u32 = 1;
/// CC.SHN = 01b: the controller is to shut down normally.
const SHUTDOWN: u32 = 1 << 14;
/// The configuration (CC) while the controller is enabled: queue entries of 64 and 16 bytes, pages of 4 KiB, and the
/// NVM command set.
const USUAL: u32 = 6 << 16 | 4 << 20;

/// The capabilities of a controller (CAP).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities(u64);

impl Capabilities {
    /// Returns the most entries that an I/O queue may have (MQES).
    pub fn queue_entries(self) -> usize {
        (self.0 & 0xffff) as usize + 1
    }

    /// Returns the time in which the controller becomes ready, or stops (TO): 0.5 to 127.5 seconds.
    pub fn timeout(self) -> Duration {
        // Some controllers report 0.
        Duration::from_millis(500) * (self.0 >> 24 & 0xff).max(1) as u32
    }

    /// Returns the number of bytes from one doorbell to the next (DSTRD).
    pub fn doorbell_stride(self) -> usize {
        4 << (self.0 >> 32 & 0xf)
    }

    /// Returns whether the NVM command set is there.
    pub fn has_nvm_commands(self) -> bool {
        self.0 >> 37 & 1 == 1
    }

    /// Returns the size of the controller's smallest page in bytes, as a power of two (MPSMIN).
    pub fn smallest_page(self) -> u32 {
        12 + (self.0 >> 48 & 0xf) as u32
    }
}

/// The status of a controller (CSTS).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControllerStatus(u32);

impl ControllerStatus {
    /// Returns whether every bit is set: the device does not answer.
    pub fn is_gone(self) -> bool {
        self.0 == u32::MAX
    }

    /// Returns whether the controller takes commands (RDY).
    pub fn is_ready(self) -> bool {
        self.0 & 1 == 1
    }

    /// Returns whether the controller has failed, and only a reset may help (CFS).
    pub fn is_fatal(self) -> bool {
        self.0 >> 1 & 1 == 1
    }

    /// Returns whether the shutdown that was asked for is complete (SHST).
    pub fn is_shut_down(self) -> bool {
        self.0 >> 2 & 3 == 2
    }
}

/// Reads the controller's capabilities. `None` if the device does not answer.
pub fn capabilities(registers: &dyn Registers) -> Option<Capabilities> {
    let value = registers.read64(CAPABILITIES);
    (value != u64::MAX).then_some(Capabilities(value))
}

/// Reads the version, as major and minor number.
pub fn version(registers: &dyn Registers) -> (u16, u8) {
    let value = registers.read32(VERSION);
    ((value >> 16) as u16, (value >> 8) as u8)
}

/// Reads the controller's status.
pub fn status(registers: &dyn Registers) -> ControllerStatus {
    ControllerStatus(registers.read32(STATUS))
}

/// Has the controller stop. It has stopped when it is no longer ready.
pub fn disable(registers: &dyn Registers) {
    let value = registers.read32(CONFIGURATION);
    if value != u32::MAX {
        registers.write32(CONFIGURATION, value & !ENABLE);
    }
}

/// Has the controller start. Each of the admin queues is given by its bus address and its number of entries.
pub fn enable(
    registers: &dyn Registers,
    (submission, entries): (u64, usize),
    completion: (u64, usize),
) {
    let sizes = (entries as u32 - 1) | (completion.1 as u32 - 1) << 16;
    registers.write32(ADMIN_ATTRIBUTES, sizes);
    registers.write64(ADMIN_SUBMISSION, submission);
    registers.write64(ADMIN_COMPLETION, completion.0);
    registers.write32(CONFIGURATION, USUAL | ENABLE);
}

/// Has the controller shut down: it writes its cache to the medium.
pub fn shut_down(registers: &dyn Registers) {
    registers.write32(CONFIGURATION, USUAL | ENABLE | SHUTDOWN);
}

/// Returns the offsets of the doorbells of a queue pair: that of the submission queue, and that of the completion
/// queue.
pub fn doorbells(queue: u16, stride: usize) -> (usize, usize) {
    let first = DOORBELLS + 2 * usize::from(queue) * stride;
    (first, first + stride)
}

/// Returns the number of I/O queue pairs whose doorbells are within `bytes` bytes of registers.
pub fn pairs_within(bytes: usize, stride: usize) -> usize {
    let pairs = bytes.saturating_sub(DOORBELLS) / (2 * stride);
    pairs.saturating_sub(1).min(u16::MAX.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_taken_apart() {
        // QEMU's: 2048 entries, 7.5 s, NVM commands, pages from 4 KiB on.
        let usual = Capabilities(0x0004_0020_0f01_07ff);
        assert_eq!(usual.queue_entries(), 2048);
        assert_eq!(usual.timeout(), Duration::from_millis(7500));
        assert_eq!(usual.doorbell_stride(), 4);
        assert!(usual.has_nvm_commands());
        assert_eq!(Capabilities(0).timeout(), Duration::from_millis(500));
        assert_eq!(Capabilities(u64::MAX >> 1).doorbell_stride(), 4 << 15);
        assert_eq!(Capabilities(4 << 48).smallest_page(), 16);
    }

    #[test]
    fn doorbells_follow_each_other_as_far_as_there_are_registers() {
        assert_eq!(doorbells(0, 4), (0x1000, 0x1004));
        assert_eq!(doorbells(3, 8), (0x1030, 0x1038));
        assert_eq!(pairs_within(0x4000, 4), 0x3000 / 8 - 1);
        assert_eq!(pairs_within(0x1000, 4), 0);
        assert_eq!(pairs_within(0x1010, 4), 1);
    }
}
