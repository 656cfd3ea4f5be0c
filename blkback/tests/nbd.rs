//! Guests' disks on exports of a server on the network.

use super::allocations::taken_beside;
use super::discard::discard;
use bulkhead_blkback_testkit::{Bystander, Guest, Nbd, PATHS, Random, Setup, Style, World};
use bulkhead_nbd_testing::{Config, FakeExport, Reach, Treatment};
use bulkhead_ring::blkif::Status;
use bulkhead_ring::blkif::TransferKind::{Write, WriteBarrier};
use bulkhead_stream::{ConnectError, Ended};
use bulkhead_xen_sim::xenstore::toolstack;
use std::time::Duration;

/// The bytes of each export.
const SIZE: usize = 256 * 1024;

/// The time after which exports that no disk uses are let go of: a minute, and some more.
const UNUSED: Duration = Duration::from_secs(62);

fn setup(setup: Setup) -> Setup {
    Setup {
        server: Some(Config {
            exports: vec![FakeExport::new("alice", SIZE), FakeExport::new("bob", SIZE)],
            ..Config::default()
        }),
        ..setup
    }
}

fn nbd(world: &World) -> &Nbd {
    world.nbd.as_ref().expect("it has a server")
}

/// Checks that nothing is left, no connection either.
fn end(world: &World) {
    world.wait(UNUSED);
    assert_eq!(nbd(world).exports.count(), 0);
    assert_eq!(nbd(world).server.connections().1, 0);
    world.nothing_left();
}

#[test]
fn guests_are_served_however_their_pages_are_reached() {
    for (path, persistent) in PATHS {
        let world = World::with(setup(Setup::on_path(path)));
        let guests = [Guest::new(&world), Guest::new(&world)];
        let mut random = Random::new(22);
        let mut disks = Vec::new();
        for (guest, target) in guests
            .iter()
            .zip(["nbd:10.0.0.2/alice", "nbd:10.0.0.2/bob"])
        {
            let disk = guest.attach("xvda", target);
            let disk = disk.styled(Style::persistent(persistent)).connected();
            disks.push((disk, vec![0; SIZE]));
        }
        let (first, model) = &mut disks[0];
        for _ in 0..4 {
            first.verify_against(model, &mut random);
        }
        assert!(nbd(&world).server.bytes("alice") == *model);
        let (second, _) = &mut disks[1];
        let data = random.bytes(8192);
        second.write(16, &data);
        assert!(second.read(16, 16) == data);
        assert_eq!(nbd(&world).server.bytes("bob")[8192..16384], data);
        for (disk, _) in disks {
            disk.detach();
        }
        end(&world);
    }
}

#[test]
fn flushes_barriers_and_discards_reach_the_server() {
    let world = World::with(setup(Setup::default()));
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "nbd:10.0.0.2/alice").connected();
    for feature in ["feature-flush-cache", "feature-barrier", "feature-discard"] {
        assert_eq!(
            disk.backend_node(feature).as_deref(),
            Some("1"),
            "{feature}"
        );
    }
    disk.write(8, &[7; 4096]);
    disk.flush();
    disk.link().push_transfer(WriteBarrier, 16, 1, &[1; 512]);
    assert_eq!(disk.answer().status, Status::Okay);
    assert_eq!(discard(&mut disk, 8, 8, false), Status::Okay);
    let seen = nbd(&world).server.seen();
    let kinds: Vec<u16> = seen.iter().map(|seen| seen.kind).collect();
    assert_eq!(kinds, [1, 3, 3, 1, 4]);
    disk.detach();
    end(&world);
}

#[test]
fn requests_larger_than_the_server_takes_are_several_commands() {
    let export = FakeExport {
        sizes: Some([512, 4096, 6 * 1024]),
        ..FakeExport::new("alice", SIZE)
    };
    let world = World::with(Setup {
        server: Some(Config {
            exports: vec![export],
            ..Config::default()
        }),
        ..Setup::default()
    });
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "nbd:10.0.0.2/alice").connected();
    let data = Random::new(24).bytes(11 * 4096);
    disk.write(3, &data);
    assert!(disk.read(3, 88) == data);
    let server = &nbd(&world).server;
    assert!(server.bytes("alice")[3 * 512..][..data.len()] == data);
    let seen = server.seen();
    assert!(seen.iter().all(|seen| seen.len <= 6 * 1024), "{seen:?}");
    let written = seen.iter().filter(|seen| seen.kind == 1);
    assert_eq!(
        written.map(|seen| seen.len as usize).sum::<usize>(),
        data.len()
    );
    disk.detach();
    end(&world);
}

#[test]
fn a_guest_with_an_export_that_is_not_there_is_told_which_there_are() {
    let world = World::with(setup(Setup::default()));
    let guest = Guest::new(&world);
    let disk = guest.attach("xvda", "nbd:10.0.0.2/carol");
    assert_eq!(
        disk.problem().as_deref(),
        Some("nbd:10.0.0.2:10809/carol: no export 'carol', there are: alice, bob")
    );
    world.wait_for_removal();
    toolstack::finish_detach(&mut world.sim.store(), &disk.vbd);
    end(&world);
}

#[test]
fn names_of_any_length_leave_room_for_the_reason() {
    let odd: Vec<_> = (0..40)
        .map(|number| FakeExport::new(&format!("{number}{}", "\u{1b}".repeat(4000)), SIZE))
        .collect();
    let world = World::with(Setup {
        server: Some(Config {
            exports: odd,
            ..Config::default()
        }),
        ..Setup::default()
    });
    let guest = Guest::new(&world);
    let target = format!("nbd:10.0.0.2/{}", "%C3%A9".repeat(160));
    let disk = guest.attach("xvda", &target);
    let problem = disk.problem().expect("the error node says why");
    let said = problem.contains("no export '") && problem.ends_with(" more");
    assert!(said && problem.len() < 2048, "{problem}");
    world.wait_for_removal();
    toolstack::finish_detach(&mut world.sim.store(), &disk.vbd);
    end(&world);
}

#[test]
fn guests_wait_for_a_server_that_is_gone_and_others_do_not() {
    for (path, persistent) in PATHS {
        let world = World::with(setup(Setup::on_path(path)));
        let guest = Guest::new(&world);
        let mut other = Bystander::new(&world);
        let disk = guest.attach("xvda", "nbd:10.0.0.2/alice");
        let mut disk = disk.styled(Style::persistent(persistent)).connected();
        let server = &nbd(&world).server;
        // Some are done and not answered, some are not done at all.
        let mut left = 5;
        server.decide(move |_| {
            left -= 1;
            match left {
                0 => Treatment::Unanswered(Ended::Reset),
                _ => Treatment::Held,
            }
        });
        for number in 0..16 {
            disk.link()
                .push_transfer(Write, number * 8, 8, &[number as u8; 4096]);
        }
        disk.link().kick();
        world.run();
        server.change(|config| config.reach = Reach::Fails(ConnectError::Unreachable));
        server.drop_all(Ended::Reset);
        world.wait(Duration::from_secs(1200));
        assert_eq!(disk.link().collect(), [], "the guest waits");
        other.io();
        server.decide(|_| Treatment::Done);
        server.change(|config| config.reach = Reach::Connects);
        world.wait(Duration::from_secs(31));
        let answers = disk.link().collect();
        assert_eq!(answers.len(), 16);
        assert!(answers.iter().all(|answer| answer.status == Status::Okay));
        for number in 0..16_u8 {
            assert_eq!(disk.read(u64::from(number) * 8, 8), [number; 4096]);
        }
        disk.detach();
        other.leave();
        end(&world);
    }
}

#[test]
fn what_a_server_that_was_started_anew_may_have_lost_is_told() {
    let text = "what guests wrote and did not flush may be lost if the server was started anew";
    for (flushed_since, told) in [(true, false), (false, true)] {
        let world = World::with(setup(Setup::default()));
        let guest = Guest::new(&world);
        let mut disk = guest.attach("xvda", "nbd:10.0.0.2/alice").connected();
        let server = &nbd(&world).server;
        disk.write(8, &[7; 4096]);
        disk.flush();
        if !flushed_since {
            disk.write(8, &[8; 4096]);
        }
        server.drop_all(Ended::Reset);
        world.run();
        assert_eq!(server.connections(), (2, 1));
        let journal = || {
            world
                .journal()
                .iter()
                .filter(|line| line.contains(text))
                .count()
        };
        assert_eq!(journal(), usize::from(told));
        // It is told once; a flush does not fail for it.
        disk.flush();
        server.drop_all(Ended::Reset);
        world.run();
        assert_eq!(journal(), usize::from(told));
        disk.detach();
        end(&world);
    }
}

#[test]
fn random_reads_and_writes_verify_while_connections_drop() {
    for (several, structured) in [(false, true), (true, false)] {
        let export = FakeExport {
            flags: 0b110_1101 | u16::from(several) << 8,
            ..FakeExport::new("alice", SIZE)
        };
        let world = World::with(Setup {
            vcpus: 2,
            server: Some(Config {
                exports: vec![export],
                structured,
                piece: 5000,
                ..Config::default()
            }),
            ..Setup::default()
        });
        let guest = Guest::new(&world);
        let mut disk = guest.attach("xvda", "nbd:10.0.0.2/alice").connected();
        let server = &nbd(&world).server;
        let mut commands = 0;
        server.decide(move |_| {
            commands += 1;
            match commands % 13 {
                0 => Treatment::Unanswered(Ended::Reset),
                6 => Treatment::Failed(108),
                _ => Treatment::Done,
            }
        });
        let (mut model, mut random) = (vec![0; SIZE], Random::new(23));
        // It is connected to again after a pause.
        for _ in 0..8 {
            disk.verify_within(60, &mut model, &mut random);
        }
        assert!(server.bytes("alice") == model);
        assert!(server.connections().0 > 10, "{:?}", server.connections());
        disk.detach();
        end(&world);
    }
}

#[test]
fn a_disk_whose_server_is_gone_or_silent_is_taken_from_its_guest() {
    for gone in [true, false] {
        let world = World::with(setup(Setup::default()));
        let guest = Guest::new(&world);
        let mut disk = guest.attach("xvda", "nbd:10.0.0.2/alice").connected();
        let server = &nbd(&world).server;
        server.decide(|_| Treatment::Lost);
        for number in 0..4 {
            disk.link().push_transfer(Write, number * 8, 8, &[1; 4096]);
            disk.link().push_read(number * 8, 8);
        }
        disk.link().kick();
        world.run();
        if gone {
            server.change(|config| config.reach = Reach::Hangs);
            server.drop_all(Ended::TimedOut);
        }
        let id = guest.domain.id();
        world.sim.destroy_domain(id);
        toolstack::force_detach(&mut world.sim.store(), &disk.vbd);
        world.wait(Duration::from_secs(9));
        assert!(disk.vbd.backend_gone(&world.sim.store()));
        toolstack::finish_detach(&mut world.sim.store(), &disk.vbd);
        // A silent server has its writes until the connection to it ends.
        assert_eq!(world.sim.is_fully_gone(id), gone);
        world.wait(Duration::from_secs(40));
        assert!(world.sim.is_fully_gone(id));
        server.decide(|_| Treatment::Done);
        server.change(|config| config.reach = Reach::Connects);
        world.wait(Duration::from_secs(60));
        end(&world);
    }
}

#[test]
fn a_server_that_violates_the_protocol_costs_its_guest_the_disk() {
    let world = World::with(setup(Setup::default()));
    let guest = Guest::new(&world);
    let mut other = Bystander::new(&world);
    let mut disk = guest.attach("xvda", "nbd:10.0.0.2/alice").connected();
    nbd(&world).server.decide(|_| Treatment::Misnamed(1 << 40));
    for number in 0..4 {
        disk.link().push_read(number * 8, 8);
    }
    let answers = disk.exchange();
    assert_eq!(answers.len(), 4);
    assert!(answers.iter().all(|answer| answer.status == Status::Error));
    other.io();
    let journal = world.journal();
    let told = journal.iter().any(|line| {
        line.starts_with("ERROR") && line.contains("given up: the server breaks the protocol")
    });
    assert!(told, "{journal:?}");
    disk.detach();
    other.leave();
    end(&world);
}

#[test]
fn a_server_that_comes_back_with_another_size_is_refused() {
    let world = World::with(setup(Setup::default()));
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "nbd:10.0.0.2/alice").connected();
    let server = &nbd(&world).server;
    server.change(|config| config.exports[0].bytes.truncate(SIZE / 2));
    server.drop_all(Ended::Closed);
    disk.link().push_read(0, 8);
    disk.exchange();
    world.wait(Duration::from_secs(2));
    disk.link().push_read(0, 8);
    let statuses: Vec<_> = disk.exchange().iter().map(|answer| answer.status).collect();
    assert!(!statuses.is_empty() && statuses.iter().all(|status| *status == Status::Error));
    let journal = world.journal();
    let text = "the server has another export in its place: it has 256 sectors, and had 512";
    assert!(
        journal.iter().any(|line| line.contains(text)),
        "{journal:?}"
    );
    disk.detach();
    end(&world);
}

#[test]
fn two_vcpus_serve_with_two_connections_where_the_server_has_them() {
    let export = FakeExport {
        flags: 0b1_0110_1101,
        ..FakeExport::new("alice", SIZE)
    };
    let world = World::with(Setup {
        vcpus: 2,
        server: Some(Config {
            exports: vec![export],
            ..Config::default()
        }),
        ..Setup::default()
    });
    let guest = Guest::new(&world);
    let style = Style {
        queues: 2,
        ..Style::default()
    };
    let mut disk = guest
        .attach("xvda", "nbd:10.0.0.2/alice")
        .styled(style)
        .connected();
    for number in 0..2 {
        let queue = disk.queue(number);
        queue.push_transfer(Write, 8 * number as u64, 8, &[number as u8 + 1; 4096]);
        queue.kick();
        world.run();
        assert_eq!(disk.queue(number).collect()[0].status, Status::Okay);
    }
    let mut used: Vec<_> = nbd(&world)
        .server
        .seen()
        .iter()
        .map(|seen| seen.connection)
        .collect();
    used.sort_unstable();
    assert_eq!(used, [0, 1]);
    assert_eq!(disk.read(8, 8), [2; 4096]);
    disk.detach();
    end(&world);
}

#[test]
fn serving_allocates_nothing() {
    let world = World::with(setup(Setup::default()));
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "nbd:10.0.0.2/alice").connected();
    let taken = taken_beside(&mut disk, || _ = nbd(&world).server.step());
    assert_eq!(taken, 0);
    disk.detach();
    end(&world);
}
