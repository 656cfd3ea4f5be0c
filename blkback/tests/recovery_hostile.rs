//! A driver domain that crashes, and what is there afterwards is not what was there before: damage, another disk, a frontend
//! that forges.

use super::recovery::{collect_all, push_writes, world};
use bulkhead_blkback::engine::QueueOptions;
use bulkhead_blkback_testkit::{Frontend, Guest, Random, Style, World};
use bulkhead_xen_sim::xenstore::toolstack;
use bulkhead_xenbus::XenbusState;
use std::time::Duration;

#[test]
fn a_disk_whose_directory_is_gone_or_another_ones_is_not_taken_up() {
    let world = world(QueueOptions::default());
    let guest = Guest::new(&world);
    let gone = guest.attach("xvda", "ram:disk0").connected();
    let other = guest.attach("xvdb", "ram:disk1").connected();
    world.crash_after(0, 0);
    toolstack::force_detach(&mut world.sim.store(), &gone.vbd);
    toolstack::finish_detach(&mut world.sim.store(), &gone.vbd);
    // As if it had been made anew, for another image, and an earlier driver domain had served it.
    let params = other.backend_path("params");
    world.sim.store().write(&params, "ram:disk2");
    world.restart();
    world.run();
    assert_eq!(other.backend(), Some(XenbusState::Closing));
    assert!(
        other
            .problem()
            .is_some_and(|text| text.contains("before the crash"))
    );
    assert_eq!(world.storage.live_mappings(), 0);
    // Its image is free.
    let guest = Guest::new(&world);
    let mut next = guest.attach("xvda", "ram:disk0").connected();
    next.write(0, &[1; 512]);
    next.detach();
}

/// Connects two disks, leaves a request of each unserved, crashes, lets `damage` change what survived, and restarts.
/// Returns whether each disk is still connected.
fn damaged(damage: impl FnOnce(&mut [u8])) -> [bool; 2] {
    let world = world(QueueOptions::default());
    let guest = Guest::new(&world);
    let mut disks = ["xvda", "xvdb"].map(|name| {
        let target = format!("ram:disk{}", name.ends_with('b') as u8);
        guest.attach(name, &target).connected()
    });
    for disk in &mut disks {
        push_writes(disk, 20, 1);
        disk.link().kick();
    }
    world.crash_after(25, 100);
    let surviving = world.surviving.as_ref().expect("it recovers");
    surviving.damage(damage);
    world.restart();
    world.run();
    world.wait(Duration::from_millis(5));
    let complaints = |device: &str| {
        let lines = world.journal();
        let about = |line: &&String| !line.starts_with("INFO") && line.contains(device);
        lines.iter().filter(about).count()
    };
    let told = ["/51712", "/51728"].map(|device| complaints(device) > 0);
    // Whatever the disks answer, the frontends have only themselves to ask.
    let connected = disks.each_mut().map(|disk| {
        disk.link().collect_whatever();
        disk.backend() == Some(XenbusState::Connected)
    });
    assert!(
        (0..2).all(|disk| connected[disk] || told[disk]),
        "the log says which disk is lost: {:?}",
        world.journal()
    );
    connected
}

#[test]
fn a_damaged_record_costs_its_own_disk() {
    assert_eq!(damaged(|_| ()), [true, true]);
    let kept = |bytes: &[u8]| bytes.windows(4).rposition(|four| four == b"kept");
    for offset in [0, 4, 8, 12, 20, 28, 32, 50] {
        let connected = damaged(|bytes| {
            let at = kept(bytes).expect("a record");
            bytes[at + offset] ^= 1;
        });
        assert_eq!(connected, [false, true], "byte {offset}");
    }
    assert_eq!(damaged(|bytes| bytes.fill(0)), [false, false]);
    assert_eq!(damaged(|bytes| bytes.fill(0xff)), [false, false]);
}

#[test]
fn nothing_that_survives_ends_the_next_boot() {
    let mut random = Random::new(11);
    for _ in 0..30 {
        let mut random = Random::new(random.below(1 << 40));
        damaged(|bytes| {
            // Mostly among the places that are in use.
            let used = bytes.len() - 3 * 4224;
            for _ in 0..1 + random.below(400) {
                let at = used + random.below(3 * 4224) as usize;
                bytes[at] = random.below(256) as u8;
            }
        });
    }
    for _ in 0..30 {
        damaged(|bytes| {
            // The records stay as they are: requests alone.
            let places = bytes.len() / 4224;
            for place in places - 2..places {
                for _ in 0..random.below(400) {
                    let at = place * 4224 + 64 + random.below(4160) as usize;
                    bytes[at] = random.below(256) as u8;
                }
            }
        });
    }
}

#[test]
fn a_frontend_that_forges_the_index_harms_itself() {
    let world = world(QueueOptions::default());
    let guest = Guest::new(&world);
    let mut forger = guest.attach("xvda", "ram:disk0").connected();
    let mut other = guest.attach("xvdb", "ram:disk1").connected();
    for forged in [0, 1, 5, 19, 20, 21, 40, 1000, u32::MAX] {
        push_writes(&mut forger, 8, 1);
        forger.link().kick();
        let asked = push_writes(&mut other, 20, 2);
        other.link().kick();
        world.crash_after(25, 100);
        let index = forger.link().memory;
        // SAFETY: the guest's own ring, which nothing refers into.
        unsafe { index.cast::<u32>().add(2).write_volatile(forged) };
        world.restart();
        collect_all(&mut other, &asked, "the other disk");
        assert_eq!(other.backend(), Some(XenbusState::Connected));
        // Whatever became of the forger, it can start over.
        world.wait(Duration::from_millis(5));
        forger.link().collect_whatever();
        forger.go(XenbusState::Closing);
        forger.go(XenbusState::Closed);
        forger.take_down();
        forger.go(XenbusState::Initialising);
        forger.connect();
    }
    other.detach();
    world.no_mistakes();
}

/// Crashes, and returns which of the disks are served on.
fn kept(world: &World, disks: &[Frontend<'_>]) -> Vec<bool> {
    world.crash_after(0, 0);
    world.restart();
    world.run();
    world.wait(Duration::from_millis(5));
    let is_kept = |disk: &Frontend<'_>| disk.backend() == Some(XenbusState::Connected);
    disks.iter().map(is_kept).collect()
}

#[test]
fn a_disk_for_whose_queues_too_few_places_are_left_takes_none() {
    let world = world(QueueOptions::default());
    let guests: Vec<_> = (0..33).map(|_| Guest::new(&world)).collect();
    let connect = |number: usize, queues| {
        let style = Style {
            queues,
            ..Style::default()
        };
        let disk = guests[number].attach("xvda", "null:1M");
        disk.styled(style).connected()
    };
    let mut disks: Vec<_> = (0..31).map(|number| connect(number, 1)).collect();
    disks.push(connect(31, 4));
    disks.push(connect(32, 1));
    let mut expected = vec![true; 33];
    expected[31] = false;
    assert_eq!(kept(&world, &disks), expected);
}

#[test]
fn a_guest_with_many_disks_leaves_places_to_others() {
    let world = world(QueueOptions::default());
    let many = Guest::with_memory(&world, 4096);
    let names = ('a'..='t').map(|letter| format!("xvd{letter}"));
    let attach = |name: String| many.attach(&name, "null:1M").connected();
    let mut disks: Vec<_> = names.map(attach).collect();
    let other = Guest::new(&world);
    for name in ["xvda", "xvdb"] {
        disks.push(other.attach(name, "null:1M").connected());
    }
    // Half of the 32 places.
    let expected: Vec<_> = (0..22).map(|disk| !(16..20).contains(&disk)).collect();
    assert_eq!(kept(&world, &disks), expected);
    // What is kept counts after the crash, too, and what is detached does not.
    let mut late = other.attach("xvdc", "null:1M").connected();
    disks.drain(..2).for_each(Frontend::detach);
    disks.push(many.attach("xvda", "null:1M").connected());
    disks.push(many.attach("xvdz", "null:1M").connected());
    late.read(0, 8);
    disks.push(late);
    let kept = kept(&world, &disks);
    assert_eq!(kept[kept.len() - 3..], [true, false, true], "{kept:?}");
}
