//! Exports with several connections, only some of which are up.

use bulkhead_images::Access;
use bulkhead_nbd_testing::world::{Buffer, Disk, World, write};
use bulkhead_nbd_testing::{Config, FakeExport, Reach};
use bulkhead_stream::{ConnectError, Ended};
use std::time::Duration;

#[test]
fn the_operator_is_told_how_many_connections_there_are() {
    for broken in [1, 0] {
        let export = FakeExport {
            flags: 0b1_0110_1101,
            ..FakeExport::new("disk", 1 << 20)
        };
        let world = World::new(Config {
            exports: vec![export],
            ..Config::default()
        });
        let shown = |what: &str| {
            let (lines, what) = (world.lines(), format!("disk: {what}"));
            assert!(lines.contains(&what), "{what}: {lines}");
        };
        let device = world.try_open("nbd:10.0.0.2/disk", Access::ReadWrite);
        let device = device.expect("opened");
        let mut disks = [0, 1].map(|vcpu| Disk::new(&world, device.clone(), vcpu, 8));
        let buffer = Buffer::new(&world, 1);
        shown("connected, 2048 sectors; 1 users");
        let refuses = Reach::Fails(ConnectError::Refused);
        world.server.change(|config| config.reach = refuses);
        world.server.drop_one(broken, Ended::Reset);
        disks[broken].ask(1, write(0), &buffer.whole(512));
        world.wait(Duration::from_secs(5));
        shown("connected by 1 of 2 connections (the server 10.0.0.2:10809: ");
        assert_eq!(disks[1 - broken].does(write(1), &buffer.whole(512)), Ok(()));
        assert_eq!(disks[broken].completed(), []);
        world.server.drop_all(Ended::Reset);
        world.wait(Duration::from_secs(5));
        shown("not connected: the server 10.0.0.2:10809: ");
        // One of the two is taken.
        world.server.change(|config| {
            config.reach = Reach::Connects;
            config.most_connections = 1;
        });
        world.wait(Duration::from_secs(60));
        shown("connected by 1 of 2 connections (");
        let all = usize::MAX;
        world.server.change(|config| config.most_connections = all);
        world.wait(Duration::from_secs(60));
        shown("connected, 2048 sectors; 1 users");
        assert_eq!(disks[broken].completed(), [(1, Ok(()))]);
        drop((disks, device, buffer));
        world.end();
    }
}
