//! A driver domain that crashes after any of its instructions and goes on serving its disks.

use bulkhead_blkback::engine::QueueOptions;
use bulkhead_blkback_testkit::{Crash, Frontend, Guest, PATHS, Random, Setup, Style, World};
use bulkhead_ring::blkif::{
    Abi, BlkifSector, Discard, Operation, Request, RequestId, Status, TransferKind,
};
use bulkhead_xen_sim::xenstore::toolstack::{self, Disk};
use bulkhead_xenbus::XenbusState;
use std::collections::BTreeMap;
use std::time::Duration;

pub fn world(options: QueueOptions) -> World {
    World::with(Setup {
        options,
        recover: true,
        ..Setup::default()
    })
}

#[test]
fn nothing_is_kept_where_a_crash_ends_the_domain_anyway() {
    let world = world(QueueOptions::default());
    world.backend.services.kept_queues.unless(|| true);
    let guest = Guest::new(&world);
    let disk = guest.attach("xvda", "ram:disk0");
    assert_eq!(
        disk.backend_node("max-ring-page-order").as_deref(),
        Some("4")
    );
    let mut disk = disk.connected();
    disk.write(0, &[1; 4096]);
    world.restart();
    world.run();
    assert_ne!(
        disk.backend(),
        Some(XenbusState::Connected),
        "the disk was kept"
    );
}

/// Requests of all kinds on the ring, and what is to come of them.
struct Asked {
    /// What each read is to find.
    reads: BTreeMap<RequestId, Vec<u8>>,
    ids: Vec<RequestId>,
    /// What the disk is to hold in the end, from its first sector on.
    content: Vec<u8>,
}

/// Sectors that the requests are about.
const SECTORS_USED: usize = 224;

fn ask(disk: &mut Frontend<'_>, content: &[u8]) -> Asked {
    let mut asked = Asked {
        reads: BTreeMap::new(),
        ids: Vec::new(),
        content: content.to_vec(),
    };
    let link = disk.link();
    let mut number = 0_u8;
    let mut bytes = |sectors: usize| {
        number += 1;
        vec![number; sectors * 512]
    };
    let mut write = |asked: &mut Asked, kind, sector: usize, sectors: usize| {
        let data = bytes(sectors);
        asked.content[sector * 512..][..data.len()].copy_from_slice(&data);
        asked
            .ids
            .push(link.push_transfer(kind, sector as u64, sectors, &data));
    };
    write(&mut asked, TransferKind::Write, 0, 8);
    write(&mut asked, TransferKind::Write, 9, 3);
    write(&mut asked, TransferKind::WriteBarrier, 16, 8);
    // Indirect.
    write(&mut asked, TransferKind::Write, 24, 100);
    write(&mut asked, TransferKind::Write, 124, 20);
    let link = disk.link();
    for sector in [160_usize, 168, 176] {
        let id = link.push_read(sector as u64, 8);
        let expected = content[sector * 512..][..8 * 512].to_vec();
        asked.reads.insert(id, expected);
        asked.ids.push(id);
    }
    let discard = Request::of(
        link.new_id(),
        Operation::Discard(Discard {
            sector: BlkifSector(192),
            count: 8,
            secure: false,
        }),
    );
    link.push(&discard, Vec::new());
    asked.ids.push(discard.id);
    asked.content[192 * 512..][..8 * 512].fill(0);
    let id = link.push_flush();
    asked.ids.push(id);
    let id = link.push_read(200, 8);
    let expected = content[200 * 512..][..8 * 512].to_vec();
    asked.reads.insert(id, expected);
    asked.ids.push(id);
    asked
}

/// Everything was answered, once, and with the right data.
fn expect(disk: &mut Frontend<'_>, asked: &Asked, why: &str) {
    disk.world.run();
    let mut answers = disk.link().collect();
    for _ in 0..40 {
        if disk.link().outstanding() > 0 {
            disk.world.wait(Duration::from_millis(10));
            answers.extend(disk.link().collect());
        }
    }
    let mut ids: Vec<RequestId> = answers.iter().map(|answer| answer.id).collect();
    ids.sort();
    let mut expected = asked.ids.clone();
    expected.sort();
    assert_eq!(ids, expected, "{why}: {:#?}", disk.world.journal());
    for answer in &answers {
        assert_eq!(answer.status, Status::Okay, "{why}: {answer:?}");
        if let Some(data) = asked.reads.get(&answer.id) {
            assert_eq!(&answer.data, data, "{why}: {:?}", answer.id);
        }
    }
    for sector in (0..SECTORS_USED).step_by(32) {
        let read = disk.read(sector as u64, 32);
        assert!(
            read == asked.content[sector * 512..][..32 * 512],
            "{why}: sectors from {sector} on"
        );
    }
}

/// A machine, and a disk on it: its target, and whether the guest keeps its pages granted.
pub struct Case<'a> {
    pub world: &'a dyn Fn() -> World,
    /// What else the machine is to have.
    pub prepare: fn(&World),
    pub target: &'a str,
    pub persistent: bool,
}

/// Connects a disk, asks, crashes that many instructions after that many calls into Xen, and restarts.
fn crash_once(case: &Case<'_>, calls: u64, instructions: u64) -> Crash {
    let world = (case.world)();
    (case.prepare)(&world);
    let before = held(&world);
    let guest = Guest::with_memory(&world, 2048);
    let mut disk = guest
        .attach("xvda", case.target)
        .styled(Style::persistent(case.persistent))
        .connected();
    let states = |disk: &Frontend<'_>| (disk.backend(), disk.backend_node("sectors"));
    let connected = states(&disk);
    assert_eq!(connected.0, Some(XenbusState::Connected));
    let content = disk_content(&mut disk);
    let asked = ask(&mut disk, &content);
    disk.link().kick();
    let crash = world.crash_after(calls, instructions);
    let why = format!("after {calls} calls: {crash:?}");
    if let Crash::Crashed(_) = crash {
        world.restart();
    }
    expect(&mut disk, &asked, &why);
    assert_eq!(states(&disk), connected, "{why}");
    disk.detach();
    assert_eq!(held(&world), before, "{why}");
    world.no_mistakes();
    crash
}

/// Returns the ports and the mappings that the driver domain has in Xen.
pub fn held(world: &World) -> (usize, usize) {
    world.run();
    (world.storage.open_ports(), world.storage.live_mappings())
}

fn disk_content(disk: &mut Frontend<'_>) -> Vec<u8> {
    let parts = (0..SECTORS_USED).step_by(32);
    parts
        .flat_map(|sector| disk.read(sector as u64, 32))
        .collect()
}

/// Crashes `rounds` times in each span between two calls into Xen, from the guest's notification to the driver domain's
/// sleep, after any of the instructions of that span.
pub fn crash_everywhere(case: &Case<'_>, rounds: u64) {
    let Crash::Ended(calls) = crash_once(case, u64::MAX, 0) else {
        panic!("it crashed by itself");
    };
    assert!(calls > 10, "{calls} calls");
    let mut random = Random::new(calls);
    let mut crashed = 0;
    for _ in 0..rounds {
        for call in 0..calls {
            // Most spans are short, and some are not.
            let most = 1 << random.below(11);
            let instructions = random.below(most);
            let crash = crash_once(case, call, instructions);
            crashed += u64::from(matches!(crash, Crash::Crashed(_)));
        }
    }
    let all = rounds * calls;
    assert!(crashed * 10 > all * 9, "{crashed} crashes of {all}");
    println!("{}: {crashed} crashes between {calls} calls", case.target);
}

/// Rounds of each test: more by hand.
pub fn rounds() -> u64 {
    let set = std::env::var("CRASHES").ok();
    set.and_then(|text| text.parse().ok()).unwrap_or(1)
}

fn on_path(path: usize) {
    let (data_path, persistent) = PATHS[path];
    let options = QueueOptions {
        data_path,
        ..QueueOptions::default()
    };
    let case = Case {
        world: &|| world(options),
        prepare: |_| (),
        target: "ram:disk0",
        persistent,
    };
    crash_everywhere(&case, rounds());
}

#[test]
fn a_guest_with_persistent_grants_notices_no_crash() {
    on_path(0);
}

#[test]
fn a_guest_whose_pages_are_mapped_notices_no_crash() {
    on_path(1);
}

#[test]
fn a_guest_whose_pages_are_copied_notices_no_crash() {
    on_path(2);
}

/// A write of one sector at each of the first `count` sectors, and the byte that it writes.
pub fn push_writes(disk: &mut Frontend<'_>, count: u64, byte: u8) -> Vec<RequestId> {
    let write = |sector| disk.link().push_write(sector, &[byte; 512]);
    (0..count).map(write).collect()
}

/// Every request was answered, once.
pub fn collect_all(disk: &mut Frontend<'_>, expected: &[RequestId], why: &str) {
    disk.world.run();
    disk.world.wait(Duration::from_millis(5));
    let answers = disk.link().collect();
    let mut ids: Vec<RequestId> = answers.iter().map(|answer| answer.id).collect();
    ids.sort();
    let mut expected = expected.to_vec();
    expected.sort();
    assert_eq!(ids, expected, "{why}");
    assert!(answers.iter().all(|answer| answer.status == Status::Okay));
}

#[test]
fn crashes_follow_each_other_while_requests_are_served_again() {
    let world = world(QueueOptions::default());
    let guest = Guest::with_memory(&world, 2048);
    let style = |abi| Style {
        abi,
        ..Style::persistent(true)
    };
    let attach = |name, target, abi| guest.attach(name, target).styled(style(abi)).connected();
    let mut disks = [
        attach("xvda", "ram:disk0", Abi::X86_64),
        attach("xvdb", "ram:disk1", Abi::X86_32),
        attach("xvdc", "null:64M", Abi::X86_64),
    ];
    let mut random = Random::new(5);
    let mut crashes = 0;
    // The indices wrap around the ring several times, which is full each time.
    for round in 1..=40 {
        let asked: Vec<_> = disks
            .iter_mut()
            .map(|disk| push_writes(disk, 32, round))
            .collect();
        disks.iter_mut().for_each(|disk| disk.link().kick());
        for _ in 0..random.below(4) {
            let crash = world.crash_after(random.below(16), random.below(500));
            crashes += u64::from(matches!(crash, Crash::Crashed(_)));
            world.restart();
            // xenstored, and the beginning of the next boot.
            for _ in 0..random.below(30) {
                world.step(random.below(2) == 0);
            }
        }
        for (disk, asked) in disks.iter_mut().zip(&asked) {
            collect_all(disk, asked, &format!("round {round}"));
        }
        let written = disks[0].read(0, 32);
        assert!(written.iter().all(|byte| *byte == round), "round {round}");
    }
    assert!(crashes > 20, "{crashes}");
    for disk in disks {
        disk.detach();
    }
    world.nothing_left_in_xen();
}

#[test]
fn several_queues_are_taken_up_together() {
    let world = world(QueueOptions::default());
    let guest = Guest::with_memory(&world, 2048);
    let style = Style {
        queues: 3,
        ..Style::persistent(true)
    };
    let mut disk = guest.attach("xvda", "ram:disk0").styled(style).connected();
    for number in 0..3 {
        let link = disk.queue(number);
        link.push_write(number as u64, &[number as u8 + 1; 512]);
        link.kick();
    }
    world.crash_after(20, 0);
    world.restart();
    world.run();
    world.wait(Duration::from_millis(5));
    for number in 0..3 {
        assert_eq!(disk.queue(number).collect().len(), 1, "queue {number}");
        assert_eq!(disk.read(number as u64, 1), [number as u8 + 1; 512]);
    }
    disk.detach();
    world.nothing_left_in_xen();
}

#[test]
fn queues_of_two_vcpus_are_served_on_after_a_crash_of_either() {
    let world = World::with(Setup {
        vcpus: 2,
        recover: true,
        ..Setup::default()
    });
    let guest = Guest::with_memory(&world, 2048);
    let style = Style {
        queues: 2,
        ..Style::persistent(true)
    };
    let mut disk = guest.attach("xvda", "ram:disk0").styled(style).connected();
    let node = format!("{}/statistics", disk.vbd.backend_path());
    let expect_spread = || {
        world.write(&node, "refresh");
        let lines = world.read(&node).expect("the node is there");
        let vcpu = |queue| {
            let name = format!("queue_{queue}_vcpu ");
            lines.lines().find_map(|line| line.strip_prefix(&name))
        };
        assert!(vcpu(0).is_some() && vcpu(0) != vcpu(1), "{lines}");
    };
    expect_spread();
    let mut random = Random::new(6);
    // Crashes before the first vCPU has answered everything, and after that.
    let mut crashes = [0; 2];
    for round in 1..=60_u8 {
        let mut asked = Vec::new();
        for queue in 0..2 {
            let link = disk.queue(queue);
            let ids: Vec<_> = (0..8)
                .map(|at| link.push_write(queue as u64 * 64 + at, &[round; 512]))
                .collect();
            link.kick();
            asked.push(ids);
        }
        let crash = world.crash_after(random.below(24), random.below(400));
        let mut answered: Vec<Vec<_>> = disk.queues().map(|queue| queue.collect()).collect();
        if let Crash::Crashed(_) = crash {
            let done = answered.iter().any(|answers| answers.len() == 8);
            crashes[usize::from(done)] += 1;
        }
        world.restart();
        world.run();
        world.wait(Duration::from_millis(5));
        for (queue, answers) in answered.iter_mut().enumerate() {
            answers.extend(disk.queue(queue).collect());
            let mut ids: Vec<RequestId> = answers.iter().map(|answer| answer.id).collect();
            ids.sort();
            asked[queue].sort();
            assert_eq!(ids, asked[queue], "round {round}, queue {queue}, {crash:?}");
            assert!(answers.iter().all(|answer| answer.status == Status::Okay));
            let written = disk.read(queue as u64 * 64, 8);
            assert!(written.iter().all(|byte| *byte == round), "round {round}");
        }
        expect_spread();
    }
    assert!(crashes.iter().all(|count| *count > 5), "{crashes:?}");
    disk.detach();
    world.nothing_left_in_xen();
}

#[test]
fn a_long_discard_is_begun_again_and_no_later_request_overtakes_it() {
    let size = 8 << 20;
    let world = World::with(Setup {
        images: vec![("large".into(), vec![7; size])],
        recover: true,
        ..Setup::default()
    });
    let guest = Guest::with_memory(&world, 2048);
    let mut disk = guest.attach("xvda", "ram:large").connected();
    for calls in 0..20 {
        let link = disk.link();
        let mut asked = vec![link.push_write(0, &[1; 512])];
        let discard = Request::of(
            link.new_id(),
            Operation::Discard(Discard {
                sector: BlkifSector(0),
                count: (size / 512) as u64,
                secure: false,
            }),
        );
        link.push(&discard, Vec::new());
        asked.push(discard.id);
        asked.push(link.push_write(8, &[2; 512]));
        asked.push(link.push_read(9, 1));
        link.kick();
        world.crash_after(calls, 300);
        world.restart();
        collect_all(&mut disk, &asked, "a discard");
        assert_eq!(disk.read(0, 1), [0; 512]);
        assert_eq!(disk.read(8, 1), [2; 512]);
    }
    disk.detach();
    world.nothing_left_in_xen();
}

#[test]
fn what_happens_while_nobody_serves_is_seen_afterwards() {
    let world = world(QueueOptions::default());
    let (one, other) = (Guest::new(&world), Guest::new(&world));
    let mut stays = one.attach("xvda", "ram:disk0").connected();
    let detached = one.attach("xvdb", "ram:disk1").connected();
    let third = Guest::new(&world);
    let destroyed = third.attach("xvda", "ram:disk2").connected();
    world.crash_after(0, 0);
    // Before the next boot: a guest ends, a disk is asked back, and somebody wants an image that is in use.
    world.sim.destroy_domain(third.domain.id());
    toolstack::force_detach(&mut world.sim.store(), &destroyed.vbd);
    assert!(toolstack::request_detach(
        &mut world.sim.store(),
        &detached.vbd
    ));
    let thief = other.attach_unseen("xvdb", &Disk::new("ram:disk0"));
    stays.link().push_write(3, &[9; 512]);
    stays.link().kick();
    world.restart();
    world.run();
    assert_eq!(stays.link().collect().len(), 1);
    assert_eq!(stays.backend(), Some(XenbusState::Connected));
    assert_eq!(stays.read(3, 1), [9; 512]);
    assert!(
        thief
            .problem()
            .is_some_and(|text| text.contains("is open for writing")),
        "{:?}, {:#?}",
        thief.problem(),
        world.journal()
    );
    detached.go(XenbusState::Closing);
    let mut detached = detached;
    detached.go(XenbusState::Closed);
    detached.take_down();
    detached.finish_detach();
    world.wait_for_removal();
    assert!(destroyed.vbd.backend_gone(&world.sim.store()));
    toolstack::finish_detach(&mut world.sim.store(), &destroyed.vbd);
    other.destroy(vec![thief]);
    stays.detach();
    world.nothing_left_in_xen();
}

#[test]
fn a_ring_full_of_large_requests_is_served_while_they_are_kept() {
    let world = world(QueueOptions::default());
    let guest = Guest::with_memory(&world, 8192);
    let mut disk = guest.attach("xvda", "null:64M").connected();
    for round in 0..10 {
        let link = disk.link();
        let asked: Vec<_> = (0..32).map(|at| link.push_read(at * 1024, 128)).collect();
        link.kick();
        let mut answered = 0;
        for _ in 0..20 {
            world.turn();
            world.step(true);
            answered += disk.link().collect().len();
            world
                .sim
                .advance_to(world.sim.now() + Duration::from_micros(100));
        }
        assert_eq!(answered, asked.len(), "round {round}");
    }
    disk.detach();
    world.nothing_left_in_xen();
}
