//! A driver domain that crashes while its guests' disks lie on disks of its own, which another domain serves.

use super::recovery::{Case, collect_all, crash_everywhere, held, push_writes, rounds};
use bulkhead_blkback_testkit::{
    Crash, Guest, IMAGE_SIZE, Lower, Random, Setup, Style, World, content,
};
use bulkhead_images::SectorSize;
use bulkhead_volumes::Guid;
use bulkhead_volumes::testing::{self, NewPartition, write_gpt};
use bulkhead_xen::GrantRef;
use bulkhead_xen_sim::xenstore::toolstack::{self, Disk};
use bulkhead_xenbus::XenbusState;
use std::time::Duration;

fn world() -> World {
    world_with(1)
}

fn world_with(vcpus: u32) -> World {
    World::with(Setup {
        own_disks: true,
        recover: true,
        vcpus,
        ..Setup::default()
    })
}

fn images() -> Vec<(String, Vec<u8>)> {
    let image = |number: u64| (format!("below{number}"), content(40 + number, 128 * 1024));
    (0..2).map(image).collect()
}

/// Another driver domain, whose images are two disks of this one.
fn below(world: &World) -> Lower<'_> {
    let lower = Lower::new(world, &images());
    lower.attach("xvda", &Disk::new("ram:below0"));
    lower.attach("xvdb", &Disk::new("ram:below1"));
    lower
}

#[test]
fn a_guest_on_a_disk_of_the_domains_own_notices_no_crash() {
    for persistent in [true, false] {
        let case = Case {
            world: &world,
            prepare: |world| std::mem::forget(below(world)),
            target: "vbd:xvda",
            persistent,
        };
        crash_everywhere(&case, rounds());
    }
}

#[test]
fn a_domain_with_two_vcpus_crashes_while_its_own_disks_are_at_work() {
    let world = &|| world_with(2);
    let case = Case {
        world,
        prepare: |world| std::mem::forget(below(world)),
        target: "vbd:xvda",
        persistent: true,
    };
    crash_everywhere(&case, rounds());
}

#[test]
fn crashes_follow_each_other_while_own_disks_are_connected_again() {
    let world = world();
    let _lower = below(&world);
    let before = held(&world);
    let guest = Guest::with_memory(&world, 2048);
    let attach = |name, target| {
        let style = Style::persistent(true);
        guest.attach(name, target).styled(style).connected()
    };
    let mut disks = [
        attach("xvda", "vbd:xvda"),
        attach("xvdb", "vbd:xvdb"),
        attach("xvdc", "ram:disk0"),
    ];
    let mut random = Random::new(6);
    let mut crashes = 0;
    for round in 1..=25 {
        let asked: Vec<_> = disks
            .iter_mut()
            .map(|disk| push_writes(disk, 32, round))
            .collect();
        disks.iter_mut().for_each(|disk| disk.link().kick());
        for _ in 0..random.below(4) {
            let crash = world.crash_after(random.below(30), random.below(500));
            crashes += u64::from(matches!(crash, Crash::Crashed(_)));
            world.restart();
            // Also before the disks are connected again, or while they are being connected.
            for _ in 0..random.below(3) {
                world.wait(Duration::from_millis(random.below(60)));
            }
        }
        // A connection that a crash has cut off may take another attempt, a second later.
        world.wait(Duration::from_millis(2500));
        for (disk, asked) in disks.iter_mut().zip(&asked) {
            collect_all(disk, asked, &format!("round {round}"));
            assert_eq!(disk.backend(), Some(XenbusState::Connected));
        }
        for disk in &mut disks {
            // The answer may be held back for a while, for others to come.
            disk.link().push_read(0, 32);
            disk.link().kick();
            world.wait(Duration::from_millis(5));
            let answers = disk.link().collect();
            assert_eq!(answers.len(), 1, "round {round}");
            let data = &answers[0].data;
            assert!(data.iter().all(|byte| *byte == round), "round {round}");
        }
        world.sim.assert_no_violations();
    }
    assert!(crashes > 15, "{crashes}");
    for disk in disks {
        disk.detach();
    }
    assert_eq!(held(&world), before);
    world.no_mistakes();
}

#[test]
fn partitions_of_an_own_disk_are_served_again_and_nobody_elses() {
    let world = world();
    let partition = |label, number, first, last| NewPartition {
        label,
        kind: Guid::from_bytes([9; 16]),
        id: Guid::from_bytes([number; 16]),
        first,
        last,
    };
    let table = testing::Disk::of(content(70, IMAGE_SIZE), SectorSize::B512);
    let parts = [partition("one", 1, 40, 79), partition("two", 2, 80, 119)];
    write_gpt(&table, &parts);
    let images = [("disk".to_string(), table.change(|bytes| bytes.clone()))];
    let lower = Lower::new(&world, &images);
    lower.attach("xvda", &Disk::new("ram:disk"));
    let before = held(&world);
    let guest = Guest::with_memory(&world, 2048);
    let attach = |name, target| {
        let disk = guest.attach(name, target);
        world.wait(Duration::from_millis(50));
        disk
    };
    let mut disks = [
        attach("xvda", "vbd:xvda/one").connected(),
        attach("xvdb", "vbd:xvda/two").connected(),
    ];
    for round in 1..=3 {
        let asked: Vec<_> = (round..)
            .zip(&mut disks)
            .map(|(byte, disk)| {
                let asked = push_writes(disk, 20, byte);
                disk.link().kick();
                asked
            })
            .collect();
        assert!(matches!(
            world.crash_after(u64::from(round) * 4, 100),
            Crash::Crashed(_)
        ));
        world.restart();
        // Both have their sectors before anybody else comes.
        let thief = guest.attach_unseen("xvdc", &Disk::new("vbd:xvda"));
        world.wait(Duration::from_secs(1));
        let problem = thief.problem().unwrap_or_default();
        assert!(problem.contains("is in use"), "{problem}");
        thief.finish_detach();
        for (disk, asked) in disks.iter_mut().zip(&asked) {
            collect_all(disk, asked, &format!("round {round}"));
        }
        for (byte, disk) in (round..).zip(&mut disks) {
            disk.link().push_read(0, 20);
            disk.link().kick();
            world.wait(Duration::from_millis(5));
            let answers = disk.link().collect();
            assert!(answers[0].data == [byte; 20 * 512], "round {round}");
        }
    }
    for disk in disks {
        disk.detach();
    }
    assert_eq!(held(&world), before);
    world.no_mistakes();
}

#[test]
fn a_backend_that_keeps_the_memory_of_before_the_crash_is_waited_for() {
    let world = world();
    let lower = below(&world);
    let before = held(&world);
    let guest = Guest::with_memory(&world, 2048);
    let mut disk = guest.attach("xvda", "vbd:xvda").connected();
    disk.write(0, &[1; 512]);
    lower.pause(true);
    let mut asked = push_writes(&mut disk, 8, 2);
    disk.link().kick();
    world.run();
    let shared = world.storage.grants_in_use();
    assert!(shared > 0);
    world.crash_after(0, 0);
    world.restart();
    world.wait(Duration::from_secs(2));
    // It has not even seen that its frontend has closed.
    assert_eq!(disk.link().collect().len(), 0);
    assert_eq!(world.storage.grants_in_use(), shared);
    lower.pause(false);
    // A request that the backend still had of the boot before comes first, and the guest's newer one last.
    world.wait(Duration::from_secs(3));
    asked.extend(push_writes(&mut disk, 1, 3));
    disk.link().kick();
    collect_all(&mut disk, &asked, "once the backend goes on");
    assert_eq!(disk.read(0, 1), [3; 512]);
    assert_eq!(disk.read(1, 1), [2; 512]);
    disk.detach();
    assert_eq!(held(&world), before);
    world.no_mistakes();
}

#[test]
fn a_backend_that_stands_still_for_half_a_minute_is_waited_for() {
    let world = world();
    let lower = below(&world);
    let guest = Guest::with_memory(&world, 2048);
    let mut disk = guest.attach("xvda", "vbd:xvda").connected();
    lower.pause(true);
    let asked = push_writes(&mut disk, 8, 2);
    disk.link().kick();
    world.crash_after(0, 0);
    world.restart();
    world.wait(Duration::from_secs(30));
    assert_eq!(disk.backend(), Some(XenbusState::Connected));
    lower.pause(false);
    world.wait(Duration::from_secs(5));
    collect_all(&mut disk, &asked, "once the backend goes on");
    assert_eq!(disk.read(7, 1), [2; 512]);
    disk.detach();
    world.no_mistakes();
}

#[test]
fn a_backend_that_keeps_a_page_of_one_disk_holds_up_no_other() {
    let world = world();
    let lower = below(&world);
    let before = held(&world);
    let guest = Guest::with_memory(&world, 2048);
    let mut disks = [
        guest.attach("xvda", "vbd:xvda").connected(),
        guest.attach("xvdb", "vbd:xvdb").connected(),
    ];
    // Beside the backend, which tells its frontend that it has let go.
    let ring = world
        .read(&world.own_path("device/vbd/51728/ring-ref0"))
        .expect("xvdb has a ring of several pages");
    let ring = GrantRef(ring.parse().expect("a number"));
    let region = &lower.backend.services.region;
    let kept = region.map_pages(world.storage.id(), &[ring]);
    let kept = kept.expect("room").expect("it is granted");
    for disk in &mut disks {
        disk.write(0, &[1; 512]);
    }
    let mut asked: Vec<_> = disks
        .iter_mut()
        .map(|disk| push_writes(disk, 8, 2))
        .collect();
    disks.iter_mut().for_each(|disk| disk.link().kick());
    world.crash_after(0, 0);
    world.restart();
    let told = |disk: &str| {
        let begins = format!("disk {disk}: domain {} does not let go", lower.domain.id());
        let journal = world.journal();
        let told = journal.iter().filter(|line| line.contains(&begins));
        told.count()
    };
    world.wait(Duration::from_secs(1));
    assert_eq!(["xvda", "xvdb"].map(told), [0, 0]);
    world.wait(Duration::from_secs(4));
    let journal = world.journal();
    assert_eq!(["xvda", "xvdb"].map(told), [0, 1], "{journal:#?}");
    let held_up = asked.pop().expect("two disks");
    collect_all(&mut disks[0], &asked[0], "of which nothing is kept");
    assert_eq!(disks[0].read(7, 1), [2; 512]);
    assert_eq!(disks[1].link().collect().len(), 0, "its ring is kept");
    drop(kept);
    world.wait(Duration::from_secs(10));
    collect_all(&mut disks[1], &held_up, "once the page was let go of");
    assert_eq!(disks[1].read(7, 1), [2; 512]);
    for disk in disks {
        disk.detach();
    }
    assert_eq!(held(&world), before);
    world.no_mistakes();
}

#[test]
fn what_happens_to_disks_while_their_own_disk_is_away_is_seen() {
    let world = world();
    let lower = below(&world);
    let before = held(&world);
    let (one, other) = (Guest::new(&world), Guest::new(&world));
    let mut stays = one.attach("xvda", "vbd:xvda").connected();
    let detached = one.attach("xvdb", "vbd:xvdb").connected();
    lower.pause(true);
    world.crash_after(0, 0);
    world.restart();
    world.wait(Duration::from_millis(300));
    // Both disks wait for their own disks.
    assert!(toolstack::request_detach(
        &mut world.sim.store(),
        &detached.vbd
    ));
    world.run();
    assert_eq!(detached.backend(), Some(XenbusState::Closing));
    let thief = other.attach_unseen("xvdb", &Disk::new("vbd:xvda"));
    lower.pause(false);
    world.wait(Duration::from_secs(3));
    let problem = thief.problem().unwrap_or_default();
    assert!(problem.contains("is open for writing"), "{problem}");
    stays.write(3, &[9; 512]);
    assert_eq!(stays.read(3, 1), [9; 512]);
    let mut detached = detached;
    detached.go(XenbusState::Closing);
    detached.go(XenbusState::Closed);
    detached.take_down();
    detached.finish_detach();
    other.destroy(vec![thief]);
    stays.detach();
    assert_eq!(held(&world), before);
    world.no_mistakes();
}

#[test]
fn a_crash_between_closing_and_starting_over_is_gone_on_from() {
    let world = world();
    let lower = below(&world);
    let guest = Guest::with_memory(&world, 2048);
    let mut disk = guest.attach("xvda", "vbd:xvda").connected();
    lower.pause(true);
    let asked = push_writes(&mut disk, 1, 1);
    disk.link().kick();
    world.run();
    world.crash_after(0, 0);
    world.restart();
    // The backend does not answer in time for its rings to be gone on with.
    world.wait(Duration::from_millis(250));
    let own = world.own_path("device/vbd/51712/state");
    assert_eq!(world.read(&own).as_deref(), Some("6"), "it closes first");
    lower.pause(false);
    world.crash_after(0, 0);
    for _ in 0..100 {
        lower.step();
        world.step(false);
    }
    world.restart();
    world.wait(Duration::from_secs(2));
    collect_all(&mut disk, &asked, "after both crashes");
    assert_eq!(disk.read(0, 1), [1; 512]);
    disk.detach();
    world.no_mistakes();
}

#[test]
fn a_disk_that_has_grown_is_served_again_and_its_guest_is_told_the_size() {
    let world = world();
    let lower = below(&world);
    let before = held(&world);
    let guest = Guest::with_memory(&world, 2048);
    let mut disk = guest.attach("xvda", "vbd:xvda").connected();
    let grow = |size| {
        let node = format!("/local/domain/{}/data/grow", lower.domain.id());
        world.write(&node, size);
    };
    grow("below0 192K");
    assert_eq!(disk.backend_node("sectors").as_deref(), Some("384"));
    // Twice, so that what a boot keeps after a growth is tried, too.
    for (round, size) in [(1, "below0 256K"), (2, "below0 320K")] {
        let asked = push_writes(&mut disk, 8, round);
        disk.link().kick();
        world.crash_after(0, 0);
        world.restart();
        // It grows before it is served again.
        grow(size);
        world.wait(Duration::from_secs(3));
        assert_eq!(disk.backend(), Some(XenbusState::Connected), "{size}");
        collect_all(&mut disk, &asked, size);
        let sectors = 384 + 128 * u64::from(round);
        assert_eq!(disk.backend_node("sectors"), Some(sectors.to_string()));
        disk.write(sectors - 1, &[round; 512]);
        assert_eq!(disk.read(sectors - 1, 1), [round; 512]);
        assert_eq!(disk.read(0, 1), [round; 512]);
    }
    disk.detach();
    assert_eq!(held(&world), before);
    world.no_mistakes();
}
