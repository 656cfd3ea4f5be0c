//! A well-behaved guest beside a hostile one: what it reads is what it wrote, always.

use super::{Frontend, Guest, IMAGE_SIZE, Random, SECTORS, Style, World, content};
use bulkhead_ring::blkif::Status;
use bulkhead_xenbus::XenbusState;
use std::collections::{BTreeMap, HashSet};

/// The number of the image that only this guest has.
const IMAGE: u64 = 5;

/// A guest that behaves, and must not notice what happens to others.
pub struct Bystander<'w> {
    guest: Guest<'w>,
    frontend: Frontend<'w>,
    model: Vec<u8>,
    random: Random,
}

impl<'w> Bystander<'w> {
    /// Makes a guest with `disk5`, connected.
    pub fn new(world: &'w World) -> Bystander<'w> {
        Bystander::styled(world, Style::default())
    }

    /// Makes one whose frontend has that style.
    pub fn styled(world: &'w World, style: Style) -> Bystander<'w> {
        let guest = Guest::new(world);
        let frontend = guest.attach("xvda", &format!("ram:disk{IMAGE}"));
        Bystander {
            frontend: frontend.styled(style).connected(),
            guest,
            model: content(IMAGE, IMAGE_SIZE),
            random: Random::new(7),
        }
    }

    /// Does I/O, many requests at once, and checks every byte.
    pub fn io(&mut self) {
        let mut reads = BTreeMap::new();
        for _ in 0..6 {
            let sectors = 1 + self.random.below(80);
            let sector = self.random.below(SECTORS - sectors + 1);
            let bytes = sector as usize * 512..(sector + sectors) as usize * 512;
            // Requests that are in flight together may not overlap, or their order would matter.
            if self.random.below(2) == 0 && reads.is_empty() {
                let data = self.random.bytes(bytes.len());
                self.frontend.write(sector, &data);
                self.model[bytes].copy_from_slice(&data);
            } else {
                let id = self.frontend.link().push_read(sector, sectors as usize);
                reads.insert(id, bytes);
            }
        }
        self.frontend.link().push_flush();
        let answers = self.frontend.exchange();
        assert_eq!(answers.len(), reads.len() + 1, "the bystander is stalled");
        for answer in answers {
            assert_eq!(answer.status, Status::Okay, "the bystander's I/O fails");
            if let Some(bytes) = reads.remove(&answer.id) {
                assert!(answer.data == self.model[bytes], "the bystander's data");
            }
        }
    }

    /// Reads a page and checks it: the least sign of being served.
    pub fn check_read(&mut self) {
        let read = self.frontend.read(0, 8);
        assert!(read == self.model[..read.len()], "the bystander's data");
    }

    /// Checks that bytes of another guest hold nothing of this one's.
    pub fn assert_none_of_it_in(&self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let own: HashSet<&[u8]> = self.model.chunks(16).collect();
        let stale = bytes.chunks(16).find(|chunk| own.contains(chunk));
        assert_eq!(stale, None, "bytes of the bystander's disk");
    }

    /// Checks that the guest was not disturbed: its disk is as it left it, and it can detach like any other.
    pub fn leave(mut self) {
        self.io();
        assert_eq!(self.frontend.backend(), Some(XenbusState::Connected));
        assert_eq!(self.frontend.problem(), None);
        for sector in (0..SECTORS).step_by(64) {
            let bytes = sector as usize * 512..(sector + 64) as usize * 512;
            assert!(self.frontend.read(sector, 64) == self.model[bytes]);
        }
        self.frontend.detach();
        assert_eq!(self.guest.domain.violations(), []);
    }
}
