//! What the controller does with I/O commands, and how it gets at their data.

use crate::data::{Refused, pages};
use crate::device::{Device, FakeNamespace};
use bulkhead_nvme::command::{Command, Status, nvm};
use std::ops::Range;

impl Device {
    pub fn execute(&mut self, command: &Command) -> Result<(), Refused> {
        let id = command.namespace().0;
        if self.config.namespace(id).is_none() {
            return Err(Refused(Status::INVALID_NAMESPACE.for_good()));
        }
        match command.opcode() {
            nvm::opcode::FLUSH => {
                if let Some(namespace) = self.config.namespace_mut(id) {
                    namespace.make_durable(0..usize::MAX);
                }
                Ok(())
            }
            nvm::opcode::READ => self.transfer(command, false),
            nvm::opcode::WRITE => self.transfer(command, true),
            nvm::opcode::WRITE_ZEROES if self.config.writes_zeroes => {
                let blocks = u64::from(command.dword(12) & 0xffff) + 1;
                let most = match (self.config.most_zeroes, self.config.most_pages) {
                    (0, 0) => u64::MAX,
                    (0, power) | (power, _) => 4096 << power,
                };
                let shift = self.config.namespace(id).map_or(0, |found| found.shift);
                if blocks << shift > most {
                    return Err(Refused(Status::INVALID_FIELD.for_good()));
                }
                self.clear(id, start(command), blocks)
            }
            nvm::opcode::DATASET_MANAGEMENT if self.config.deallocates => {
                for range in self.ranges(command)? {
                    let most = self.config.most_range;
                    if most > 0 && range.blocks > most {
                        return Err(Refused(Status::INVALID_FIELD.for_good()));
                    }
                    self.clear(id, range.start.0, range.blocks.into())?;
                }
                Ok(())
            }
            _ => Err(Refused(Status::INVALID_OPCODE.for_good())),
        }
    }

    /// Reads the ranges that a command is to deallocate.
    pub fn ranges(&self, command: &Command) -> Result<Vec<nvm::DeallocateRange>, Refused> {
        let count = (command.dword(10) & 0xff) as usize + 1;
        let mut bytes = vec![0; count * nvm::DeallocateRange::BYTES];
        self.read_data(command, &mut bytes)?;
        let range = |range: &[u8]| {
            let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| range[at + i]));
            nvm::DeallocateRange::from_words([word(0), word(8)])
        };
        Ok(bytes
            .chunks(nvm::DeallocateRange::BYTES)
            .map(range)
            .collect())
    }

    /// Returns the bytes of a namespace that some blocks are.
    fn range(&self, id: u32, start: u64, blocks: u64) -> Result<Range<usize>, Refused> {
        let namespace = self.config.namespace(id);
        let namespace = namespace.ok_or(Refused(Status::INVALID_NAMESPACE))?;
        let end = start
            .checked_add(blocks)
            .filter(|end| *end <= namespace.blocks());
        let end = end.ok_or(Refused(Status::LBA_OUT_OF_RANGE.for_good()))?;
        Ok((start << namespace.shift) as usize..(end << namespace.shift) as usize)
    }

    fn writable(&mut self, id: u32) -> Result<&mut FakeNamespace, Refused> {
        let namespace = self.config.namespace_mut(id);
        let namespace = namespace.filter(|namespace| !namespace.read_only);
        namespace.ok_or(Refused(Status::WRITE_PROTECTED.for_good()))
    }

    /// Returns the bytes of a namespace, of which some are written; with `fua`, past the cache.
    fn write(&mut self, id: u32, range: Range<usize>, fua: bool) -> Result<&mut Vec<u8>, Refused> {
        let cache = self.config.cache;
        let namespace = self.writable(id)?;
        match cache && !fua {
            true => namespace.will_cache(range),
            false => namespace.make_durable(range),
        }
        Ok(&mut namespace.bytes)
    }

    fn clear(&mut self, id: u32, start: u64, blocks: u64) -> Result<(), Refused> {
        let range = self.range(id, start, blocks)?;
        self.write(id, range.clone(), false)?[range].fill(0);
        Ok(())
    }

    fn transfer(&mut self, command: &Command, writes: bool) -> Result<(), Refused> {
        let id = command.namespace().0;
        let blocks = u64::from(command.dword(12) & 0xffff) + 1;
        let range = self.range(id, start(command), blocks)?;
        if self.config.most_pages > 0 && range.len() > 4096 << self.config.most_pages {
            return Err(Refused(Status::INVALID_FIELD.for_good()));
        }
        let mut bytes = vec![0; range.len()];
        if writes {
            self.read_data(command, &mut bytes)?;
            let fua = command.dword(12) >> 30 & 1 == 1;
            self.write(id, range.clone(), fua)?[range].copy_from_slice(&bytes);
        } else {
            let namespace = self.config.namespace(id);
            bytes.copy_from_slice(
                &namespace.ok_or(Refused(Status::INVALID_NAMESPACE))?.bytes[range],
            );
            self.write_data(command, &bytes)?;
        }
        Ok(())
    }

    /// Reads what a command names as its data.
    fn read_data(&self, command: &Command, bytes: &mut [u8]) -> Result<(), Refused> {
        let mut rest = bytes;
        for (address, len) in pages(command.data(), rest.len(), |at, to| self.dma_read(at, to))? {
            let part;
            (part, rest) = rest.split_at_mut(len);
            self.dma_read(address, part)?;
        }
        Ok(())
    }

    /// Writes to what a command names as its data.
    pub fn write_data(&self, command: &Command, bytes: &[u8]) -> Result<(), Refused> {
        let mut rest = bytes;
        for (address, len) in pages(command.data(), rest.len(), |at, to| self.dma_read(at, to))? {
            let part;
            (part, rest) = rest.split_at(len);
            self.dma_write(address, part)?;
        }
        Ok(())
    }

    pub fn dma_read(&self, from: u64, bytes: &mut [u8]) -> Result<(), Refused> {
        let failed = Refused(Status::DATA_TRANSFER_ERROR.for_good());
        self.bus.read(from, bytes).map_err(|_| failed)
    }

    pub fn dma_write(&self, to: u64, bytes: &[u8]) -> Result<(), Refused> {
        let failed = Refused(Status::DATA_TRANSFER_ERROR.for_good());
        self.bus.write(to, bytes).map_err(|_| failed)
    }
}

fn start(command: &Command) -> u64 {
    u64::from(command.dword(11)) << 32 | u64::from(command.dword(10))
}
