//! An operation that a frontend asks pciback for.

use super::super::memory::{device_reads, device_writes};
use bulkhead_xen::abi::pciif::Op;

/// pciback's copy of an operation.
pub(super) struct Request([u8; size_of::<Op>()]);

impl Request {
    pub(super) fn read(address: usize) -> Self {
        let mut bytes = [0; size_of::<Op>()];
        device_reads(address, &mut bytes);
        Request(bytes)
    }

    pub(super) fn write(&self, address: usize) {
        device_writes(address, &self.0);
    }

    pub(super) fn get(&self, offset: usize) -> u32 {
        let bytes = self.0[offset..offset + 4].try_into();
        u32::from_ne_bytes(bytes.expect("four bytes"))
    }

    pub(super) fn set(&mut self, offset: usize, value: u32) {
        self.0[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
    }
}
