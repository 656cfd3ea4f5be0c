//! A driver domain that crashes while its store is at work on requests, and answers them in an order of its own.

use super::recovery::{Case, collect_all, crash_everywhere, push_writes, rounds};
use super::recovery_load::Load;
use bulkhead_blkback_testkit::{Crash, Guest, Random, Setup, Style, World, reordering};
use bulkhead_ring::blkif::{BlkifSector, Discard, Operation, Request};
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

#[test]
fn crashes_follow_each_other_under_load_whatever_the_order_of_the_answers() {
    let world = world();
    let guest = Guest::with_memory(&world, 2048);
    let style = Style::persistent(true);
    let mut disk = guest.attach("xvda", "ram:disk0").styled(style).connected();
    let mut load = Load::new(&mut disk);
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
            let crash = world.crash_after(random.below(6), random.below(500));
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
    assert!(crashes > 60, "{crashes} crashes");
    load.expect_all(&mut disk, 2000);
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
                sector: BlkifSector(0),
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
