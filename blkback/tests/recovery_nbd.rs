//! A driver domain that crashes while its guests' disks lie on a server, which it reaches over an interface of its own.

use super::recovery::{Case, collect_all, crash_everywhere, held, push_writes, rounds};
use super::recovery_load::Load;
use bulkhead_blkback::upgrade;
use bulkhead_blkback_testkit::{Crash, Guest, Nbd, Network, Random, Setup, Style, World};
use bulkhead_images::SectorSize;
use bulkhead_nbd_testing::{Config, FakeExport};
use bulkhead_volumes::Guid;
use bulkhead_volumes::testing::{self, NewPartition, write_gpt};
use bulkhead_xen_sim::xenstore::toolstack::Disk;
use bulkhead_xenbus::XenbusState;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

/// The bytes of each export.
const SIZE: usize = 256 * 1024;

fn world_with(vcpus: u32, change: impl FnOnce(&mut Config)) -> World {
    let mut config = Config {
        exports: vec![FakeExport::new("alice", SIZE), FakeExport::new("bob", SIZE)],
        ..Config::default()
    };
    change(&mut config);
    let world = World::with(Setup {
        server: Some(config),
        network: true,
        recover: true,
        vcpus,
        ..Setup::default()
    });
    world.wait(Duration::from_millis(10));
    world
}

fn world() -> World {
    world_with(1, |_| ())
}

fn nbd(world: &World) -> &Nbd {
    world.nbd.as_ref().expect("it has a server")
}

fn network(world: &World) -> &Network {
    nbd(world).network.as_ref().expect("it has an interface")
}

#[test]
fn a_guest_on_a_server_notices_no_crash() {
    for persistent in [true, false] {
        let case = Case {
            world: &world,
            prepare: |_| (),
            target: "nbd:10.0.0.2/alice",
            persistent,
        };
        crash_everywhere(&case, rounds());
    }
}

#[test]
fn a_domain_with_two_vcpus_crashes_while_a_server_is_at_work() {
    // One connection for each vCPU.
    let world = &|| {
        world_with(2, |config| {
            config.exports[0].flags |= 1 << 8;
        })
    };
    let case = Case {
        world,
        prepare: |_| (),
        target: "nbd:10.0.0.2/alice",
        persistent: true,
    };
    crash_everywhere(&case, rounds());
}

#[test]
fn crashes_follow_each_other_while_a_verifying_guest_is_at_work() {
    let world = world();
    let before = held(&world);
    let guest = Guest::with_memory(&world, 2048);
    let style = Style::persistent(true);
    let mut disk = guest.attach("xvda", "nbd:10.0.0.2/alice");
    disk = disk.styled(style).connected();
    let mut load = Load::new(&mut disk);
    let mut random = Random::new(12);
    let mut crashes = 0;
    for round in 0..60 {
        let why = format!("round {round}");
        for _ in 0..random.below(8) {
            load.send(&mut disk, &mut random);
            world.wait(Duration::from_micros(random.below(200)));
            load.collect(&mut disk, &why);
        }
        load.send(&mut disk, &mut random);
        for _ in 0..random.below(3) {
            let crash = world.crash_after(random.below(20), random.below(500));
            crashes += u64::from(matches!(crash, Crash::Crashed(_)));
            load.collect(&mut disk, &why);
            world.restart();
            // Also before the network is connected again, or while it is being connected.
            for _ in 0..random.below(3) {
                world.wait(Duration::from_millis(random.below(60)));
                load.collect(&mut disk, &why);
            }
        }
        world.wait(Duration::from_millis(2500));
        load.collect(&mut disk, &why);
        assert_eq!(disk.backend(), Some(XenbusState::Connected), "{why}");
    }
    assert!(crashes > 20, "{crashes} crashes");
    load.expect_all(&mut disk, 2000);
    disk.detach();
    assert_eq!(held(&world), before);
    world.no_mistakes();
}

#[test]
fn a_network_that_keeps_the_memory_of_before_the_crash_is_waited_for() {
    let world = world();
    let before = held(&world);
    let guest = Guest::with_memory(&world, 2048);
    let mut disk = guest.attach("xvda", "nbd:10.0.0.2/alice").connected();
    disk.write(0, &[1; 512]);
    network(&world).paused.set(true);
    let mut asked = push_writes(&mut disk, 8, 2);
    disk.link().kick();
    world.run();
    let shared = world.storage.grants_in_use();
    assert!(shared > 0);
    world.crash_after(0, 0);
    world.restart();
    world.wait(Duration::from_secs(2));
    assert_eq!(disk.link().collect().len(), 0);
    assert_eq!(world.storage.grants_in_use(), shared);
    network(&world).paused.set(false);
    // A packet of before is still on its way to the server, whose connection ends at the first answer.
    world.wait(Duration::from_secs(3));
    asked.extend(push_writes(&mut disk, 1, 3));
    disk.link().kick();
    collect_all(&mut disk, &asked, "once the network goes on");
    assert_eq!(disk.read(0, 1), [3; 512]);
    assert_eq!(disk.read(1, 1), [2; 512]);
    disk.detach();
    assert_eq!(held(&world), before);
    world.no_mistakes();
}

#[test]
fn a_server_that_is_away_after_a_crash_is_waited_for_and_nobody_gets_its_exports() {
    let world = world();
    let (one, other) = (Guest::with_memory(&world, 2048), Guest::new(&world));
    let mut disk = one.attach("xvda", "nbd:10.0.0.2/alice").connected();
    let asked = push_writes(&mut disk, 8, 2);
    disk.link().kick();
    let server = &nbd(&world).server;
    server.change(|config| config.is_deaf = true);
    world.crash_after(0, 0);
    world.restart();
    let thief = other.attach_unseen("xvda", &Disk::new("nbd:10.0.0.2/alice"));
    world.wait(Duration::from_secs(40));
    assert_eq!(disk.link().collect().len(), 0);
    assert_eq!(disk.backend(), Some(XenbusState::Connected));
    assert_eq!(thief.problem(), None, "it waits, too");
    server.change(|config| config.is_deaf = false);
    world.wait(Duration::from_secs(35));
    collect_all(&mut disk, &asked, "once the server answers");
    assert_eq!(disk.read(7, 1), [2; 512]);
    let problem = thief.problem().unwrap_or_default();
    assert!(problem.contains("is open for writing"), "{problem}");
    disk.detach();
    world.no_mistakes();
}

#[test]
fn while_a_server_is_away_after_a_crash_new_disks_on_other_stores_are_served() {
    let world = world();
    let (one, other) = (Guest::with_memory(&world, 2048), Guest::new(&world));
    let disk = one.attach("xvda", "nbd:10.0.0.2/alice").connected();
    let server = &nbd(&world).server;
    server.change(|config| config.is_deaf = true);
    world.crash_after(0, 0);
    world.restart();
    world.wait(Duration::from_secs(20));
    let mut image = other.attach("xvda", "ram:disk0").connected();
    image.write(0, &[3; 512]);
    assert_eq!(image.read(0, 1), [3; 512]);
    let waiting = other.attach("xvdb", "nbd:10.0.0.2/bob");
    world.wait(Duration::from_secs(10));
    assert_eq!(waiting.problem(), None);
    assert_eq!(
        waiting.backend(),
        Some(XenbusState::Initialising),
        "it waits"
    );
    // The same servers, by TLS.
    let by_tls = other.attach_unseen("xvde", &Disk::new("nbds:10.0.0.2/alice"));
    world.wait(Duration::from_secs(1));
    assert_eq!(by_tls.problem(), None, "it waits, too");
    // It may be detached meanwhile.
    let gone = other.attach("xvdc", "nbd:10.0.0.2/alice");
    gone.detach();
    server.change(|config| config.is_deaf = false);
    world.wait(Duration::from_secs(35));
    assert_eq!(disk.backend(), Some(XenbusState::Connected));
    let problem = by_tls.problem().unwrap_or_default();
    assert!(problem.contains("nbds: cannot be served"), "{problem}");
    let mut waiting = waiting.connected();
    waiting.write(0, &[4; 512]);
    for disk in [disk, image, waiting] {
        disk.detach();
    }
    world.no_mistakes();
}

#[test]
fn a_server_of_one_connection_is_told_that_the_one_of_before_the_crash_is_over() {
    let world = world_with(1, |config| config.most_connections = 1);
    let guest = Guest::with_memory(&world, 2048);
    let mut disk = guest.attach("xvda", "nbd:10.0.0.2/alice").connected();
    let server = &nbd(&world).server;
    for round in 1..=3 {
        disk.write(0, &[round; 512]);
        world.wait(Duration::from_secs(1));
        assert_eq!(server.connections(), (round.into(), 1));
        // Nothing is under way: the server has nothing to say.
        world.crash_after(0, 0);
        world.restart();
        world.wait(Duration::from_millis(500));
        assert_eq!(disk.read(0, 1), [round; 512], "crash {round}");
    }
    assert_eq!(server.connections(), (4, 1));
    disk.detach();
    world.no_mistakes();
}

#[test]
fn a_crash_between_closing_and_starting_over_is_gone_on_from() {
    let world = world();
    let guest = Guest::with_memory(&world, 2048);
    let mut disk = guest.attach("xvda", "nbd:10.0.0.2/alice").connected();
    disk.write(0, &[1; 512]);
    world.crash_after(0, 0);
    world.restart();
    let own = world.own_path("device/vif/0/state");
    let mut steps = 0..10_000;
    while world.read(&own).as_deref() != Some("6") {
        assert!(steps.next().is_some(), "it closes first");
        world.step(steps.start % 2 == 0);
    }
    world.crash_after(0, 0);
    // The backend has seen it before the next boot.
    network(&world).back.borrow_mut().step(&world.sim);
    world.restart();
    world.wait(Duration::from_secs(2));
    assert_eq!(disk.read(0, 1), [1; 512]);
    disk.detach();
    world.no_mistakes();
}

#[test]
fn a_server_that_is_away_keeps_no_new_version_from_serving() {
    for (away, expected) in [
        (false, Duration::from_secs(3)),
        (true, Duration::from_secs(8)),
    ] {
        let world = world();
        let guest = Guest::with_memory(&world, 2048);
        let _disk = guest.attach("xvda", "nbd:10.0.0.2/alice").connected();
        let _image = guest.attach("xvdb", "ram:disk1").connected();
        let server = &nbd(&world).server;
        server.change(|config| config.is_deaf = away);
        world.crash_after(0, 0);
        world.restart();
        let handle = world.restarted().services.handle.clone();
        let (serves, settled) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
        let (backend, done) = (world.restarted(), serves.clone());
        handle.spawn(async move {
            upgrade::serves(&backend.services).await;
            done.set(true);
        });
        let (backend, done) = (world.restarted(), settled.clone());
        handle.spawn(async move {
            backend.services.kept_queues.settled().await;
            done.set(true);
        });
        world.run();
        assert!(!serves.get(), "nobody has opened the export yet");
        world.wait(expected);
        assert_eq!((serves.get(), settled.get()), (true, !away));
    }
}

#[test]
fn an_export_that_was_replaced_while_the_domain_was_down_is_not_taken_up() {
    type Change = fn(&mut FakeExport);
    let changes: [(&str, Change); 4] = [
        ("another name", |export| {
            export.canonical = Some("eve".to_string())
        }),
        ("more sectors", |export| export.bytes.resize(2 * SIZE, 0)),
        ("no flushes", |export| export.flags &= !4),
        ("the same", |_| ()),
    ];
    for (what, change) in changes {
        let world = world_with(1, |config| {
            config.exports[0].canonical = Some("alice".to_string());
        });
        let guest = Guest::with_memory(&world, 2048);
        let mut disk = guest.attach("xvda", "nbd:10.0.0.2/alice").connected();
        disk.write(0, &[1; 512]);
        world.crash_after(0, 0);
        let server = &nbd(&world).server;
        server.change(|config| change(&mut config.exports[0]));
        world.restart();
        world.wait(Duration::from_secs(3));
        let problem = disk.problem().unwrap_or_default();
        let refused = problem.contains("not the disk that was served before the crash");
        assert_eq!(refused, what != "the same", "{what}: {problem}");
    }
}

/// The boot that crashed was the only one that knew what was flushed.
#[test]
fn what_a_server_may_have_lost_while_the_domain_was_down_is_told_once_for_each_export() {
    let table = testing::Disk::new(SIZE, SectorSize::B512);
    let root = NewPartition {
        label: "root",
        kind: Guid::from_bytes([9; 16]),
        id: Guid::from_bytes([1; 16]),
        first: 64,
        last: 127,
    };
    write_gpt(&table, &[root]);
    let bytes = table.change(|bytes| bytes.clone());
    let world = world_with(1, |config| {
        let table = FakeExport::new("table", SIZE);
        config.exports.push(FakeExport { bytes, ..table });
    });
    let told = |export: &str| {
        let begins = format!("nbd:10.0.0.2:10809/{export}: it is connected again after a restart");
        let journal = world.journal();
        let told = journal.iter().filter(|line| line.contains(&begins));
        let lost = "did not flush may be lost if the server was started anew meanwhile";
        told.filter(|line| line.contains(lost)).count()
    };
    let before = held(&world);
    let guest = Guest::with_memory(&world, 4096);
    let attach = |name, target| {
        let disk = guest.attach(name, target);
        // The table is read over the network.
        world.wait(Duration::from_millis(100));
        disk.connected()
    };
    let mut disks = [
        attach("xvda", "nbd:10.0.0.2/alice,shared=yes"),
        attach("xvdb", "nbd:10.0.0.2/alice,shared=yes"),
        attach("xvdc", "nbd:10.0.0.2/table#root"),
    ];
    let mut reader = guest
        .attach_read_only("xvdd", "nbd:10.0.0.2/bob")
        .connected();
    disks[0].write(0, &[1; 512]);
    assert_eq!(["alice", "bob", "table"].map(told), [0, 0, 0]);
    for crashes in 1..3 {
        world.crash_after(0, 0);
        world.restart();
        world.wait(Duration::from_secs(3));
        assert_eq!(disks[1].read(0, 1), [1; 512]);
        assert_eq!(disks[2].read(0, 1), [0; 512]);
        assert_eq!(reader.read(0, 1), [0; 512]);
        // Nothing can be lost for the one that only reads.
        let told = ["alice", "bob", "table"].map(told);
        assert_eq!(told, [crashes, 0, crashes], "{:#?}", world.journal());
    }
    disks.into_iter().for_each(|disk| disk.detach());
    reader.detach();
    assert_eq!(held(&world), before);
    world.no_mistakes();
}
