//! A split queue as the device finds it in memory: by the rules of the specification, not by what the driver is known
//! to do.

use crate::device::{Device, Seen};
use bulkhead_xen::DmaAddr;
use virtio_spec::virtq::DescF;

/// A queue as the driver has described it.
#[derive(Clone, Default)]
pub struct Queue {
    pub entries: u16,
    pub vector: u16,
    pub enabled: bool,
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
    /// The chains that were taken and used so far.
    pub taken: u16,
    pub told: u16,
    /// The driver has notified it.
    pub notified: bool,
}

/// A part of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    pub address: u64,
    pub len: u32,
    pub written: bool,
}

/// The device cannot access what it was told to.
#[derive(Clone, Copy, Debug)]
pub struct Fault;

impl Device {
    pub fn dma_read(&self, from: u64, bytes: &mut [u8]) -> Result<(), Fault> {
        let address = DmaAddr::new(from).ok_or(Fault)?;
        self.function.read(address, bytes).map_err(|_| Fault)
    }

    pub fn dma_write(&self, to: u64, bytes: &[u8]) -> Result<(), Fault> {
        let address = DmaAddr::new(to).ok_or(Fault)?;
        self.function.write(address, bytes).map_err(|_| Fault)
    }

    pub fn read16(&self, from: u64) -> Result<u16, Fault> {
        let mut bytes = [0; 2];
        self.dma_read(from, &mut bytes)?;
        Ok(u16::from_le_bytes(bytes))
    }

    /// Takes the next chain that the driver has made available.
    pub fn fetch(&mut self, number: u16) -> Result<Option<Seen>, Fault> {
        let queue = self.queues[usize::from(number)].clone();
        let index = self.read16(queue.available + 2)?;
        if index == queue.taken {
            return Ok(None);
        }
        let entry = u64::from(queue.taken % queue.entries);
        let head = self.read16(queue.available + 4 + 2 * entry)?;
        self.queues[usize::from(number)].taken = queue.taken.wrapping_add(1);
        let parts = self.chain(&queue, head)?;
        Ok(Some(self.parse(number, head, &parts)?))
    }

    fn chain(&self, queue: &Queue, head: u16) -> Result<Vec<Part>, Fault> {
        let (mut table, mut count, mut at) = (queue.descriptors, queue.entries, head);
        let mut parts: Vec<Part> = Vec::new();
        loop {
            assert!(at < count, "descriptor {at} of {count}");
            let mut bytes = [0; 16];
            self.dma_read(table + 16 * u64::from(at), &mut bytes)?;
            let [address, rest] = [0, 8]
                .map(|from| u64::from_le_bytes(std::array::from_fn(|byte| bytes[from + byte])));
            let len = rest as u32;
            let flags = (rest >> 32) as u16;
            let has = |flag: DescF| flags & flag.bits().to_ne() != 0;
            if has(DescF::INDIRECT) {
                assert!(
                    self.accepted >> 28 & 1 == 1,
                    "an indirect table that was not agreed on"
                );
                assert!(table == queue.descriptors && !has(DescF::NEXT) && len.is_multiple_of(16));
                (table, count, at) = (address, (len / 16) as u16, 0);
                continue;
            }
            let written = has(DescF::WRITE);
            let order = parts.last().is_none_or(|last| !last.written || written);
            assert!(order, "what the device writes comes last");
            assert!(
                len > 0 && parts.len() < usize::from(count),
                "a chain without end"
            );
            assert!(
                parts.len() < usize::from(queue.entries),
                "a chain longer than the queue"
            );
            parts.push(Part {
                address,
                len,
                written,
            });
            if !has(DescF::NEXT) {
                return Ok(parts);
            }
            at = (rest >> 48) as u16;
        }
    }

    fn enabled(&mut self, number: u16) -> Option<&mut Queue> {
        let queue = self.queues.get_mut(usize::from(number));
        queue.filter(|queue| queue.enabled)
    }

    /// Tells that it has used a chain, and interrupts if the driver wants that. A device has no way to say so of a queue
    /// that it does not have, or that the driver has not enabled.
    pub fn push_used(&mut self, number: u16, head: u32, written: u32) {
        let Some(queue) = self.enabled(number).cloned() else {
            return;
        };
        let entry = u64::from(queue.told % queue.entries);
        let mut element = head.to_le_bytes().to_vec();
        element.extend(written.to_le_bytes());
        let told = self.dma_write(queue.used + 4 + 8 * entry, &element);
        match told {
            Ok(()) => self.jump(number, 1),
            Err(Fault) => self.fail(),
        }
    }

    /// Moves its index on.
    pub fn jump(&mut self, number: u16, by: u16) {
        let Some(queue) = self.enabled(number) else {
            return;
        };
        let before = queue.told;
        queue.told = before.wrapping_add(by);
        let queue = queue.clone();
        let moved = self.dma_write(queue.used + 2, &queue.told.to_le_bytes());
        let wanted = match self.accepted >> 29 & 1 {
            1 => self
                .read16(queue.available + 4 + 2 * u64::from(queue.entries))
                .map(|event| {
                    let past = queue.told.wrapping_sub(event).wrapping_sub(1);
                    past < queue.told.wrapping_sub(before)
                }),
            _ => self.read16(queue.available).map(|flags| flags & 1 == 0),
        };
        match moved.and(wanted) {
            Ok(true) => {
                self.isr |= 1;
                self.interrupt(queue.vector);
            }
            Ok(false) => {}
            Err(Fault) => self.fail(),
        }
    }

    /// Wants to be notified of what the driver makes available next. Returns whether there is something already.
    pub fn want_notification(&mut self, number: u16) -> Result<bool, Fault> {
        let queue = self.queues[usize::from(number)].clone();
        if self.accepted >> 29 & 1 == 1 {
            let event = queue.used + 4 + 8 * u64::from(queue.entries);
            self.dma_write(event, &queue.taken.to_le_bytes())?;
        }
        Ok(self.read16(queue.available + 2)? != queue.taken)
    }
}
