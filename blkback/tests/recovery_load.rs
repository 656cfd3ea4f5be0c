//! A guest that verifies what it reads while its driver domain crashes.

use bulkhead_blkback_testkit::{Frontend, Random};
use bulkhead_ring::blkif::{RequestId, Status};
use std::collections::BTreeMap;

/// Sends writes and reads without end, each sector its own, and looks at what comes back.
pub struct Load {
    /// What each sector holds, as far as the frontend knows.
    content: Vec<u8>,
    /// The sector of each request under way, and what was written there.
    writes: BTreeMap<RequestId, (u64, u8)>,
    reads: BTreeMap<RequestId, u64>,
    answered: u64,
}

const SECTORS: u64 = 256;

impl Load {
    /// Begins with a disk that is written full.
    pub fn new(disk: &mut Frontend<'_>) -> Load {
        for sector in 0..SECTORS {
            disk.write(sector, &[7; 512]);
        }
        Load {
            content: vec![7; SECTORS as usize],
            writes: BTreeMap::new(),
            reads: BTreeMap::new(),
            answered: 0,
        }
    }

    fn is_busy(&self, sector: u64) -> bool {
        let mut writes = self.writes.values();
        writes.any(|(at, _)| *at == sector) || self.reads.values().any(|at| *at == sector)
    }

    /// Fills the ring.
    pub fn send(&mut self, disk: &mut Frontend<'_>, random: &mut Random) {
        while disk.link().outstanding() < 32 {
            let sector = random.below(SECTORS);
            if self.is_busy(sector) {
                continue;
            }
            if random.below(3) == 0 {
                let id = disk.link().push_read(sector, 1);
                self.reads.insert(id, sector);
            } else {
                let byte = random.below(255) as u8;
                let id = disk.link().push_write(sector, &[byte; 512]);
                self.writes.insert(id, (sector, byte));
            }
        }
        disk.link().kick();
    }

    /// Looks at the answers.
    pub fn collect(&mut self, disk: &mut Frontend<'_>, why: &str) {
        for answer in disk.link().collect() {
            assert_eq!(answer.status, Status::Okay, "{why}");
            self.answered += 1;
            if let Some((sector, byte)) = self.writes.remove(&answer.id) {
                self.content[sector as usize] = byte;
            } else {
                let sector = self.reads.remove(&answer.id).expect("asked, and once");
                let byte = self.content[sector as usize];
                assert!(answer.data == [byte; 512], "{why}: sector {sector}");
            }
        }
    }

    /// Everything was answered, at least so much, and the disk holds what was written.
    pub fn expect_all(&self, disk: &mut Frontend<'_>, answers: u64) {
        assert!(self.writes.is_empty() && self.reads.is_empty());
        assert!(self.answered > answers, "{} answers", self.answered);
        for sector in 0..SECTORS {
            let byte = self.content[sector as usize];
            assert_eq!(disk.read(sector, 1), [byte; 512], "sector {sector}");
        }
    }
}
