//! A driver domain that crashes while it talks to xenstored.

use crate::recovery::world;
use bulkhead_blkback::engine::QueueOptions;
use bulkhead_blkback_testkit::{Crash, Guest, Random, World};

/// Crashes while statistics are written, and goes on serving: after any instruction from that many calls into Xen on.
#[test]
fn a_crash_within_the_exchange_with_xenstored_ends_nothing() {
    let mut crashes = 0;
    let mut random = Random::new(8);
    for _ in 0..4 {
        let world = world(QueueOptions::default());
        let guest = Guest::with_memory(&world, 2048);
        let mut disk = guest.attach("xvda", "ram:disk0").connected();
        let node = disk.backend_path("statistics");
        let asked = |world: &World| world.sim.store().write(&node, "refresh");
        for round in 0..30 {
            asked(&world);
            // As far as that in the exchange about it.
            for _ in 0..random.below(8) {
                world.step(false);
                world.step(true);
            }
            world.step(false);
            let most = 1 << random.below(17);
            let crash = world.crash_after(random.below(4), random.below(most));
            crashes += u64::from(matches!(crash, Crash::Crashed(_)));
            world.restart();
            world.run();
            asked(&world);
            world.run();
            let shown = world.read(&node).expect("the node is there");
            assert!(
                shown.contains("queue_0_vcpu"),
                "round {round}, {crash:?}: {shown}"
            );
            disk.write(round, &[round as u8; 512]);
            assert_eq!(disk.read(round, 1), [round as u8; 512], "round {round}");
        }
        disk.detach();
        world.nothing_left_in_xen();
    }
    assert!(crashes > 30, "{crashes}");
}
