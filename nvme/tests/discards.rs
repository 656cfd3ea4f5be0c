//! Discards of more than a controller does in good time.

use bulkhead_images::{IoError, Submitted};
use bulkhead_nvme::command::admin::opcode::IDENTIFY;
use bulkhead_nvme::command::{Command, Status, nvm};
use bulkhead_nvme_testing::world::{Buffer, Disk, World, discard, read};
use bulkhead_nvme_testing::{Config, FakeNamespace, Treatment};
use std::sync::Arc;
use std::time::Duration;

/// A controller whose namespace says that it has so many blocks, though there are fewer.
fn of_blocks(blocks: u64, config: Config) -> Config {
    let forge = move |command: &Command, data: &mut [u8]| {
        if command.opcode() == IDENTIFY && command.dword(10) == 0 {
            data[..8].copy_from_slice(&blocks.to_le_bytes());
        }
    };
    Config {
        forge: Arc::new(forge),
        ..config
    }
}

#[test]
fn a_controller_has_a_gibibyte_of_a_discard_at_a_time() {
    for (shift, gibibyte) in [(9, 1 << 21), (12, 1 << 18)] {
        let config = Config {
            namespaces: vec![FakeNamespace::new(1, shift, 64)],
            ..Config::default()
        };
        let world = World::started(of_blocks(4 << 30 >> shift, config));
        let mut disk = world.open("nvme:03:00.0");
        world.fake.decide(|_| Treatment::Held);
        let sectors = (7 << 29) / 512;
        disk.ask(1, discard(0, sectors), &[]);
        for number in 0..4 {
            world.run();
            assert_eq!(disk.collect(), 0);
            let held = world.fake.held();
            assert_eq!(held.len(), number + 1, "one after another");
            let (queue, command) = held[number];
            let count = [gibibyte, gibibyte, gibibyte, gibibyte / 2][number];
            let start = number as u64 * u64::from(gibibyte);
            assert_eq!(world.fake.ranges(&command), [(start, count)]);
            world.fake.complete(queue, &command, Status::SUCCESS);
        }
        world.run();
        assert_eq!(disk.collect(), 1);
        assert_eq!(disk.done.pop(), Some((1, Ok(()))));
        drop(disk);
        world.end();
    }
}

#[test]
fn a_controller_that_names_its_most_for_a_range_has_no_more() {
    let world = World::started(Config {
        namespaces: vec![FakeNamespace::new(1, 9, 4096)],
        most_range: 1000,
        ..Config::default()
    });
    world
        .fake
        .change(|config| config.namespaces[0].bytes.fill(7));
    let mut disk = world.open("nvme:03:00.0");
    assert_eq!(disk.does(discard(8, 2500), &[]), Ok(()));
    assert_eq!(world.fake.seen().len(), 3);
    let bytes = world.fake.bytes(1);
    let cleared = bytes.iter().position(|byte| *byte == 0);
    assert_eq!(cleared, Some(8 * 512));
    assert!(bytes[8 * 512..2508 * 512].iter().all(|byte| *byte == 0));
    assert!(bytes[2508 * 512..].iter().all(|byte| *byte == 7));
    drop(disk);
    world.end();
}

/// What it does not say is limited as what is written. One that deallocates is not asked to clear.
#[test]
fn a_controller_clears_no_more_than_it_says_at_a_time() {
    for (most_zeroes, most_pages, commands) in [(3, 7, 64), (0, 7, 4), (12, 7, 1), (0, 0, 1)] {
        let world = World::started(Config {
            namespaces: vec![FakeNamespace::new(1, 9, 4096)],
            deallocates: false,
            most_zeroes,
            most_pages,
            ..Config::default()
        });
        world
            .fake
            .change(|config| config.namespaces[0].bytes.fill(7));
        let mut disk = world.open("nvme:03:00.0");
        assert_eq!(disk.does(discard(0, 4096), &[]), Ok(()));
        let seen = world.fake.seen();
        let clears = |command: &&Command| command.opcode() == nvm::opcode::WRITE_ZEROES;
        assert_eq!(seen.iter().filter(clears).count(), commands);
        assert!(world.fake.bytes(1).iter().all(|byte| *byte == 0));
        drop(disk);
        world.end();
    }
}

#[test]
fn discards_that_take_too_long_cost_nobody_else_the_controller() {
    // The last one has parts, of which each is done when it is asked a second time.
    for parts in [false, true] {
        let world = World::started(of_blocks(1 << 30, Config::default()));
        let mut guest = world.open("nvme:03:00.0");
        let mut other = Disk::new(&world, guest.device.clone(), 0, 8);
        let buffer = Buffer::new(&world, 1);
        let mut asked = 0;
        world
            .fake
            .decide(move |command| match (command.opcode(), parts) {
                (nvm::opcode::DATASET_MANAGEMENT, true) => {
                    asked += 1;
                    match asked % 2 {
                        0 => Treatment::Failed(Status::SUCCESS),
                        _ => Treatment::Lost,
                    }
                }
                (nvm::opcode::DATASET_MANAGEMENT, false) => Treatment::Lost,
                _ => Treatment::Done,
            });
        for tag in 0..4 {
            let before = world.sim.now();
            let taken = guest.hand(tag, discard(0, 1 << 24), &[]);
            assert_eq!(taken, Submitted::Pending, "it is served");
            guest.queue.flush_submissions();
            while guest.collect() == 0 {
                world.wait(Duration::from_secs(1));
                let waited = world.sim.now().since(before);
                assert!(waited < Duration::from_secs(100), "two resets");
            }
            assert_eq!(guest.done.pop(), Some((tag, Err(IoError::Medium))));
            assert_eq!(other.does(read(0), &buffer.whole(512)), Ok(()));
        }
        assert!(world.lines().contains(" 8 resets"), "{}", world.lines());
        drop((guest, other, buffer));
        world.end();
    }
}
