//! A driver domain that crashes while its store is at work on requests, and answers them in an order of its own.

use super::recovery::{Case, collect_all, crash_everywhere, push_writes, rounds};
use bulkhead_blkback_testkit::{Crash, Frontend, Guest, Random, Setup, Style, World, reordering};
use bulkhead_ring::blkif::{Discard, Operation, Request, RequestId, Sector, Status};
use std::collections::BTreeMap;
use std::time::Duration;

fn world() -> World {
    World::with(Setup {
        layer: Some(reordering()),
        recover: true,
        ..Setup::default()
    })
}

#[test]
fn a_guest_whose_store_reorders_requests_notices_no_crash() {
    for persistent in [true, false] {
        let case = Case {
            world: &world,
            prepare: |_| (),
            target: "ram:disk0",
            persistent,
        };
        crash_everywhere(&case, rounds());
    }
}

/// Sends writes and reads without end, each sector its own, and looks at what comes back.
struct Load {
    /// What each sector holds, as far as the frontend knows.
    content: Vec<u8>,
    /// The sector of each request under way, and what was written there.
    writes: BTreeMap<RequestId, (u64, u8)>,
    reads: BTreeMap<RequestId, u64>,
    answered: u64,
}

const SECTORS: u64 = 256;

impl Load {
    fn is_busy(&self, sector: u64) -> bool {
        let mut writes = self.writes.values();
        writes.any(|(at, _)| *at == sector) || self.reads.values().any(|at| *at == sector)
    }

    fn send(&mut self, disk: &mut Frontend<'_>, random: &mut Random) {
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

    fn collect(&mut self, disk: &mut Frontend<'_>, why: &str) {
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
}

#[test]
fn crashes_follow_each_other_under_load_whatever_the_order_of_the_answers() {
    let world = world();
    let guest = Guest::with_memory(&world, 2048);
    let style = Style::persistent(true);
    let mut disk = guest.attach("xvda", "ram:disk0").styled(style).connected();
    let mut load = Load {
        content: vec![7; SECTORS as usize],
        writes: BTreeMap::new(),
        reads: BTreeMap::new(),
        answered: 0,
    };
    for sector in 0..SECTORS {
        disk.write(sector, &[7; 512]);
    }
    let mut random = Random::new(9);
    let mut crashes = 0;
    for round in 0..400 {
        let why = format!("round {round}");
        load.send(&mut disk, &mut random);
        // Some are answered, and others wait for long: the indices of the ring wrap meanwhile.
        for _ in 0..random.below(12) {
            world.step(random.below(4) > 0);
            if random.below(3) == 0 {
                let later = world.sim.now() + Duration::from_micros(random.below(60));
                world.sim.advance_to(later);
            }
            load.collect(&mut disk, &why);
            load.send(&mut disk, &mut random);
        }
        if random.below(3) == 0 {
            let crash = world.crash_after(random.below(6), random.below(1500));
            crashes += u64::from(matches!(crash, Crash::Crashed(_)));
            world.restart();
            for _ in 0..random.below(30) {
                world.step(random.below(2) == 0);
            }
        }
        load.collect(&mut disk, &why);
    }
    for _ in 0..100 {
        world.wait(Duration::from_millis(1));
        load.collect(&mut disk, "in the end");
    }
    assert!(load.writes.is_empty() && load.reads.is_empty());
    assert!(crashes > 60, "{crashes} crashes");
    assert!(load.answered > 2000, "{} answers", load.answered);
    for sector in 0..SECTORS {
        let byte = load.content[sector as usize];
        assert_eq!(disk.read(sector, 1), [byte; 512], "sector {sector}");
    }
    disk.detach();
    world.nothing_left_in_xen();
}

#[test]
fn after_a_crash_a_discard_and_later_writes_keep_their_order_with_such_a_store() {
    let world = world();
    let guest = Guest::with_memory(&world, 2048);
    let mut disk = guest.attach("xvda", "ram:disk0").connected();
    for calls in 0..24 {
        let mut asked = push_writes(&mut disk, 8, 1);
        let link = disk.link();
        let discard = Request::of(
            link.new_id(),
            Operation::Discard(Discard {
                sector: Sector(0),
                count: 16,
                secure: false,
            }),
        );
        link.push(&discard, Vec::new());
        asked.push(discard.id);
        asked.extend((0..4).map(|sector| link.push_write(sector, &[2; 512])));
        asked.push(link.push_flush());
        link.kick();
        world.crash_after(calls, calls * 40);
        world.restart();
        collect_all(&mut disk, &asked, &format!("after {calls} calls"));
        for sector in 0..8 {
            let expected = if sector < 4 { [2; 512] } else { [0; 512] };
            assert_eq!(disk.read(sector, 1), expected, "after {calls} calls");
        }
    }
    disk.detach();
    world.nothing_left_in_xen();
}
