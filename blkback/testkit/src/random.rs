//! Numbers that look random and are the same in every run.

use super::Frontend;
use bulkhead_ring::blkif::Status;
use bulkhead_ring::blkif::TransferKind::{Read, Write};
use std::time::Duration;

/// A generator (splitmix64).
pub struct Random(u64);

impl Random {
    /// Starts the sequence of that seed.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// Returns that many bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}

impl Frontend<'_> {
    /// Reads and writes at random, eight requests at a time, from any sector of a page on, and compares the data with
    /// `model`, which is the content of the disk.
    pub fn verify_against(&mut self, model: &mut [u8], random: &mut Random) {
        self.verify_within(0, model, random);
    }

    /// Does the same with a store that may take `seconds` seconds for it.
    pub fn verify_within(&mut self, seconds: usize, model: &mut [u8], random: &mut Random) {
        let part_size = model.len() / 8;
        for _ in 0..6 {
            let mut reads = Vec::new();
            for part in 0..8 {
                let first = random.below(8) as usize;
                let sectors = 1 + random.below(part_size as u64 / 512 - 8) as usize;
                let at = part * part_size + first * 512;
                let (sector, range) = ((at / 512) as u64, at..at + sectors * 512);
                if random.below(2) == 0 {
                    let data = random.bytes(range.len());
                    self.link().push_transfer(Write, sector, sectors, &data);
                    model[range].copy_from_slice(&data);
                } else {
                    let id = self.link().push_transfer(Read, sector, sectors, &[]);
                    reads.push((id, range));
                }
            }
            let mut answers = self.exchange();
            for _ in 0..seconds {
                if answers.len() < 8 {
                    self.world.wait(Duration::from_secs(1));
                    answers.extend(self.link().collect());
                }
            }
            assert_eq!(answers.len(), 8, "all are answered");
            for answer in answers {
                assert_eq!(answer.status, Status::Okay, "{:#?}", self.world.journal());
                if let Some((_, range)) = reads.iter().find(|(id, _)| *id == answer.id) {
                    assert!(answer.data == model[range.clone()], "what was written");
                }
            }
        }
    }
}
