//! A buffer of a fixed length, which is filled behind and emptied in front.

use alloc::vec::Vec;
use core::ops::Range;

/// A buffer. Its bytes are contiguous.
pub struct Buffer {
    bytes: Vec<u8>,
    filled: Range<usize>,
}

/// There is no memory for a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoMemory {
    /// The bytes that were asked for.
    pub bytes: usize,
}

impl Buffer {
    /// Takes the memory of a buffer.
    pub fn new(len: usize) -> Result<Buffer, NoMemory> {
        let mut bytes = Vec::new();
        bytes
            .try_reserve_exact(len)
            .map_err(|_| NoMemory { bytes: len })?;
        bytes.resize(len, 0);
        Ok(Buffer {
            bytes,
            filled: 0..0,
        })
    }

    /// Returns whether nothing is in it.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.filled.is_empty()
    }

    /// Returns whether there is no room in it.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.filled.len() == self.bytes.len()
    }

    /// Returns what is in it.
    #[inline]
    pub fn filled(&mut self) -> &mut [u8] {
        &mut self.bytes[self.filled.clone()]
    }

    /// Returns all the room in it.
    pub fn room(&mut self) -> &mut [u8] {
        if self.filled.start > 0 {
            self.bytes.copy_within(self.filled.clone(), 0);
            self.filled = 0..self.filled.len();
        }
        &mut self.bytes[self.filled.end..]
    }

    /// Notes that the first bytes of the room were filled.
    #[inline]
    pub fn fill(&mut self, bytes: usize) {
        self.filled.end += bytes;
        assert!(
            self.filled.end <= self.bytes.len(),
            "more than there is room for"
        );
    }

    /// Lets go of the first bytes.
    #[inline]
    pub fn take(&mut self, bytes: usize) {
        self.filled.start += bytes;
        assert!(self.filled.start <= self.filled.end, "more than there is");
        if self.filled.is_empty() {
            self.filled = 0..0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_in_order() {
        let mut buffer = Buffer::new(8).expect("memory");
        let (mut put, mut got) = (0_u8, 0_u8);
        for round in 0..100 {
            let room = buffer.room();
            let some = room.len().min(1 + round % 5);
            room[..some].fill_with(|| {
                put = put.wrapping_add(1);
                put
            });
            buffer.fill(some);
            let taken = buffer.filled().len().min(1 + round % 3);
            for byte in &buffer.filled()[..taken] {
                got = got.wrapping_add(1);
                assert_eq!(*byte, got);
            }
            buffer.take(taken);
        }
        assert!(got > 100);
    }
}
